//! The lives of requests: queued, started, preempted, resumed, first token, finished.
//!
//! A request is one of an engine's log, called by its number. Its row is handed out when it is over, or at the end of the
//! session if it is not; nothing is kept of it then but what the summary needs. The engine says when a token left it; when a
//! client could have it is what the front end says, which the time stamp of the step's outputs joins to it.

use std::collections::{BTreeMap, HashMap};

use profilemate_session::record::{
    RequestAdmitted, RequestFinished, RequestPreempted, RequestQueued, RequestText, TEXT_BYTES, request_traits,
};
use profilemate_session::{Component, Event, Payload, Session};
use xxhash_rust::xxh3::xxh3_64;

use crate::statistics::{Distribution, Samples, milliseconds};
use crate::{Context, Row, latency};

/// Most bytes of an id; a writer keeps no more, and a reader believes no more.
const MAX_ID_BYTES: usize = 255;

/// What kind of request it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Makes tokens.
    Generate,
    /// Makes none: embeddings, scores, classes.
    Pooling,
    /// A session that may go on with more input after it has stopped.
    Streaming,
}

impl Kind {
    /// Its name.
    pub fn text(self) -> &'static str {
        match self {
            Self::Generate => "generate",
            Self::Pooling => "pooling",
            Self::Streaming => "streaming",
        }
    }

    fn of(traits: u16) -> Self {
        if traits & request_traits::POOLING != 0 {
            Self::Pooling
        } else if traits & request_traits::STREAMING != 0 {
            Self::Streaming
        } else {
            Self::Generate
        }
    }
}

/// One request, from beginning to end, or as far as it came. Times are nanoseconds since the session's start; `None` = it did
/// not come to that, or it is not known.
#[derive(Debug, Clone, Copy)]
pub struct Lifecycle<'a> {
    /// The engine's id; empty = not known.
    pub request_id: &'a str,
    /// What the client called it; the same where vLLM has no other id.
    pub client_request_id: &'a str,
    /// Which of the samples of one client request it is.
    pub sample_index: Option<u32>,
    /// What kind of request it is; `None` = not known.
    pub kind: Option<Kind>,
    /// vLLM's priority: lower is earlier.
    pub priority: Option<i32>,
    /// When the front end got it.
    pub arrived_ns: Option<i64>,
    /// When it entered the scheduler.
    pub queued_ns: Option<i64>,
    /// When the scheduler first put it into a batch.
    pub started_ns: Option<i64>,
    /// When it was first preempted.
    pub preempted_ns: Option<i64>,
    /// When it was first resumed.
    pub resumed_ns: Option<i64>,
    /// When the front end took its first token.
    pub first_token_ns: Option<i64>,
    /// When the front end took its last output; of an abort, when the scheduler let it go.
    pub finished_ns: Option<i64>,
    /// When the engine had its last token, or let it go.
    pub left_engine_ns: Option<i64>,
    /// Sum of the times between being preempted and being resumed, or over, nanoseconds; `None` while it waits.
    pub preemption_delay_ns: Option<u64>,
    /// That part of it that lies before its first token; `None` without one.
    pub delay_before_first_token_ns: Option<u64>,
    /// Tokens of its prompt.
    pub prompt_tokens: Option<u32>,
    /// Those that a cache had when it was started, here or elsewhere.
    pub cached_tokens: Option<u32>,
    /// Those of them that a KV connector brought.
    pub external_tokens: Option<u32>,
    /// Tokens generated; of a request that is not over, not known.
    pub output_tokens: Option<u32>,
    /// How often it was preempted.
    pub preemptions: Option<u64>,
    /// Computed tokens that preemptions threw away and no cache gave back.
    pub recomputed_tokens: Option<u64>,
    /// Why it ended, in vLLM's words for clients (`stop`, `length`, `abort`, …).
    pub finish_reason: Option<&'a str>,
    /// The engine: `engine_core-0`.
    pub process: &'a str,
    /// Index of its log in the session.
    pub log: usize,
}

