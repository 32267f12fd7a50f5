//! Sampling: what choosing the next tokens takes, step by step, and what its features cost.
//!
//! A *mix* is the set of features that a batch has, whoever of its sequences asks for them: the sampler works on the batch as
//! a whole, and does for all what one of them needs. Steps of the same mix and of a similar size are compared with those
//! whose mix has fewer features; what is more is what the others cost.

use std::collections::BTreeMap;

use profilemate_session::record::{SamplingMix, Speculation};
use profilemate_session::{Component, Edge, Event, Name, Payload, Session};

use crate::forward::Timing;
use crate::statistics::{Samples, Statistics};
use crate::steps::{Phase, Scheduled};
use crate::{Context, Row};

/// Steps of each kind at least, before their times are compared.
pub const LEAST_STEPS: u64 = 20;

/// Most kinds of steps that are told apart.
pub const MOST_KINDS: usize = 512;

/// One step's sampling. `None` = unknown.
#[derive(Debug, Clone, Copy)]
pub struct Sampled<'a> {
    /// When the host began it: nanoseconds since the session's start.
    pub start_ns: i64,
    /// What kind of step it was.
    pub phase: Option<Phase>,
    /// Sequences.
    pub batch_size: Option<u32>,
    /// Tokens, without padding.
    pub num_tokens: Option<u32>,
    /// How long it took, nanoseconds: on the GPU, or on the host where there is none.
    pub sample_ns: Option<u64>,
    /// How long it kept the host, nanoseconds.
    pub host_ns: u64,
    /// The forward pass before it, by the same clock as `sample_ns`, nanoseconds.
    pub forward_ns: Option<u64>,
    /// How long the GPU drafted, nanoseconds.
    pub draft_ns: Option<u64>,
    /// How it was timed.
    pub timing: Timing,
    /// What the sequences ask for.
    pub mix: SamplingMix,
    /// What became of drafts.
    pub speculation: Option<Speculation>,
    /// Engine step; `None` = none.
    pub step: Option<u64>,
    /// The process: `worker-0`.
    pub process: &'a str,
}

/// Something that the sampler does for a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Feature {
    /// Some sequences take the most likely token, and others do not. Alone, greedy sampling is no feature: it is what all
    /// others are compared with.
    GreedyToo,
    /// Some sequences do not take the most likely token.
    Random,
    /// The k most likely.
    TopK,
    /// The most likely that add up to p.
    TopP,
    /// Not what is much less likely than the most likely.
    MinP,
    /// Presence, frequency and repetition penalties.
    Penalties,
    /// Log probabilities of what is generated.
    Logprobs,
    /// Log probabilities of prompts.
    PromptLogprobs,
    /// A grammar.
    StructuredOutput,
    /// A logit bias.
    LogitBias,
    /// Bad words.
    BadWords,
    /// Lists of allowed tokens.
    AllowedTokenIds,
    /// Sequences that may not end yet.
    MinTokens,
    /// Random generators of their own.
    Seeded,
    /// Drafts to look at.
    Speculative,
}

impl Feature {
    /// Every feature, in the order of reports.
    pub const ALL: [Self; 15] = [
        Self::GreedyToo,
        Self::Random,
        Self::TopK,
        Self::TopP,
        Self::MinP,
        Self::Penalties,
        Self::Logprobs,
        Self::PromptLogprobs,
        Self::StructuredOutput,
        Self::LogitBias,
        Self::BadWords,
        Self::AllowedTokenIds,
        Self::MinTokens,
        Self::Seeded,
        Self::Speculative,
    ];

    /// Its name.
    pub fn text(self) -> &'static str {
        match self {
            Self::GreedyToo => "greedy",
            Self::Random => "random",
            Self::TopK => "top_k",
            Self::TopP => "top_p",
            Self::MinP => "min_p",
            Self::Penalties => "penalties",
            Self::Logprobs => "logprobs",
            Self::PromptLogprobs => "prompt_logprobs",
            Self::StructuredOutput => "structured_output",
            Self::LogitBias => "logit_bias",
            Self::BadWords => "bad_words",
            Self::AllowedTokenIds => "allowed_token_ids",
            Self::MinTokens => "min_tokens",
            Self::Seeded => "seeded",
            Self::Speculative => "speculative",
        }
    }
}

/// A set of features.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Features(u16);

