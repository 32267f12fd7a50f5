//! Why a request took longer than others.
//!
//! Its time is cut into parts: on its way to the scheduler, queued, prefill, preempted, decode. Usual is what each part takes for the
//! median request of the session. What requests of its own size take more than that is explained by its prompt or its output; what
//! it took more than those, by the part itself. As with steps, all verdicts together explain no more than the excess.

use profilemate_session::{Error, Session};

use super::steps::{EXPLAINED_SHARE, Explainer, Explanation, LEAST_SHARE, Status};
use super::usual::{ENOUGH, LEAST_MS, Spread, size};
use crate::requests::{Beneficiary, Happening, Kind, Lifecycle, RequestEvent};
use crate::{Row, analyze};

/// Requests that are explained at most: ids may be used again.
const MOST_REQUESTS: usize = 16;
/// Things that are kept of what happened to them, together.
const MOST_EVENTS: usize = 10_000;
/// Slow steps that are named for one request.
const MOST_STEPS: usize = 5;

/// A part of a request's time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequestPart {
    /// From its arrival in the front end until it is in the scheduler's queue.
    Arriving,
    /// Until the scheduler puts it into a batch.
    Queued,
    /// Until its first token, or its end where it makes none; without being preempted.
    Prefill,
    /// Preempted, and not resumed yet.
    Preempted,
    /// From its first token to its end; without being preempted.
    Decode,
}

impl RequestPart {
    /// Every part, in order.
    pub const ALL: [Self; 5] = [Self::Arriving, Self::Queued, Self::Prefill, Self::Preempted, Self::Decode];

    /// Its name.
    pub fn text(self) -> &'static str {
        match self {
            Self::Arriving => "arriving",
            Self::Queued => "queued",
            Self::Prefill => "prefill",
            Self::Preempted => "preempted",
            Self::Decode => "decode",
        }
    }
}

/// Why a request took longer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RequestVerdict {
    /// It had to wait on its way to the scheduler.
    SlowArrival,
    /// It waited for the scheduler.
    Queued,
    /// Its prompt was longer than usual: tokens to compute, and the median.
    LongPrompt(u32, f64),
    /// Its prefill took longer than that of such prompts.
    SlowPrefill,
    /// It was preempted, so often.
    Preempted(u64),
    /// It made more tokens than usual: tokens, and the median.
    LongOutput(u32, f64),
    /// Each of its tokens took longer than usual: milliseconds, and the median.
    SlowDecode(f64, f64),
    /// What the others leave.
    Other,
    /// Most of it is not explained.
    Unknown,
}

impl RequestVerdict {
    /// Its name.
    pub fn text(&self) -> &'static str {
        match self {
            Self::SlowArrival => "slow_arrival",
            Self::Queued => "queued",
            Self::LongPrompt(..) => "long_prompt",
            Self::SlowPrefill => "slow_prefill",
            Self::Preempted(_) => "preempted",
            Self::LongOutput(..) => "long_output",
            Self::SlowDecode(..) => "slow_decode",
            Self::Other => "other",
            Self::Unknown => "unknown",
        }
    }
}

/// A verdict and what it explains.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RequestCause {
    /// Why.
    pub verdict: RequestVerdict,
    /// How much of the excess that is, milliseconds.
    pub explains_ms: f64,
}

/// Something that happened to a request.
#[derive(Debug, Clone, PartialEq)]
pub struct Moment {
    /// When: nanoseconds since the session's start.
    pub at_ns: i64,
    /// Engine step; `None` = none.
    pub step: Option<u64>,
    /// What.
    pub what: What,
}

/// What happened.
#[derive(Debug, Clone, PartialEq)]
pub enum What {
    /// The front end got it.
    Arrived,
    /// It entered the scheduler.
    Queued,
    /// It was put into a batch.
    Started {
        /// Tokens of its prompt that a cache had.
        cached_tokens: u32,
    },
    /// It lost its blocks.
    Preempted {
        /// Why; empty = not known.
        reason: String,
        /// Tokens that were computed.
        computed_tokens: u32,
        /// For whom; empty = not known.
        beneficiary: String,
    },
    /// It was put into a batch again.
    Resumed {
        /// Tokens that a cache still had.
        cached_tokens: u32,
        /// Since it was preempted, milliseconds.
        delay_ms: Option<f64>,
    },
    /// The front end took its first token.
    FirstToken,
    /// It was over.
    Finished {
        /// Why.
        reason: String,
    },
}