impl Lifecycle<'_> {
    /// From queued to started, nanoseconds (vLLM: `vllm:request_queue_time_seconds`).
    pub fn queue_time_ns(&self) -> Option<u64> {
        difference(self.queued_ns, self.started_ns)
    }

    /// From arrival to the first token, nanoseconds (vLLM: `vllm:time_to_first_token_seconds`).
    pub fn ttft_ns(&self) -> Option<u64> {
        difference(self.arrived_ns, self.first_token_ns)
    }

    /// From arrival to the end, nanoseconds (vLLM: `vllm:e2e_request_latency_seconds`).
    pub fn total_time_ns(&self) -> Option<u64> {
        difference(self.arrived_ns, self.finished_ns)
    }

    /// Between two tokens, on average, nanoseconds (vLLM: `vllm:request_time_per_output_token_seconds`); `None` with fewer than
    /// two tokens.
    pub fn tpot_ns(&self) -> Option<u64> {
        let gaps = u64::from(self.output_tokens?).checked_sub(1).filter(|gaps| *gaps > 0)?;
        Some((difference(self.first_token_ns, self.finished_ns)? + gaps / 2) / gaps)
    }
}

/// From one moment to a later one; an end that lies before its beginning tells no time.
fn difference(from: Option<i64>, to: Option<i64>) -> Option<u64> {
    to?.checked_sub(from?)?.try_into().ok()
}

/// What happened to a request.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Happening<'a> {
    /// It was put into a batch for the first time.
    Started {
        /// Tokens of its prompt.
        prompt_tokens: Option<u32>,
        /// Those that a cache had.
        cached_tokens: u32,
    },
    /// It lost its blocks.
    Preempted {
        /// Why; empty = not known.
        reason: &'a str,
        /// Since it was last started or resumed, nanoseconds.
        running_ns: Option<u64>,
        /// Tokens that were computed.
        computed_tokens: u32,
        /// Tokens that it had generated.
        output_tokens: u32,
        /// Blocks that became free.
        blocks_freed: Option<u32>,
        /// The request that needed them.
        beneficiary: Beneficiary<'a>,
    },
    /// It was put into a batch again.
    Resumed {
        /// Tokens that a cache still had.
        cached_tokens: u32,
        /// Since it was preempted, nanoseconds.
        delay_ns: Option<u64>,
    },
    /// It is over.
    Finished {
        /// Why.
        reason: &'a str,
        /// All the time that it was running, nanoseconds.
        running_ns: Option<u64>,
        /// Tokens that it generated.
        output_tokens: u32,
    },
    /// It was aborted.
    Aborted {
        /// Why.
        reason: &'a str,
        /// All the time that it was running, nanoseconds.
        running_ns: Option<u64>,
        /// Tokens that it generated.
        output_tokens: u32,
    },
}

/// For whom a request was preempted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beneficiary<'a> {
    /// Nobody, or it is not known.
    Unknown,
    /// Itself: no other was left to preempt.
    Itself,
    /// The request with this id.
    Other(&'a str),
}

/// Something that happened to a request.
#[derive(Debug, Clone, Copy)]
pub struct RequestEvent<'a> {
    /// When: nanoseconds since the session's start.
    pub at_ns: i64,
    /// The engine's id of the request; empty = not known.
    pub request_id: &'a str,
    /// What.
    pub what: Happening<'a>,
    /// Engine step; `None` = none.
    pub step: Option<u64>,
    /// The engine: `engine_core-0`.
    pub process: &'a str,
    /// Index of its log in the session.
    pub log: usize,
}

/// An engine has the first token of a request.
#[derive(Debug, Clone, Copy)]
pub struct FirstToken<'a> {
    /// When: nanoseconds since the session's start.
    pub at_ns: i64,
    /// The engine's id of the request; empty = not known.
    pub request_id: &'a str,
    /// Engine step; `None` = none.
    pub step: Option<u64>,
    /// Index of its log in the session.
    pub log: usize,
}