impl Features {
    /// Those of a batch; `None` when it is not known how many of its sequences are greedy.
    pub fn of(mix: &SamplingMix, speculation: Option<Speculation>) -> Option<Self> {
        let (sequences, greedy) = (mix.sequences?, mix.greedy?);
        let asked = |count: Option<u16>| count.is_some_and(|count| count > 0);
        let random = sequences > greedy;
        let mut features = Self::default();
        for (is_there, feature) in [
            (random && greedy > 0, Feature::GreedyToo),
            (random, Feature::Random),
            (asked(mix.top_k), Feature::TopK),
            (asked(mix.top_p), Feature::TopP),
            (asked(mix.min_p), Feature::MinP),
            (asked(mix.penalties), Feature::Penalties),
            (asked(mix.logprobs), Feature::Logprobs),
            (asked(mix.prompt_logprobs), Feature::PromptLogprobs),
            (asked(mix.structured_output), Feature::StructuredOutput),
            (asked(mix.logit_bias), Feature::LogitBias),
            (asked(mix.bad_words), Feature::BadWords),
            (asked(mix.allowed_token_ids), Feature::AllowedTokenIds),
            (asked(mix.min_tokens), Feature::MinTokens),
            (asked(mix.seeded), Feature::Seeded),
            (speculation.is_some_and(|found| found.draft_tokens > 0), Feature::Speculative),
        ] {
            features.0 |= u16::from(is_there) << feature as u8;
        }
        Some(features)
    }

    /// Whether a feature is in it.
    pub fn has(self, feature: Feature) -> bool {
        self.0 >> feature as u8 & 1 == 1
    }

    /// Its features, in order.
    pub fn iter(self) -> impl Iterator<Item = Feature> {
        Feature::ALL.into_iter().filter(move |feature| self.has(*feature))
    }

    /// Their names; `greedy` for none.
    pub fn names(self) -> Vec<&'static str> {
        if self.0 == 0 { vec!["greedy"] } else { self.iter().map(Feature::text).collect() }
    }

    /// Those of it that another does not have; `None` when that has some that it does not.
    fn beyond(self, other: Self) -> Option<Self> {
        (other.0 & !self.0 == 0).then_some(Self(self.0 & !other.0))
    }

    fn len(self) -> u32 {
        self.0.count_ones()
    }
}

/// Sizes of batches that are alike: more than half of the greatest, up to that, which is a power of two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sizes(u8);

impl Sizes {
    /// Those that a number of sequences belongs to.
    pub fn of(sequences: u32) -> Self {
        let bits = u32::BITS - sequences.saturating_sub(1).leading_zeros();
        Self(u8::try_from(bits).unwrap_or(u8::MAX))
    }

    /// The least and the greatest of them.
    pub fn range(self) -> (u64, u64) {
        let most = 1_u64 << self.0;
        (most / 2 + 1, most)
    }
}

/// Steps of one mix and of similar sizes.
#[derive(Debug, Clone, PartialEq)]
pub struct Kind {
    /// What their batches ask for.
    pub features: Features,
    /// How large they are.
    pub sizes: Sizes,
    /// Steps.
    pub steps: u64,
    /// Mean of their sequences.
    pub mean_batch_size: f64,
    /// Times of sampling; `None` when none was timed.
    pub times: Option<Statistics>,
    /// Times on the host.
    pub host: Option<Statistics>,
    /// What their features cost: against the steps of the same sizes that come closest with fewer.
    pub cost: Option<Cost>,
}

/// What features cost.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cost {
    /// What the others do not have.
    pub added: Features,
    /// What they have.
    pub to: Features,
    /// Steps of those.
    pub steps_without: u64,
    /// Difference of the medians of sampling, milliseconds.
    pub cost_ms: Option<f64>,
    /// Difference of the medians of the host's times, milliseconds.
    pub host_cost_ms: Option<f64>,
    /// Difference of the medians of sampling to steps that are greedy and nothing else, milliseconds.
    pub over_greedy_ms: Option<f64>,
}

/// What became of drafts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Drafts {
    /// Steps that had some.
    pub steps: u64,
    /// Sequences that had some, over the steps.
    pub drafts: u64,
    /// Drafted tokens.
    pub draft_tokens: u64,
    /// Those that were right.
    pub accepted_tokens: u64,
}