impl What {
    fn order(&self) -> u8 {
        match self {
            Self::Arrived => 0,
            Self::Queued => 1,
            Self::Started { .. } => 2,
            Self::FirstToken | Self::Preempted { .. } | Self::Resumed { .. } => 3,
            Self::Finished { .. } => 4,
        }
    }

    /// Its name.
    pub fn text(&self) -> &'static str {
        match self {
            Self::Arrived => "arrived",
            Self::Queued => "queued",
            Self::Started { .. } => "started",
            Self::Preempted { .. } => "preempted",
            Self::Resumed { .. } => "resumed",
            Self::FirstToken => "first_token",
            Self::Finished { .. } => "finished",
        }
    }
}

/// A part of a request's time against what is usual.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Compared {
    /// Which.
    pub part: RequestPart,
    /// How long, milliseconds.
    pub ms: f64,
    /// How long for the median request, milliseconds.
    pub usual_ms: Option<f64>,
    /// How long for requests of its own size, milliseconds.
    pub expected_ms: Option<f64>,
}

/// What is said of one request.
#[derive(Debug, Clone)]
pub struct RequestExplanation<'a> {
    /// The engine's id.
    pub request_id: String,
    /// What the client called it.
    pub client_request_id: String,
    /// The engine.
    pub process: String,
    /// Tokens of its prompt.
    pub prompt_tokens: Option<u32>,
    /// Those that a cache had.
    pub cached_tokens: Option<u32>,
    /// Tokens that it made.
    pub output_tokens: Option<u32>,
    /// From arrival to end, milliseconds; `None` = it was not over, or its beginning is not known.
    pub ms: Option<f64>,
    /// Whether that is slow.
    pub status: Status,
    /// The time of the median request, part by part, milliseconds.
    pub usual_ms: Option<f64>,
    /// Up to which time a request is as usual, milliseconds.
    pub usual_up_to_ms: Option<f64>,
    /// How much longer it took, milliseconds.
    pub excess_ms: f64,
    /// Requests that say what is usual.
    pub compared_with: usize,
    /// Why it took longer; together they explain no more than the excess.
    pub causes: Vec<RequestCause>,
    /// What happened, in order.
    pub timeline: Vec<Moment>,
    /// Its parts, in order.
    pub parts: Vec<Compared>,
    /// Steps while it was running, those of them that were slow, and how much longer those took together, milliseconds.
    pub steps: (usize, usize, f64),
    /// The slowest of them.
    pub slow_steps: Vec<Explanation<'a>>,
}

/// What was found of requests.
#[derive(Debug)]
pub struct Found<'a> {
    /// Whether the lives of requests were recorded.
    pub is_recorded: bool,
    /// Requests in the session.
    pub total: u64,
    /// Ids of the first and of the last that was over.
    pub examples: Option<(String, String)>,
    /// Requests that were asked for.
    pub matching: u64,
    /// Those, but no more than a few.
    pub requests: Vec<RequestExplanation<'a>>,
}

/// A request that was asked for.
#[derive(Debug)]
struct Life {
    request_id: String,
    client_request_id: String,
    process: String,
    kind: Option<Kind>,
    arrived_ns: Option<i64>,
    queued_ns: Option<i64>,
    started_ns: Option<i64>,
    first_token_ns: Option<i64>,
    finished_ns: Option<i64>,
    prompt_tokens: Option<u32>,
    cached_tokens: Option<u32>,
    output_tokens: Option<u32>,
    preemptions: Option<u64>,
    finish_reason: Option<String>,
}