/// What is said of all requests.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Summary {
    /// Requests that were seen.
    pub total_requests: u64,
    /// Those that were not over.
    pub open_requests: u64,
    /// Those that were over, by reason.
    pub finished: BTreeMap<String, u64>,
    /// Preemptions.
    pub preemptions: u64,
    /// Those, by reason; empty = not known.
    pub preemption_reasons: BTreeMap<String, u64>,
    /// Requests that were preempted.
    pub preempted_requests: u64,
    /// Computed tokens that preemptions threw away and no cache gave back.
    pub recomputed_tokens: u64,
    /// Aborts among those that were over.
    pub aborted_requests: u64,
    /// Running time before each preemption, seconds.
    pub running_before_preemption: Option<Distribution>,
    /// Time from each preemption until the request was resumed, seconds.
    pub resume_delays: Option<Distribution>,
    /// Of requests that were started, seconds.
    pub queue_time: Option<Distribution>,
    /// Of requests with a first token, seconds.
    pub ttft: Option<Distribution>,
    /// Of requests that are over and have two tokens at least, milliseconds.
    pub tpot: Option<Distribution>,
    /// Of requests that are over, from arrival, seconds.
    pub total_time: Option<Distribution>,
    /// What that time consists of.
    pub latency: Option<latency::Summary>,
    /// Tokens of the prompts of requests that were seen.
    pub prompt_tokens: u64,
    /// Those of them that a cache had.
    pub cached_tokens: u64,
    /// Tokens that finished requests generated.
    pub output_tokens: u64,
}

/// An id that comes in pieces.
#[derive(Debug, Clone, Default)]
struct Id {
    bytes: Vec<u8>,
    expected: usize,
}

impl Id {
    fn new(expected: u16) -> Self {
        let expected = usize::from(expected).min(MAX_ID_BYTES);
        Self { bytes: Vec::with_capacity(expected), expected }
    }

    /// Takes a piece; whether the id is whole with it.
    fn take(&mut self, text: &RequestText) -> bool {
        let missing = self.expected.saturating_sub(self.bytes.len());
        // A piece that is lost leaves the id cut off: what follows it does not belong there.
        if missing == 0 || usize::from(text.part) * TEXT_BYTES != self.bytes.len() {
            return false;
        }
        self.bytes.extend_from_slice(&text.bytes[..missing.min(TEXT_BYTES)]);
        self.bytes.len() == self.expected
    }

    fn into_text(self) -> Box<str> {
        String::from_utf8(self.bytes)
            .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
            .into_boxed_str()
    }
}

/// Where a request is between two admissions.
#[derive(Debug, Clone, Copy, Default)]
enum Place {
    #[default]
    Waiting,
    /// Since then, nanoseconds.
    Running(i64),
    /// Since then, with so many computed tokens thrown away.
    Preempted(i64, u32),
}

/// A request that is not over.
#[derive(Debug, Clone, Default)]
struct Life {
    id: Box<str>,
    client: Option<Client>,
    kind: Option<Kind>,
    priority: Option<i32>,
    arrived_ns: Option<i64>,
    /// `None` = its first records are gone: what happened before those that are there is not known.
    queued_ns: Option<i64>,
    started_ns: Option<i64>,
    preempted_ns: Option<i64>,
    resumed_ns: Option<i64>,
    first_token_ns: Option<i64>,
    delay_before_first_token_ns: Option<u64>,
    prompt_tokens: Option<u32>,
    cached_tokens: Option<u32>,
    external_tokens: Option<u32>,
    place: Place,
    running: Sum,
    delay: Sum,
    preemptions: u64,
    recomputed: Sum,
}

/// A sum that is not known if one of its parts is not.
#[derive(Debug, Clone, Copy)]
struct Sum(Option<u64>);

impl Default for Sum {
    fn default() -> Self {
        Self(Some(0))
    }
}

impl Sum {
    fn add(&mut self, part: Option<u64>) {
        self.0 = self.0.zip(part).map(|(sum, part)| sum.saturating_add(part));
    }
}

/// What a front end said of a request.
#[derive(Debug, Clone)]
struct Client {
    id: Box<str>,
    index: u32,
    /// Requests that it stands for: two engines may have one of the same id each.
    requests: u32,
}

/// How a request ended.
#[derive(Debug, Clone)]
struct End {
    /// For the client.
    at_ns: i64,
    /// For the engine.
    in_engine_ns: i64,
    output_tokens: u32,
    prompt_tokens: u32,
    /// By vLLM's count.
    preemptions: Option<u64>,
    reason: String,
    is_abort: bool,
}

