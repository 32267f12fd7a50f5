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

use crate::statistics::Samples;
use crate::{Context, Row};

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
    /// Sum of the times between being preempted and being resumed, nanoseconds; `None` while it waits.
    pub preemption_delay_ns: Option<u64>,
    /// Tokens of its prompt.
    pub prompt_tokens: Option<u32>,
    /// Those that a cache had when it was started, here or elsewhere.
    pub cached_tokens: Option<u32>,
    /// Those of them that a KV connector brought.
    pub external_tokens: Option<u32>,
    /// Tokens generated; of a request that is not over, not known.
    pub output_tokens: Option<u32>,
    /// How often it was preempted.
    pub preemptions: u64,
    /// Computed tokens that preemptions threw away and no cache gave back.
    pub recomputed_tokens: u64,
    /// Why it ended, in vLLM's words for clients (`stop`, `length`, `abort`, …).
    pub finish_reason: Option<&'a str>,
    /// The engine: `engine_core-0`.
    pub process: &'a str,
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

fn difference(from: Option<i64>, to: Option<i64>) -> Option<u64> {
    // Two clocks meet here; what they disagree about is no time.
    Some(u64::try_from(to?.saturating_sub(from?)).unwrap_or(0))
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
        delay_ns: u64,
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
}

/// What is said of all requests.
#[derive(Debug, Clone, Default)]
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
    /// Running time before each preemption.
    pub running_before_preemption: Samples,
    /// Time from each preemption to its end.
    pub resume_delays: Samples,
    /// Of requests that were started.
    pub queue_times: Samples,
    /// Of requests with a first token.
    pub ttft: Samples,
    /// Of requests that are over and have two tokens at least.
    pub tpot: Samples,
    /// Of requests that are over, from arrival.
    pub total_times: Samples,
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
    queued_ns: Option<i64>,
    started_ns: Option<i64>,
    preempted_ns: Option<i64>,
    resumed_ns: Option<i64>,
    first_token_ns: Option<i64>,
    /// Whether that is the engine's time, and the front end's may follow.
    awaits_first_token: bool,
    prompt_tokens: Option<u32>,
    cached_tokens: Option<u32>,
    external_tokens: Option<u32>,
    place: Place,
    running_ns: u64,
    delay_ns: u64,
    preemptions: u64,
    recomputed_tokens: u64,
}

/// What a front end said of a request.
#[derive(Debug, Clone)]
struct Client {
    id: Box<str>,
    index: u32,
}

/// How a request ended.
#[derive(Debug, Clone)]
struct End {
    at_ns: i64,
    output_tokens: u32,
    prompt_tokens: u32,
    reason: String,
}

/// What waits for the outputs of a step: the record that says at what time a front end took them.
#[derive(Debug)]
enum Waiting {
    FirstToken { number: u64, client: u32 },
    Finished { life: Box<Life>, end: End, client: u32 },
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
    /// Requests that a front end ended by a stop string, and when.
    stopped: HashMap<u64, i64>,
    summary: Summary,
}