impl Life {
    fn of(life: &Lifecycle<'_>) -> Self {
        Self {
            request_id: life.request_id.to_owned(),
            client_request_id: life.client_request_id.to_owned(),
            process: life.process.to_owned(),
            kind: life.kind,
            arrived_ns: life.arrived_ns,
            queued_ns: life.queued_ns,
            started_ns: life.started_ns,
            first_token_ns: life.first_token_ns,
            finished_ns: life.finished_ns,
            prompt_tokens: life.prompt_tokens,
            cached_tokens: life.cached_tokens,
            output_tokens: life.output_tokens,
            preemptions: life.preemptions,
            finish_reason: life.finish_reason.map(str::to_owned),
        }
    }
}

/// Numbers of one request: milliseconds, and what its size is.
#[derive(Debug, Clone, Copy)]
struct Numbers {
    kind: Option<Kind>,
    total: Option<f32>,
    parts: [Option<f32>; 5],
    /// Tokens of its prompt that were to be computed.
    prompt: Option<u32>,
    /// Tokens after the first.
    gaps: Option<u32>,
}

/// When a request was preempted and when it went on, or was over.
type Delays = [(i64, i64)];

fn ms(from: Option<i64>, to: Option<i64>) -> Option<f64> {
    let ns = to?.checked_sub(from?)?;
    (ns >= 0).then(|| ns as f64 / 1e6)
}

/// Milliseconds of the delays between two moments.
fn delayed(delays: &Delays, from: Option<i64>, to: Option<i64>) -> f64 {
    let (Some(from), Some(to)) = (from, to) else { return 0.0 };
    let ns = delays.iter().fold(0_i64, |sum, (start, end)| {
        sum.saturating_add(end.min(&to).saturating_sub(*start.max(&from)).max(0))
    });
    ns as f64 / 1e6
}

#[expect(clippy::cast_possible_truncation, reason = "seven digits are enough")]
fn short(value: f64) -> f32 {
    value as f32
}

impl Numbers {
    fn of(life: &Life, delays: &Delays, total_delay_ms: Option<f64>) -> Self {
        let prefilled_ns = life.first_token_ns.or(life.finished_ns.filter(|_| life.kind == Some(Kind::Pooling)));
        let without = |from, to| Some((ms(from, to)? - delayed(delays, from, to)).max(0.0));
        let decode =
            if life.first_token_ns.is_some() { without(life.first_token_ns, life.finished_ns) } else { None };
        let parts = [
            ms(life.arrived_ns, life.queued_ns),
            ms(life.queued_ns, life.started_ns),
            without(life.started_ns, prefilled_ns),
            total_delay_ms,
            decode,
        ];
        Self {
            kind: life.kind,
            total: ms(life.arrived_ns, life.finished_ns).map(short),
            parts: parts.map(|part| part.map(short)),
            prompt: life.prompt_tokens.map(|tokens| tokens.saturating_sub(life.cached_tokens.unwrap_or(0))),
            gaps: life.output_tokens.map(|tokens| tokens.saturating_sub(1)),
        }
    }

    fn part(&self, part: RequestPart) -> Option<f64> {
        self.parts[part as usize].map(f64::from)
    }

    /// Milliseconds for each token after the first.
    fn per_token(&self) -> Option<f64> {
        let gaps = self.gaps.filter(|gaps| *gaps > 0)?;
        Some(self.part(RequestPart::Decode)? / f64::from(gaps))
    }
}