/// What waits for the outputs of a step: the record that says at what time a front end took them.
#[derive(Debug)]
struct Waiting {
    step: u64,
    client: u32,
    what: Awaited,
}

#[derive(Debug)]
enum Awaited {
    FirstToken { number: u64 },
    Finished { number: u64, life: Box<Life>, end: End },
}

/// What is known of one log.
#[derive(Debug, Default)]
struct OfLog {
    lives: HashMap<u64, Life>,
    /// Ids whose pieces are not all there: of requests, and of client requests with what they belong to.
    ids: HashMap<u64, (Id, Option<(u64, u32)>)>,
    /// Of the step whose outputs come next.
    waiting: Vec<Waiting>,
}

/// Reason by which vLLM calls the end of a request towards clients (`vllm/v1/request.py`, `RequestStatus.get_finished_reason`, and
/// `vllm/v1/engine/__init__.py`, `FinishReason`).
fn finish_reason(status: &str) -> String {
    match status {
        "FINISHED_STOPPED" => "stop".to_owned(),
        // A prompt that is too long is ignored, and vLLM calls that length.
        "FINISHED_LENGTH_CAPPED" | "FINISHED_IGNORED" => "length".to_owned(),
        "FINISHED_ABORTED" => "abort".to_owned(),
        other => other.strip_prefix("FINISHED_").unwrap_or(other).to_lowercase(),
    }
}

#[derive(Debug)]
pub(crate) struct Collector {
    logs: Vec<OfLog>,
    /// What front ends said of requests that have no row yet, by the hash of the engine's id.
    clients: HashMap<u64, Client>,
    /// Requests that a front end ended by a stop string, and when it last did.
    stopped: HashMap<u64, i64>,
    summary: Summary,
    samples: AllSamples,
}

/// What the summary's times are made of.
#[derive(Debug, Default)]
struct AllSamples {
    running_before_preemption: Samples,
    resume_delays: Samples,
    queue_times: Samples,
    ttft: Samples,
    tpot: Samples,
    total_times: Samples,
    latency: latency::Collector,
}

impl Collector {
    pub(crate) fn new(session: &Session) -> Self {
        Self {
            logs: session.logs.iter().map(|_| OfLog::default()).collect(),
            clients: HashMap::new(),
            stopped: HashMap::new(),
            summary: Summary::default(),
            samples: AllSamples::default(),
        }
    }