impl Collector {
    pub(crate) fn new(session: &Session) -> Self {
        Self {
            logs: session.logs.iter().map(|_| OfLog::default()).collect(),
            clients: HashMap::new(),
            stopped: HashMap::new(),
            summary: Summary::default(),
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
                    life.awaits_first_token = true;
                    let (number, client) = (first.number, first.client);
                    of_log.waiting.push(Waiting::FirstToken { number, client });
                }
            }
            Payload::RequestFinished(finished) => return self.finished(context, event, finished, row),
            Payload::Outputs(outputs) => {
                let received_ns = context.steps.received(outputs.timestamp_bits);
                return self.outputs(context, event.log, outputs.client, received_ns, row);
            }
            Payload::Schedule(_) => return self.give_up_waiting(context, event.log, row),
            Payload::ClientRequest(client) => {
                let id = Id::new(client.id_bytes);
                let said = Some((client.engine_id_hash, client.index));
                self.logs[event.log].ids.insert(client.number, (id, said));
            }
            Payload::RequestStopped(stopped) => {
                self.stopped.entry(stopped.engine_id_hash).or_insert(at_ns);
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
        life.arrived_ns = arrived_ns.or(Some(event.start_ns));
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
                self.clients.insert(engine_id_hash, Client { id, index });
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
                let delay_ns = difference(Some(since_ns), Some(at_ns)).unwrap_or(0);
                life.delay_ns = life.delay_ns.saturating_add(delay_ns);
                life.resumed_ns.get_or_insert(at_ns);
                life.recomputed_tokens += u64::from(thrown_away.saturating_sub(admitted.computed_tokens));
                self.summary.resume_delays.push(delay_ns);
                Happening::Resumed { cached_tokens: admitted.computed_tokens, delay_ns }
            }
            // A streaming session goes on with its next input.
            Place::Running(since_ns) => {
                life.running_ns =
                    life.running_ns.saturating_add(difference(Some(since_ns), Some(at_ns)).unwrap_or(0));
                return Ok(());
            }
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
                Place::Waiting | Place::Preempted(..) => None,
            };
        life.running_ns = life.running_ns.saturating_add(running_ns.unwrap_or(0));
        life.preempted_ns.get_or_insert(at_ns);
        life.preemptions += 1;
        let reason = context.session.logs[event.log].head.string(event.record.name).unwrap_or("");
        self.summary.preemptions += 1;
        *self.summary.preemption_reasons.entry(reason.to_owned()).or_default() += 1;
        if let Some(running_ns) = running_ns {
            self.summary.running_before_preemption.push(running_ns);
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
            Place::Running(since_ns) => {
                life.running_ns =
                    life.running_ns.saturating_add(difference(Some(since_ns), Some(at_ns)).unwrap_or(0));
            }
            Place::Preempted(since_ns, thrown_away) => {
                life.delay_ns = life.delay_ns.saturating_add(difference(Some(since_ns), Some(at_ns)).unwrap_or(0));
                life.recomputed_tokens += u64::from(thrown_away);
            }
            Place::Waiting => {}
        }
        let status = context.session.logs[event.log].head.string(event.record.name).unwrap_or("");
        let mut reason = finish_reason(status);
        let mut end_ns = at_ns;
        let hash = xxh3_64(life.id.as_bytes());
        if let Some(stopped_ns) = self.stopped.remove(&hash) {
            // The engine learns of a stop string by an abort, after the client has had its last token.
            "stop".clone_into(&mut reason);
            end_ns = stopped_ns;
        }
        life.client = self.clients.remove(&hash);
        let running_ns = life.started_ns.map(|_| life.running_ns);
        let output_tokens = finished.output_tokens;
        let what = if status == "FINISHED_ABORTED" && reason != "stop" {
            Happening::Aborted { reason: &reason, running_ns, output_tokens }
        } else {
            Happening::Finished { reason: &reason, running_ns, output_tokens }
        };
        row(Row::RequestEvent(happened(context, event, &life.id, what)))?;
        // What an output ended, or began, waits for it.
        let waits = event.record.step != 0 && end_ns == at_ns || life.awaits_first_token;
        let end = End { at_ns: end_ns, output_tokens, prompt_tokens: finished.prompt_tokens, reason };
        if waits {
            let client = finished.client;
            self.logs[event.log].waiting.push(Waiting::Finished { life: Box::new(life), end, client });
            return Ok(());
        }
        self.hand_out(context, event.log, &life, Some(&end), row)
    }

    /// The outputs of a step to one client: who waited for them knows now when its front end took them.
    fn outputs<E>(
        &mut self,
        context: &Context<'_>,
        log: usize,
        to: u32,
        received_ns: Option<i64>,
        row: &mut impl FnMut(Row<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let waiting = std::mem::take(&mut self.logs[log].waiting);
        let (now, later): (Vec<_>, Vec<_>) = waiting.into_iter().partition(|waiting| match waiting {
            Waiting::FirstToken { client, .. } | Waiting::Finished { client, .. } => *client == to,
        });
        self.logs[log].waiting = later;
        for waiting in now {
            match waiting {
                Waiting::FirstToken { number, .. } => {
                    if let Some(life) = self.logs[log].lives.get_mut(&number) {
                        life.take_first_token(received_ns);
                    }
                }
                Waiting::Finished { mut life, mut end, .. } => {
                    life.take_first_token(received_ns);
                    end.at_ns = received_ns.unwrap_or(end.at_ns);
                    self.hand_out(context, log, &life, Some(&end), row)?;
                }
            }
        }
        Ok(())
    }

    /// The next step begins: outputs that did not come by now do not come.
    fn give_up_waiting<E>(
        &mut self,
        context: &Context<'_>,
        log: usize,
        row: &mut impl FnMut(Row<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        for waiting in std::mem::take(&mut self.logs[log].waiting) {
            if let Waiting::Finished { life, end, .. } = waiting {
                self.hand_out(context, log, &life, Some(&end), row)?;
            }
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
        let found = Lifecycle {
            request_id: &life.id,
            client_request_id: life.client.as_ref().map_or(&life.id, |client| &client.id),
            sample_index: life.client.as_ref().map(|client| client.index),
            kind: life.kind,
            priority: life.priority,
            arrived_ns: life.arrived_ns,
            queued_ns: life.queued_ns,
            started_ns: life.started_ns,
            preempted_ns: life.preempted_ns,
            resumed_ns: life.resumed_ns,
            first_token_ns: life.first_token_ns,
            finished_ns: end.map(|end| end.at_ns),
            preemption_delay_ns: Some(life.delay_ns).filter(|_| !is_waiting),
            prompt_tokens: end.map(|end| end.prompt_tokens).or(life.prompt_tokens),
            cached_tokens: life.cached_tokens,
            external_tokens: life.external_tokens,
            output_tokens: end.map(|end| end.output_tokens),
            preemptions: life.preemptions,
            recomputed_tokens: life.recomputed_tokens,
            finish_reason: end.map(|end| end.reason.as_str()),
            process: context.session.logs[log].process(Component::EngineCore),
        };
        let summary = &mut self.summary;
        summary.total_requests += 1;
        match end {
            Some(end) => {
                *summary.finished.entry(end.reason.clone()).or_default() += 1;
                summary.output_tokens += u64::from(end.output_tokens);
            }
            None => summary.open_requests += 1,
        }
        summary.preempted_requests += u64::from(life.preemptions > 0);
        summary.recomputed_tokens += life.recomputed_tokens;
        summary.prompt_tokens += u64::from(found.prompt_tokens.unwrap_or(0));
        summary.cached_tokens += u64::from(life.cached_tokens.unwrap_or(0));
        for (samples, value) in [
            (&mut summary.queue_times, found.queue_time_ns()),
            (&mut summary.ttft, found.ttft_ns()),
            (&mut summary.tpot, found.tpot_ns()),
            (&mut summary.total_times, found.total_time_ns()),
        ] {
            if let Some(value) = value {
                samples.push(value);
            }
        }
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
            if let Place::Preempted(_, thrown_away) = life.place {
                life.recomputed_tokens += u64::from(thrown_away);
            }
            life.client = self.clients.remove(&xxh3_64(life.id.as_bytes()));
            self.hand_out(context, log, &life, None, row)?;
        }
        Ok(self.summary)
    }
}

impl Life {
    /// The front end took the outputs that its first token came with, if it waits for that.
    fn take_first_token(&mut self, received_ns: Option<i64>) {
        if std::mem::take(&mut self.awaits_first_token) {
            self.first_token_ns = received_ns.or(self.first_token_ns);
        }
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
    }
}