/// What is said of sampling.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Summary {
    /// Steps, of each worker.
    pub steps: u64,
    /// Times of sampling.
    pub times: Option<Statistics>,
    /// Times on the host.
    pub host: Option<Statistics>,
    /// How long sampling and the forward pass took in steps where both are known, by the same clock, nanoseconds.
    pub sampling_and_forward_ns: Option<(u64, u64)>,
    /// Whether times are those of a GPU.
    pub is_on_gpu: bool,
    /// By mix and size, what took most time first.
    pub kinds: Vec<Kind>,
    /// Steps whose mix is not known, or that came when there were too many kinds.
    pub steps_of_no_kind: u64,
    /// Drafts, by engines; `None` without any.
    pub drafts: Option<Drafts>,
}

impl Summary {
    /// Share of sampling in sampling and forward passes together, 0-100.
    pub fn share_pct(&self) -> Option<f64> {
        let (sampling, forward) = self.sampling_and_forward_ns?;
        crate::batch::percent(sampling, sampling.saturating_add(forward))
    }
}

#[derive(Debug, Default)]
struct Times {
    steps: u64,
    sequences: u64,
    samples: Samples,
    host: Samples,
}

/// What one worker's records have said of a step before its sampling ends.
#[derive(Debug, Clone, Copy, Default)]
struct Before {
    mix: Option<(u64, SamplingMix)>,
    /// When the grammar's mask began, and how long that took.
    grammar: Option<(u64, i64, u64)>,
    forward: Option<(u64, u64)>,
    last_step: Option<u64>,
    is_lightweight: bool,
}

fn of_step<T: Copy>(found: Option<(u64, T)>, step: u64) -> Option<T> {
    found.filter(|(of, _)| *of == step).map(|(_, value)| value)
}

#[derive(Debug)]
pub(crate) struct Collector {
    before: Vec<Before>,
    kinds: BTreeMap<(Features, Sizes), Times>,
    steps: u64,
    steps_of_no_kind: u64,
    samples: Samples,
    host: Samples,
    sampling_and_forward_ns: Option<(u64, u64)>,
    is_on_gpu: bool,
    drafts: Drafts,
}

impl Collector {
    pub(crate) fn new(session: &Session) -> Self {
        let before = session.logs.iter().map(|log| Before {
            is_lightweight: log.head.fact("timing_mode") == Some("lightweight"),
            ..Before::default()
        });
        Self {
            before: before.collect(),
            kinds: BTreeMap::new(),
            steps: 0,
            steps_of_no_kind: 0,
            samples: Samples::default(),
            host: Samples::default(),
            sampling_and_forward_ns: None,
            is_on_gpu: false,
            drafts: Drafts::default(),
        }
    }