/// Finds the requests whose id `is_wanted`, and says why they took as long as they did.
///
/// # Errors
/// When a segment cannot be read.
pub fn find<'a>(
    session: &Session,
    explainer: &'a Explainer<'_>,
    is_wanted: impl Fn(&str) -> bool,
) -> Result<Found<'a>, Error> {
    let mut lives: Vec<Life> = Vec::new();
    let mut events: Vec<(String, String, Moment)> = Vec::new();
    let mut all: Vec<Numbers> = Vec::new();
    let (mut total, mut matching) = (0, 0);
    let mut examples: Option<(String, String)> = None;
    let answers = analyze::<Error>(session, |row| {
        match row {
            Row::RequestEvent(event) if events.len() < MOST_EVENTS && is_wanted(event.request_id) => {
                let moment = moment(&event);
                events.push((event.request_id.to_owned(), event.process.to_owned(), moment));
            }
            Row::Lifecycle(life) => {
                total += 1;
                let delay_ms = life.preemption_delay_ns.map(|ns| ns as f64 / 1e6);
                // Whose prefill was interrupted says nothing about prefills.
                let whole =
                    life.preempted_ns.is_none_or(|at| life.first_token_ns.is_some_and(|first| first <= at));
                if life.finish_reason.is_some() && whole {
                    all.push(numbers(&life, delay_ms));
                }
                match &mut examples {
                    Some((_, last)) if life.finish_reason.is_some() => life.request_id.clone_into(last),
                    None => examples = Some((life.request_id.to_owned(), life.request_id.to_owned())),
                    Some(_) => {}
                }
                if is_wanted(life.request_id) || is_wanted(life.client_request_id) {
                    matching += 1;
                    if lives.len() < MOST_REQUESTS {
                        lives.push(Life::of(&life));
                    }
                }
            }
            _ => {}
        }
        Ok(())
    })?;
    // A client's id was not known to be one when things happened: the engine's ids are now.
    if lives.iter().any(|life| !is_wanted(&life.request_id)) {
        events.clear();
        analyze::<Error>(session, |row| {
            if let Row::RequestEvent(event) = row
                && events.len() < MOST_EVENTS
                && lives.iter().any(|life| life.request_id == event.request_id && life.process == event.process)
            {
                events.push((event.request_id.to_owned(), event.process.to_owned(), moment(&event)));
            }
            Ok(())
        })?;
    }
    let requests = lives.iter().map(|life| explain(life, &events, &all, explainer)).collect();
    Ok(Found { is_recorded: answers.requests.is_some(), total, examples, matching, requests })
}

fn numbers(life: &Lifecycle<'_>, delay_ms: Option<f64>) -> Numbers {
    let after_first = ms(life.first_token_ns, life.finished_ns).zip(delay_ms);
    let prefilled_ns = life.first_token_ns.or(life.finished_ns.filter(|_| life.kind == Some(Kind::Pooling)));
    let parts = [
        ms(life.arrived_ns, life.queued_ns),
        ms(life.queued_ns, life.started_ns),
        ms(life.started_ns, prefilled_ns),
        delay_ms,
        after_first.map(|(decode, delay)| (decode - delay).max(0.0)),
    ];
    Numbers {
        kind: life.kind,
        total: ms(life.arrived_ns, life.finished_ns).map(short),
        parts: parts.map(|part| part.map(short)),
        prompt: life.prompt_tokens.map(|tokens| tokens.saturating_sub(life.cached_tokens.unwrap_or(0))),
        gaps: life.output_tokens.map(|tokens| tokens.saturating_sub(1)),
    }
}

fn moment(event: &RequestEvent<'_>) -> Moment {
    let what = match event.what {
        Happening::Started { cached_tokens, .. } => What::Started { cached_tokens },
        Happening::Preempted { reason, computed_tokens, beneficiary, .. } => What::Preempted {
            reason: reason.to_owned(),
            computed_tokens,
            beneficiary: match beneficiary {
                Beneficiary::Unknown => String::new(),
                Beneficiary::Itself => "itself".to_owned(),
                Beneficiary::Other(id) => id.to_owned(),
            },
        },
        Happening::Resumed { cached_tokens, delay_ns } => {
            What::Resumed { cached_tokens, delay_ms: delay_ns.map(|ns| ns as f64 / 1e6) }
        }
        Happening::Finished { reason, .. } | Happening::Aborted { reason, .. } => {
            What::Finished { reason: reason.to_owned() }
        }
    };
    Moment { at_ns: event.at_ns, step: event.step, what }
}