    pub(crate) fn see<E>(
        &mut self,
        context: &Context<'_>,
        event: &Event,
        row: &mut impl FnMut(Row<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let at_ns = event.start_ns;
        match &event.record.payload {
            Payload::RequestQueued(queued) => self.queued(context, event, queued),
            Payload::RequestText(text) => self.text(event.log, text),
            Payload::RequestAdmitted(admitted) => return self.admitted(context, event, admitted, row),
            Payload::RequestPreempted(preempted) => return self.preempted(context, event, preempted, row),
            Payload::RequestFirstToken(first) => {
                let of_log = &mut self.logs[event.log];
                let life = of_log.lives.entry(first.number).or_default();
                if life.first_token_ns.is_none() {
                    // What the engine says stands until the front end does.
                    life.first_token_ns = Some(at_ns);
                    life.delay_before_first_token_ns = life.delay.0;
                    let what = Awaited::FirstToken { number: first.number };
                    of_log.wait(event.record.step, first.client, what);
                    let request_id = of_log.lives.get(&first.number).map_or("", |life| &life.id);
                    let step = Some(event.record.step).filter(|step| *step != 0);
                    return row(Row::FirstToken(FirstToken { at_ns, request_id, step, log: event.log }));
                }
            }
            Payload::RequestFinished(finished) => return self.finished(context, event, finished, row),
            Payload::Outputs(outputs) => {
                let received_ns = context.steps.received(outputs.timestamp_bits);
                let (step, client) = (event.record.step, outputs.client);
                return self.outputs(context, event.log, (step, client), received_ns, row);
            }
            // The next step begins: outputs that did not come by now do not come.
            Payload::Schedule(_) => return self.give_up_waiting(context, event.log, row),
            Payload::ClientRequest(client) => {
                let id = Id::new(client.id_bytes);
                let said = Some((client.engine_id_hash, client.index));
                self.logs[event.log].ids.insert(client.number, (id, said));
            }
            Payload::RequestStopped(stopped) => {
                self.stopped.insert(stopped.engine_id_hash, at_ns);
            }
            _ => {}
        }
        Ok(())
    }

    fn queued(&mut self, context: &Context<'_>, event: &Event, queued: &RequestQueued) {
        let arrival = f64::from_bits(queued.arrival_bits);
        let log = &context.session.logs[event.log];
        let arrived_ns = context.session.nanoseconds_of_realtime(log, arrival);
        let of_log = &mut self.logs[event.log];
        of_log.ids.insert(queued.number, (Id::new(queued.id_bytes), None));
        let life = of_log.lives.entry(queued.number).or_default();
        life.kind = Some(Kind::of(queued.traits));
        life.priority = Some(queued.priority);
        // Nothing arrives before the session begins, or after it is queued: then that clock is not this machine's.
        let arrived_ns = arrived_ns.filter(|arrived_ns| *arrived_ns >= 0);
        life.arrived_ns = Some(arrived_ns.map_or(event.start_ns, |arrived_ns| arrived_ns.min(event.start_ns)));
        life.queued_ns = Some(event.start_ns);
        life.prompt_tokens = Some(queued.prompt_tokens);
    }

    fn text(&mut self, log: usize, text: &RequestText) {
        let of_log = &mut self.logs[log];
        let Some((id, _)) = of_log.ids.get_mut(&text.number) else { return };
        if !id.take(text) {
            return;
        }
        let Some((id, client)) = of_log.ids.remove(&text.number) else { return };
        let id = id.into_text();
        match client {
            Some((engine_id_hash, index)) => {
                let before = self.clients.get(&engine_id_hash).map_or(0, |client| client.requests);
                self.clients.insert(engine_id_hash, Client { id, index, requests: before + 1 });
            }
            None => {
                if let Some(life) = of_log.lives.get_mut(&text.number) {
                    life.id = id;
                }
            }
        }
    }

    fn admitted<E>(
        &mut self,
        context: &Context<'_>,
        event: &Event,
        admitted: &RequestAdmitted,
        row: &mut impl FnMut(Row<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let at_ns = event.start_ns;
        let life = self.logs[event.log].lives.entry(admitted.number).or_default();
        let what = match std::mem::replace(&mut life.place, Place::Running(at_ns)) {
            Place::Preempted(since_ns, thrown_away) => {
                let delay_ns = difference(Some(since_ns), Some(at_ns));
                life.delay.add(delay_ns);
                life.resumed_ns.get_or_insert(at_ns);
                life.recomputed.add(Some(u64::from(thrown_away.saturating_sub(admitted.computed_tokens))));
                if let Some(delay_ns) = delay_ns {
                    self.samples.resume_delays.push(delay_ns);
                }
                Happening::Resumed { cached_tokens: admitted.computed_tokens, delay_ns }
            }
            // A streaming session goes on with its next input. Nothing says since when it had been waiting for that.
            Place::Running(_) => {
                life.running.add(None);
                return Ok(());
            }
            // The first admission that is there, of a request whose first records are not: it may have been resumed.
            Place::Waiting if life.queued_ns.is_none() => return Ok(()),
            Place::Waiting => {
                life.started_ns = Some(at_ns);
                life.cached_tokens = Some(admitted.computed_tokens);
                life.external_tokens = Some(admitted.external_tokens).filter(|tokens| *tokens != u32::MAX);
                Happening::Started { prompt_tokens: life.prompt_tokens, cached_tokens: admitted.computed_tokens }
            }
        };
        row(Row::RequestEvent(happened(context, event, &life.id, what)))
    }

    fn preempted<E>(
        &mut self,
        context: &Context<'_>,
        event: &Event,
        preempted: &RequestPreempted,
        row: &mut impl FnMut(Row<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let at_ns = event.start_ns;
        let lives = &mut self.logs[event.log].lives;
        let life = lives.entry(preempted.number).or_default();
        let running_ns =
            match std::mem::replace(&mut life.place, Place::Preempted(at_ns, preempted.computed_tokens)) {
                Place::Running(since_ns) => difference(Some(since_ns), Some(at_ns)),
                Place::Waiting => None,
                // In between it was resumed, and the record of that is gone.
                Place::Preempted(..) => {
                    life.delay.add(None);
                    life.recomputed.add(None);
                    None
                }
            };
        life.running.add(running_ns);
        life.preempted_ns.get_or_insert(at_ns);
        life.preemptions += 1;
        let reason = context.session.logs[event.log].head.string(event.record.name).unwrap_or("");
        self.summary.preemptions += 1;
        *self.summary.preemption_reasons.entry(reason.to_owned()).or_default() += 1;
        if let Some(running_ns) = running_ns {
            self.samples.running_before_preemption.push(running_ns);
        }
        let beneficiary = if preempted.beneficiary == preempted.number {
            Beneficiary::Itself
        } else {
            let other = lives.get(&preempted.beneficiary).filter(|other| !other.id.is_empty());
            other.map_or(Beneficiary::Unknown, |other| Beneficiary::Other(&other.id))
        };
        let what = Happening::Preempted {
            reason,
            running_ns,
            computed_tokens: preempted.computed_tokens,
            output_tokens: preempted.output_tokens,
            blocks_freed: Some(preempted.blocks_freed).filter(|blocks| *blocks != u32::MAX),
            beneficiary,
        };
        let id = lives.get(&preempted.number).map_or("", |life| &life.id);
        row(Row::RequestEvent(happened(context, event, id, what)))
    }

    fn finished<E>(
        &mut self,
        context: &Context<'_>,
        event: &Event,
        finished: &RequestFinished,
        row: &mut impl FnMut(Row<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let at_ns = event.start_ns;
        let of_log = &mut self.logs[event.log];
        of_log.ids.remove(&finished.number);
        let mut life = of_log.lives.remove(&finished.number).unwrap_or_default();
        match std::mem::take(&mut life.place) {
            Place::Running(since_ns) => life.running.add(difference(Some(since_ns), Some(at_ns))),
            Place::Preempted(since_ns, thrown_away) => {
                life.delay.add(difference(Some(since_ns), Some(at_ns)));
                life.recomputed.add(Some(u64::from(thrown_away)));
            }
            Place::Waiting => {}
        }
        let status = context.session.logs[event.log].head.string(event.record.name).unwrap_or("");
        let mut reason = finish_reason(status);
        let hash = xxh3_64(life.id.as_bytes());
        // The engine learns of a stop string by an abort, after the client has had its last token.
        let stopped_ns = self.stopped.remove(&hash).filter(|stopped_ns| {
            // An older request of the same id may have been stopped, and have ended by itself before its abort came.
            Some(*stopped_ns) >= life.queued_ns
        });
        if stopped_ns.is_some() {
            "stop".clone_into(&mut reason);
        }
        life.client = self.client_of(&life);
        let running_ns = life.started_ns.and(life.running.0);
        let output_tokens = finished.output_tokens;
        let is_abort = status == "FINISHED_ABORTED" && stopped_ns.is_none();
        let what = if is_abort {
            Happening::Aborted { reason: &reason, running_ns, output_tokens }
        } else {
            Happening::Finished { reason: &reason, running_ns, output_tokens }
        };
        row(Row::RequestEvent(happened(context, event, &life.id, what)))?;
        let end = End {
            at_ns: stopped_ns.unwrap_or(at_ns),
            in_engine_ns: at_ns,
            output_tokens,
            prompt_tokens: finished.prompt_tokens,
            preemptions: Some(finished.preemptions).filter(|count| *count != u32::MAX).map(u64::from),
            reason,
            is_abort,
        };
        let of_log = &mut self.logs[event.log];
        let number = finished.number;
        let awaits_first_token = of_log.waiting.iter().any(|waiting| waiting.is_of(number));
        if event.record.step != 0 && stopped_ns.is_none() || awaits_first_token {
            // What an output ended, or began, waits for it.
            let what = Awaited::Finished { number, life: Box::new(life), end };
            of_log.waiting.push(Waiting { step: event.record.step, client: finished.client, what });
            return Ok(());
        }
        self.hand_out(context, event.log, &life, Some(&end), row)
    }

    /// What a front end called a request that gets its row now.
    fn client_of(&mut self, life: &Life) -> Option<Client> {
        let hash = xxh3_64(life.id.as_bytes());
        let client = self.clients.get_mut(&hash)?;
        if client.requests > 1 {
            client.requests -= 1;
            return Some(client.clone());
        }
        self.clients.remove(&hash)
    }

    /// The outputs of a step to one client: who waited for them knows now when its front end took them.
    fn outputs<E>(
        &mut self,
        context: &Context<'_>,
        log: usize,
        (step, client): (u64, u32),
        received_ns: Option<i64>,
        row: &mut impl FnMut(Row<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut at = 0;
        while let Some(waiting) = self.logs[log].waiting.get(at) {
            let is_this = waiting.step == step && waiting.client == client;
            // Outputs of an older step do not come any more; those of this one to other clients do.
            if !is_this && waiting.step >= step {
                at += 1;
                continue;
            }
            let waiting = self.logs[log].waiting.remove(at);
            self.wait_is_over(context, log, waiting.what, received_ns.filter(|_| is_this), row)?;
        }
        Ok(())
    }

    fn wait_is_over<E>(
        &mut self,
        context: &Context<'_>,
        log: usize,
        what: Awaited,
        received_ns: Option<i64>,
        row: &mut impl FnMut(Row<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        match what {
            Awaited::FirstToken { number } => {
                let Some(received_ns) = received_ns else { return Ok(()) };
                let of_log = &mut self.logs[log];
                let over = of_log.waiting.iter_mut().find_map(|waiting| match &mut waiting.what {
                    Awaited::Finished { number: over, life, .. } if *over == number => Some(&mut **life),
                    _ => None,
                });
                if let Some(life) = over.or_else(|| of_log.lives.get_mut(&number)) {
                    life.first_token_ns = Some(received_ns);
                }
                Ok(())
            }
            Awaited::Finished { life, mut end, .. } => {
                end.at_ns = received_ns.unwrap_or(end.at_ns);
                self.hand_out(context, log, &life, Some(&end), row)
            }
        }
    }

    /// What still waits gets what the engine said.
    fn give_up_waiting<E>(
        &mut self,
        context: &Context<'_>,
        log: usize,
        row: &mut impl FnMut(Row<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        for waiting in std::mem::take(&mut self.logs[log].waiting) {
            self.wait_is_over(context, log, waiting.what, None, row)?;
        }
        Ok(())
    }

    /// Hands out the row of a request that is over, or that is not over at the end.
    fn hand_out<E>(
        &mut self,
        context: &Context<'_>,
        log: usize,
        life: &Life,
        end: Option<&End>,
        row: &mut impl FnMut(Row<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let is_waiting = matches!(life.place, Place::Preempted(..));
        // Of a request whose first records are gone, preemptions are known if vLLM counted those that are there.
        let counted = end.and_then(|end| end.preemptions);
        let recomputed = match life.place {
            // It is not over, and its work is thrown away for now.
            Place::Preempted(_, thrown_away) => life.recomputed.0.map(|sum| sum + u64::from(thrown_away)),
            _ => life.recomputed.0,
        };
        let is_whole = life.queued_ns.is_some() || counted == Some(life.preemptions);
        let found = Lifecycle {
            request_id: &life.id,
            client_request_id: life.client.as_ref().map_or(&life.id, |client| &client.id),
            sample_index: life.client.as_ref().map(|client| client.index),
            kind: life.kind,
            priority: life.priority,
            arrived_ns: life.arrived_ns,
            queued_ns: life.queued_ns,
            started_ns: life.started_ns,
            preempted_ns: life.preempted_ns.filter(|_| is_whole),
            resumed_ns: life.resumed_ns.filter(|_| is_whole),
            first_token_ns: life.first_token_ns,
            finished_ns: end.map(|end| end.at_ns),
            left_engine_ns: end.map(|end| end.in_engine_ns),
            preemption_delay_ns: life.delay.0.filter(|_| is_whole && !is_waiting),
            delay_before_first_token_ns: life.delay_before_first_token_ns,
            prompt_tokens: end.map(|end| end.prompt_tokens).or(life.prompt_tokens),
            cached_tokens: life.cached_tokens,
            external_tokens: life.external_tokens,
            output_tokens: end.map(|end| end.output_tokens),
            preemptions: if is_whole { Some(life.preemptions) } else { counted },
            recomputed_tokens: recomputed.filter(|_| is_whole),
            finish_reason: end.map(|end| end.reason.as_str()),
            process: context.session.logs[log].process(Component::EngineCore),
            log,
        };
        let summary = &mut self.summary;
        summary.total_requests += 1;
        match end {
            Some(end) => {
                *summary.finished.entry(end.reason.clone()).or_default() += 1;
                summary.aborted_requests += u64::from(end.is_abort);
                summary.output_tokens += u64::from(end.output_tokens);
            }
            None => summary.open_requests += 1,
        }
        summary.preempted_requests += u64::from(life.preemptions > 0);
        summary.recomputed_tokens = summary.recomputed_tokens.saturating_add(found.recomputed_tokens.unwrap_or(0));
        summary.prompt_tokens += u64::from(found.prompt_tokens.unwrap_or(0));
        summary.cached_tokens += u64::from(life.cached_tokens.unwrap_or(0));
        for (samples, value) in [
            (&mut self.samples.queue_times, found.queue_time_ns()),
            (&mut self.samples.ttft, found.ttft_ns()),
            (&mut self.samples.tpot, found.tpot_ns()),
            (&mut self.samples.total_times, found.total_time_ns()),
        ] {
            if let Some(value) = value {
                samples.push(value);
            }
        }
        self.samples.latency.see(&found);
        row(Row::Lifecycle(found))
    }

    /// Hands out the rows of requests that are not over, in the order in which they were queued.
    pub(crate) fn finish<E>(
        mut self,
        context: &Context<'_>,
        row: &mut impl FnMut(Row<'_>) -> Result<(), E>,
    ) -> Result<Summary, E> {
        for log in 0..self.logs.len() {
            self.give_up_waiting(context, log, row)?;
        }
        let mut open: Vec<(usize, u64, Life)> = Vec::new();
        for (log, of_log) in self.logs.iter_mut().enumerate() {
            open.extend(of_log.lives.drain().map(|(number, life)| (log, number, life)));
        }
        open.sort_by_key(|(log, number, life)| (life.queued_ns, *log, *number));
        for (log, _, mut life) in open {
            life.client = self.client_of(&life);
            self.hand_out(context, log, &life, None, row)?;
        }
        let (mut summary, mut samples) = (self.summary, self.samples);
        let seconds = |nanoseconds: u64| nanoseconds as f64 / 1e9;
        summary.running_before_preemption = samples.running_before_preemption.distribution(seconds);
        summary.resume_delays = samples.resume_delays.distribution(seconds);
        summary.queue_time = samples.queue_times.distribution(seconds);
        summary.ttft = samples.ttft.distribution(seconds);
        summary.tpot = samples.tpot.distribution(milliseconds);
        summary.total_time = samples.total_times.distribution(seconds);
        summary.latency = samples.latency.finish();
        Ok(summary)
    }
}

impl OfLog {
    /// Something waits for the outputs of a step to a client; nothing waits for those of no step.
    fn wait(&mut self, step: u64, client: u32, what: Awaited) {
        if step != 0 {
            self.waiting.push(Waiting { step, client, what });
        }
    }
}

impl Waiting {
    /// Whether the first token of this request is waited for.
    fn is_of(&self, request: u64) -> bool {
        matches!(self.what, Awaited::FirstToken { number } if number == request)
    }
}

fn happened<'a>(
    context: &Context<'a>,
    event: &Event,
    request_id: &'a str,
    what: Happening<'a>,
) -> RequestEvent<'a> {
    RequestEvent {
        at_ns: event.start_ns,
        request_id,
        what,
        step: Some(event.record.step).filter(|step| *step != 0),
        process: context.session.logs[event.log].process(Component::EngineCore),
        log: event.log,
    }
}