    /// Hands out what was sampled.
    pub(crate) fn see<E>(
        &mut self,
        context: &Context<'_>,
        event: &Event,
        row: &mut impl FnMut(Row<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        match self.sampled(context, event) {
            Some(found) => row(Row::Sampling(found)),
            None => Ok(()),
        }
    }

    #[inline]
    fn sampled<'a>(&mut self, context: &Context<'a>, event: &Event) -> Option<Sampled<'a>> {
        let before = &mut self.before[event.log];
        let step = event.record.step;
        match (&event.record.payload, event.name) {
            (Payload::SamplingMix(mix), _) => before.mix = Some((step, *mix)),
            (Payload::Speculation(found), _) => {
                self.drafts.steps += 1;
                self.drafts.drafts += u64::from(found.drafts);
                self.drafts.draft_tokens += u64::from(found.draft_tokens);
                self.drafts.accepted_tokens += u64::from(found.accepted_tokens);
            }
            (Payload::Span(_), Name::GrammarBitmask) => {
                before.grammar = Some((step, event.start_ns, event.duration_ns()));
            }
            (Payload::Span(_), Name::Forward) if event.edge == Edge::End => {
                let so_far = of_step(before.forward, step).unwrap_or(0);
                before.forward = Some((step, so_far + event.duration_ns()));
            }
            (Payload::Span(_), Name::Sampling) => {
                // One row for each step, as there is one time on the GPU.
                if step != 0 && before.last_step.replace(step) == Some(step) {
                    return None;
                }
                let sampled = sampled(context, event, *before);
                self.add(&sampled);
                return Some(sampled);
            }
            _ => {}
        }
        None
    }

    fn add(&mut self, sampled: &Sampled<'_>) {
        self.steps += 1;
        self.host.push(sampled.host_ns);
        if let Some(ns) = sampled.sample_ns {
            self.samples.push(ns);
        }
        self.is_on_gpu |= sampled.timing == Timing::Events;
        if let (Some(sampling), Some(forward)) = (sampled.sample_ns, sampled.forward_ns) {
            let (all_sampling, all_forward) = self.sampling_and_forward_ns.get_or_insert_default();
            *all_sampling = all_sampling.saturating_add(sampling);
            *all_forward = all_forward.saturating_add(forward);
        }
        let sequences = sampled.batch_size.or(sampled.mix.sequences.map(u32::from));
        let key = Features::of(&sampled.mix, sampled.speculation).zip(sequences.map(Sizes::of));
        let Some(key) = key.filter(|key| self.kinds.len() < MOST_KINDS || self.kinds.contains_key(key)) else {
            self.steps_of_no_kind += 1;
            return;
        };
        let times = self.kinds.entry(key).or_default();
        times.steps += 1;
        times.sequences += u64::from(sequences.unwrap_or(0));
        times.host.push(sampled.host_ns);
        if let Some(ns) = sampled.sample_ns {
            times.samples.push(ns);
        }
    }

    pub(crate) fn finish(mut self) -> Summary {
        let mut kinds: Vec<Kind> = self
            .kinds
            .iter_mut()
            .map(|((features, sizes), times)| Kind {
                features: *features,
                sizes: *sizes,
                steps: times.steps,
                mean_batch_size: times.sequences as f64 / times.steps as f64,
                times: times.samples.statistics(),
                host: times.host.statistics(),
                cost: None,
            })
            .collect();
        let costs: Vec<Option<Cost>> = kinds.iter().map(|kind| cost(kind, &kinds)).collect();
        for (kind, cost) in kinds.iter_mut().zip(costs) {
            kind.cost = cost;
        }
        let total = |kind: &Kind| kind.times.or(kind.host).map_or(0.0, |times| times.total_ms);
        kinds.sort_by(|a, b| total(b).total_cmp(&total(a)));
        Summary {
            steps: self.steps,
            times: self.samples.statistics(),
            host: self.host.statistics(),
            sampling_and_forward_ns: self.sampling_and_forward_ns,
            is_on_gpu: self.is_on_gpu,
            kinds,
            steps_of_no_kind: self.steps_of_no_kind,
            drafts: (self.drafts.steps > 0).then_some(self.drafts),
        }
    }
}

/// What a kind's features cost, by the kinds of the same sizes.
fn cost(of: &Kind, kinds: &[Kind]) -> Option<Cost> {
    if of.steps < LEAST_STEPS {
        return None;
    }
    let smaller = kinds
        .iter()
        .filter(|kind| kind.sizes == of.sizes && kind.features != of.features && kind.steps >= LEAST_STEPS);
    let nearest = smaller
        .clone()
        .filter_map(|kind| Some((of.features.beyond(kind.features)?, kind)))
        .min_by_key(|(added, kind)| (added.len(), std::cmp::Reverse(kind.steps)));
    let (added, without) = nearest?;
    let medians = |with: Option<Statistics>, without: Option<Statistics>| Some(with?.p50_ms - without?.p50_ms);
    let greedy = smaller.clone().find(|kind| kind.features == Features::default());
    Some(Cost {
        added,
        to: without.features,
        steps_without: without.steps,
        cost_ms: medians(of.times, without.times),
        host_cost_ms: medians(of.host, without.host),
        over_greedy_ms: greedy.and_then(|greedy| medians(of.times, greedy.times)),
    })
}