/// What happened to this request, by its own ids and in its time.
fn timeline(life: &Life, events: &[(String, String, Moment)]) -> Vec<Moment> {
    let from = life.queued_ns.or(life.started_ns).unwrap_or(i64::MIN);
    let to = life.finished_ns.unwrap_or(i64::MAX);
    let mut moments: Vec<Moment> = events
        .iter()
        .filter(|(id, process, moment)| {
            *id == life.request_id && *process == life.process && (from..=to).contains(&moment.at_ns)
        })
        // Its end, as the client saw it, comes from its row.
        .filter(|(.., moment)| !matches!(moment.what, What::Finished { .. }))
        .map(|(.., moment)| moment.clone())
        .collect();
    let others = [
        (life.arrived_ns, Some(What::Arrived)),
        (life.queued_ns, Some(What::Queued)),
        (life.first_token_ns, Some(What::FirstToken)),
        (life.finished_ns, life.finish_reason.clone().map(|reason| What::Finished { reason })),
    ];
    for (at_ns, what) in others {
        if let (Some(at_ns), Some(what)) = (at_ns, what) {
            moments.push(Moment { at_ns, step: None, what });
        }
    }
    // What happens at once is said in the order in which it must have been.
    moments.sort_by_key(|moment| (moment.at_ns, moment.what.order()));
    moments
}

fn delays(timeline: &[Moment], finished_ns: Option<i64>) -> Vec<(i64, i64)> {
    let mut delays = Vec::new();
    let mut since = None;
    for moment in timeline {
        match moment.what {
            What::Preempted { .. } => since = Some(moment.at_ns),
            What::Resumed { .. } => delays.extend(since.take().map(|since| (since, moment.at_ns))),
            _ => {}
        }
    }
    delays.extend(since.zip(finished_ns));
    delays
}

fn spread<'n>(all: impl Iterator<Item = &'n Numbers>, value: impl Fn(&Numbers) -> Option<f64>) -> Option<Spread> {
    let mut values: Vec<f64> = all.filter_map(value).collect();
    Spread::of(&mut values).filter(|spread| spread.count >= ENOUGH)
}

fn explain<'a>(
    life: &Life,
    events: &[(String, String, Moment)],
    all: &[Numbers],
    explainer: &'a Explainer<'_>,
) -> RequestExplanation<'a> {
    let timeline = timeline(life, events);
    let delays = delays(&timeline, life.finished_ns);
    let delay_ms = delayed(&delays, Some(i64::MIN), Some(i64::MAX));
    let own = Numbers::of(life, &delays, Some(delay_ms));
    let others = || all.iter().filter(|other| other.kind == own.kind);
    let whole = others().filter(|other| other.total.is_some()).count();

    let usual = |part: RequestPart| spread(others(), |other| other.part(part));
    let same_prompt = own.prompt.and_then(|tokens| {
        let similar = others().filter(|other| other.prompt.is_some_and(|other| size(other) == size(tokens)));
        spread(similar, |other| other.part(RequestPart::Prefill))
    });
    let per_token = spread(others(), Numbers::per_token);
    let parts: Vec<Compared> = RequestPart::ALL
        .into_iter()
        .filter_map(|part| {
            let usual_ms = usual(part).map(|spread| spread.median);
            let expected_ms = match part {
                RequestPart::Prefill => same_prompt.map(|spread| spread.median),
                RequestPart::Decode => {
                    per_token.zip(own.gaps).map(|(spread, gaps)| spread.median * f64::from(gaps))
                }
                _ => usual_ms,
            };
            Some(Compared { part, ms: own.part(part)?, usual_ms, expected_ms })
        })
        .collect();
    let total_ms = own.total.map(f64::from);
    let usual_total = spread(others(), |other| other.total.map(f64::from));
    let usual_ms = parts.iter().map(|part| part.usual_ms).sum::<Option<f64>>();
    let excess_ms = total_ms.zip(usual_ms).map_or(0.0, |(total, usual)| (total - usual).max(0.0));
    let status = match (total_ms, usual_total, usual_ms) {
        (Some(total), Some(spread), Some(_)) if spread.excess(total).is_some() && excess_ms > LEAST_MS => {
            Status::Slow
        }
        (Some(_), Some(_), Some(_)) => Status::AsUsual,
        _ => Status::TooFew,
    };
    let causes = if status == Status::Slow {
        let median = |value: &dyn Fn(&Numbers) -> Option<f64>| spread(others(), value).map(|spread| spread.median);
        let prompts = median(&|other| other.prompt.map(f64::from));
        let outputs = median(&|other| other.gaps.map(|gaps| f64::from(gaps) + 1.0));
        causes(life, &own, &parts, [prompts, outputs, per_token.map(|spread| spread.median)], excess_ms)
    } else {
        Vec::new()
    };
    let (steps, slow_steps) = steps(life, &delays, explainer);
    RequestExplanation {
        request_id: life.request_id.clone(),
        client_request_id: life.client_request_id.clone(),
        process: life.process.clone(),
        prompt_tokens: life.prompt_tokens,
        cached_tokens: life.cached_tokens,
        output_tokens: life.output_tokens,
        ms: total_ms,
        status,
        usual_ms,
        usual_up_to_ms: usual_total.map(|spread| spread.median + spread.margin()),
        excess_ms,
        compared_with: whole,
        causes,
        timeline,
        parts,
        steps,
        slow_steps,
    }
}

fn causes(
    life: &Life,
    own: &Numbers,
    parts: &[Compared],
    [prompts, outputs, per_token]: [Option<f64>; 3],
    excess_ms: f64,
) -> Vec<RequestCause> {
    let mut found: Vec<RequestCause> = Vec::new();
    for compared in parts {
        let Some(usual_ms) = compared.usual_ms else { continue };
        // Without requests of its size, its size may be the reason or not.
        let expected_ms = compared.expected_ms.unwrap_or(usual_ms);
        let of_size_ms = (expected_ms.min(compared.ms) - usual_ms).max(0.0);
        let (of_size, of_part) = match compared.part {
            RequestPart::Arriving => (None, RequestVerdict::SlowArrival),
            RequestPart::Queued => (None, RequestVerdict::Queued),
            RequestPart::Preempted => (None, RequestVerdict::Preempted(life.preemptions.unwrap_or(0))),
            RequestPart::Prefill => (
                own.prompt.zip(prompts).map(|(tokens, usual)| RequestVerdict::LongPrompt(tokens, usual)),
                RequestVerdict::SlowPrefill,
            ),
            RequestPart::Decode => (
                life.output_tokens.zip(outputs).map(|(tokens, usual)| RequestVerdict::LongOutput(tokens, usual)),
                RequestVerdict::SlowDecode(own.per_token().unwrap_or(0.0), per_token.unwrap_or(0.0)),
            ),
        };
        found.extend(of_size.map(|verdict| RequestCause { verdict, explains_ms: of_size_ms }));
        let of_part_ms = compared.ms - usual_ms.max(expected_ms);
        found.push(RequestCause { verdict: of_part, explains_ms: of_part_ms });
    }
    found.sort_by(|a, b| b.explains_ms.total_cmp(&a.explains_ms));
    let mut left_ms = excess_ms;
    found.retain_mut(|cause| {
        cause.explains_ms = cause.explains_ms.min(left_ms);
        let is_named = cause.explains_ms >= (LEAST_SHARE * excess_ms).max(LEAST_MS);
        left_ms -= if is_named { cause.explains_ms } else { 0.0 };
        is_named
    });
    if left_ms > (1.0 - EXPLAINED_SHARE) * excess_ms {
        found.push(RequestCause { verdict: RequestVerdict::Unknown, explains_ms: left_ms });
    } else if left_ms >= (LEAST_SHARE * excess_ms).max(LEAST_MS) {
        found.push(RequestCause { verdict: RequestVerdict::Other, explains_ms: left_ms });
    }
    found
}

/// The steps while it was running, and the slow ones among them.
fn steps<'a>(
    life: &Life,
    delays: &Delays,
    explainer: &'a Explainer<'_>,
) -> ((usize, usize, f64), Vec<Explanation<'a>>) {
    let Some(from) = life.started_ns else { return ((0, 0, 0.0), Vec::new()) };
    let to = life.finished_ns.unwrap_or(i64::MAX);
    let recording = explainer.recording();
    let of = || {
        recording.steps.iter().filter(move |step| {
            // A step whose batch was made before it was started ends after that, when batches are in flight.
            let (began, ended) = (step.began_ns, step.ended_ns);
            ended > from
                && began < to
                && recording.engine(step) == life.process
                && !delays.iter().any(|(start, end)| began >= *start && ended <= *end)
        })
    };
    let (slow, excess_ms) = explainer.slow_of(of());
    ((of().count(), slow, excess_ms), explainer.slowest_of(of(), MOST_STEPS))
}