fn sampled<'a>(context: &Context<'a>, event: &Event, before: Before) -> Sampled<'a> {
    let log = &context.session.logs[event.log];
    let step = event.record.step;
    let scheduled = context.steps.scheduled(event);
    let own = event.span().map_or(0, |span| span.value_a);
    let grammar = before.grammar.filter(|(of, ..)| *of == step).map(|(_, start_ns, ns)| (start_ns, ns));
    let host_ns = event.duration_ns().saturating_add(grammar.map_or(0, |(_, ns)| ns));
    let is_on_gpu = context.steps.times_on_gpu(event);
    let on_gpu = context.steps.on_gpu(event).copied().unwrap_or_default();
    let (sample_ns, forward_ns) = match (is_on_gpu, before.is_lightweight) {
        (true, _) => (on_gpu.sample_ns, on_gpu.forward_ns),
        // The host only launches it, and it is waited for with everything else.
        (false, true) => (None, None),
        (false, false) => (Some(host_ns), of_step(before.forward, step)),
    };
    let known = |number: u64| u32::try_from(number & 0xffff_ffff).ok().filter(|number| *number != 0);
    Sampled {
        start_ns: grammar.map_or(event.start_ns, |(start_ns, _)| start_ns),
        phase: scheduled.and_then(Scheduled::phase),
        batch_size: scheduled.map_or(known(own >> 32), |scheduled| Some(scheduled.num_seqs)),
        num_tokens: scheduled.map_or(known(own), |scheduled| Some(scheduled.num_tokens)),
        sample_ns,
        host_ns,
        forward_ns,
        draft_ns: on_gpu.draft_ns,
        timing: if is_on_gpu { Timing::Events } else { Timing::Wall },
        mix: of_step(before.mix, step).unwrap_or_default(),
        speculation: context.steps.speculated(event),
        step: Some(step).filter(|step| *step != 0),
        process: log.process(Component::Worker),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn mix(sequences: u16, greedy: u16) -> SamplingMix {
        SamplingMix { sequences: Some(sequences), greedy: Some(greedy), ..SamplingMix::default() }
    }

    #[test]
    fn greedy_alone_is_no_feature() {
        assert_eq!(Features::of(&mix(8, 8), None).unwrap().names(), ["greedy"]);
        assert_eq!(Features::of(&mix(8, 0), None).unwrap().names(), ["random"]);
        assert_eq!(Features::of(&mix(8, 3), None).unwrap().names(), ["greedy", "random"]);
        let penalties = SamplingMix { penalties: Some(1), logprobs: Some(0), ..mix(8, 8) };
        assert_eq!(Features::of(&penalties, None).unwrap().names(), ["penalties"]);
        let drafts = Speculation { draft_tokens: 3, accepted_tokens: 1, drafts: 1 };
        assert_eq!(Features::of(&mix(8, 8), Some(drafts)).unwrap().names(), ["speculative"]);
        assert_eq!(Features::of(&SamplingMix::default(), None), None);
    }

    #[test]
    fn sizes_double() {
        let range = |sequences| Sizes::of(sequences).range();
        assert_eq!((range(1), range(2), range(3), range(4), range(5)), ((1, 1), (2, 2), (3, 4), (3, 4), (5, 8)));
        assert_eq!((range(64), range(65), range(256)), ((33, 64), (65, 128), (129, 256)));
    }

    proptest! {
        #[test]
        fn a_size_is_in_its_range(sequences in 1u32..) {
            let (least, most) = Sizes::of(sequences).range();
            prop_assert!((least..=most).contains(&u64::from(sequences)), "{least} {sequences} {most}");
        }
    }

    fn kind(features: &SamplingMix, steps: u64, ns: u64) -> Kind {
        let mut samples = Samples::default();
        for _ in 0..steps {
            samples.push(ns);
        }
        Kind {
            features: Features::of(features, None).unwrap(),
            sizes: Sizes::of(8),
            steps,
            mean_batch_size: 8.0,
            times: samples.statistics(),
            host: samples.statistics(),
            cost: None,
        }
    }

    #[test]
    fn a_feature_costs_what_steps_without_it_do_not_take() {
        let with = |top_k, top_p| SamplingMix { top_k: Some(top_k), top_p: Some(top_p), ..mix(8, 0) };
        let kinds = [
            kind(&mix(8, 8), 50, 1_000_000),
            kind(&mix(8, 0), 40, 3_000_000),
            kind(&with(8, 0), 30, 4_500_000),
            kind(&with(8, 8), 30, 9_000_000),
            // Too few to be compared with.
            kind(&with(0, 8), 3, 8_999_999),
        ];
        let cost_of = |at: usize| cost(&kinds[at], &kinds).unwrap();
        assert_eq!(cost(&kinds[0], &kinds), None);
        assert_eq!(cost(&kinds[4], &kinds), None);
        let random = cost_of(1);
        assert_eq!((random.added.names(), random.to.names()), (vec!["random"], vec!["greedy"]));
        assert_eq!((random.cost_ms, random.steps_without), (Some(2.0), 50));
        let both = cost_of(3);
        assert_eq!((both.added.names(), both.to.names()), (vec!["top_p"], vec!["random", "top_k"]));
        assert_eq!((both.cost_ms, both.host_cost_ms, both.over_greedy_ms), (Some(4.5), Some(4.5), Some(8.0)));
    }

    #[test]
    fn batches_of_other_sizes_are_not_compared() {
        let larger = Kind { sizes: Sizes::of(64), ..kind(&mix(64, 0), 50, 9_000_000) };
        assert_eq!(cost(&larger, &[kind(&mix(8, 8), 50, 1_000_000), larger.clone()]), None);
    }
}
