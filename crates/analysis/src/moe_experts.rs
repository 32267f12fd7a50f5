//! The load of experts: how often each expert of each `MoE` layer was chosen, in total and over time.

use std::collections::BTreeMap;

use profilemate_session::record::{Counted, ExpertCounts, ExpertLoad, WEIGHT_BINS, expert_counting, pairs};
use profilemate_session::{Component, Event, Name, Payload, Session};

/// Pairs are counted for layers of at most so many experts: the counts of a layer take 16 MiB then.
const MOST_EXPERTS_WITH_PAIRS: usize = 2048;

/// How even the load of the experts of a layer is. Experts that were never chosen are experts like the others.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    /// Activations.
    pub total: u64,
    /// By expert, the mean.
    pub mean: f64,
    /// Population standard deviation (`numpy.std`).
    pub std_dev: f64,
    /// Least.
    pub min: u64,
    /// Greatest.
    pub max: u64,
    /// Experts that were never chosen.
    pub idle: u64,
}

impl Spread {
    /// Of these experts; `None` without experts.
    pub fn of(counts: &[u64]) -> Option<Self> {
        let (min, max) = (*counts.iter().min()?, *counts.iter().max()?);
        let total = counts.iter().fold(0, |sum: u64, count| sum.saturating_add(*count));
        let mean = total as f64 / counts.len() as f64;
        let squares: f64 = counts.iter().map(|count| (*count as f64 - mean).powi(2)).sum();
        let idle = counts.iter().filter(|count| **count == 0).count() as u64;
        Some(Self { total, mean, std_dev: (squares / counts.len() as f64).sqrt(), min, max, idle })
    }

    /// Greatest by least; `None` when some expert was never chosen.
    pub fn max_min_ratio(&self) -> Option<f64> {
        (self.min > 0).then(|| self.max as f64 / self.min as f64)
    }

    /// Greatest by mean; `None` when nothing was chosen.
    pub fn max_mean_ratio(&self) -> Option<f64> {
        (self.total > 0).then(|| self.max as f64 / self.mean)
    }
}

/// A layer over one interval, as one process counted it.
#[derive(Debug, Clone, Copy)]
pub struct Interval<'a> {
    /// Index of the layer in the model.
    pub layer: u16,
    /// When the counters were read: nanoseconds since the session's start.
    pub at_ns: i64,
    /// Since they were read before, nanoseconds.
    pub interval_ns: u64,
    /// Tokens that were routed.
    pub tokens: u64,
    /// How even the load was.
    pub spread: Spread,
    /// Engine step that had begun; `None` = none.
    pub step: Option<u64>,
    /// The worker.
    pub process: &'a str,
}

/// A layer over the whole run, all processes together.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LayerLoad {
    /// Index of the layer in the model.
    pub layer: u16,
    /// How many experts a token is sent to.
    pub top_k: u16,
    /// Tokens that were routed.
    pub tokens: u64,
    /// How often each expert was chosen.
    pub counts: Vec<u64>,
    /// For how many tokens each pair was chosen, in the order (0, 1), (0, 2), …, (1, 2), …; `None` = not counted.
    pub pairs: Option<Vec<u64>>,
    /// How often a routing weight was in each hundredth from 0 on, and in the last place 1 or more; `None` = not counted.
    pub weights: Option<Vec<u64>>,
    /// Intervals that it was read in.
    pub intervals: u64,
}

impl LayerLoad {
    /// How even the load is; `None` without experts.
    pub fn spread(&self) -> Option<Spread> {
        Spread::of(&self.counts)
    }

    /// Each pair that was chosen, with how often.
    pub fn chosen_pairs(&self) -> impl Iterator<Item = ([usize; 2], u64)> {
        let experts = self.counts.len();
        let all = (0..experts).flat_map(move |low| (low + 1..experts).map(move |high| [low, high]));
        let counts = self.pairs.iter().flatten().copied();
        all.zip(counts).filter(|(_, count)| *count > 0)
    }
}

/// What is said of experts.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Summary {
    /// Every layer that was counted, in the order of the model.
    pub layers: Vec<LayerLoad>,
    /// Layers that were not seen, and why.
    pub blind: Vec<(u16, String)>,
    /// Intervals of a layer of which some records are gone: nothing of them is counted.
    pub incomplete: u64,
}

/// An interval whose counts are coming.
#[derive(Debug)]
struct Pending {
    load: ExpertLoad,
    counts: Vec<u64>,
    missing: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Collector {
    pending: BTreeMap<(usize, u16), Pending>,
    layers: BTreeMap<u16, LayerLoad>,
    incomplete: u64,
    /// Whether there was a forward pass for requests.
    has_work: bool,
}

fn add(sums: &mut [u64], counts: &ExpertCounts) {
    for (index, count) in counts.counts() {
        if let Some(sum) = sums.get_mut(index as usize) {
            *sum = sum.saturating_add(count);
        }
    }
}

impl Collector {
    #[inline]
    pub(crate) fn see<'a>(&mut self, session: &'a Session, event: &Event) -> Option<Interval<'a>> {
        match &event.record.payload {
            Payload::ExpertLoad(load) => {
                let counts = vec![0; load.experts.into()];
                let pending = Pending { load: *load, counts, missing: load.activations };
                let before = self.pending.insert((event.log, load.layer), pending);
                self.incomplete += u64::from(before.is_some_and(|before| before.missing > 0));
                self.complete(session, event, load.layer)
            }
            Payload::ExpertCounts(counts) => {
                let pending = self.pending.get_mut(&(event.log, counts.layer))?;
                if counts.counted == Counted::Activations && pending.missing > 0 {
                    add(&mut pending.counts, counts);
                    let come = counts.counts().fold(0, |sum: u64, (_, count)| sum.saturating_add(count));
                    pending.missing = pending.missing.saturating_sub(come);
                    return self.complete(session, event, counts.layer);
                }
                // They follow the activations of their interval.
                let layer = self.layers.get_mut(&counts.layer)?;
                match counts.counted {
                    Counted::Pairs => add(layer.pairs.as_deref_mut()?, counts),
                    Counted::Weights => add(layer.weights.as_deref_mut()?, counts),
                    _ => {}
                }
                None
            }
            _ => {
                self.has_work |= event.name == Name::Forward;
                None
            }
        }
    }

    /// All activations of an interval are there.
    fn complete<'a>(&mut self, session: &'a Session, event: &Event, layer: u16) -> Option<Interval<'a>> {
        let pending = self.pending.get(&(event.log, layer)).filter(|pending| pending.missing == 0)?;
        let load = pending.load;
        let sums = self.layers.entry(layer).or_insert_with(|| LayerLoad { layer, ..LayerLoad::default() });
        let experts = usize::from(load.experts).max(sums.counts.len());
        if experts > sums.counts.len() {
            // Pairs are counted by a place that depends on how many experts there are.
            sums.pairs = None;
        }
        sums.counts.resize(experts, 0);
        sums.top_k = load.top_k;
        sums.tokens = sums.tokens.saturating_add(load.tokens);
        sums.intervals += 1;
        for (sum, count) in sums.counts.iter_mut().zip(&pending.counts) {
            *sum = sum.saturating_add(*count);
        }
        if load.counting & expert_counting::COSELECTION != 0 && experts <= MOST_EXPERTS_WITH_PAIRS {
            sums.pairs.get_or_insert_with(|| vec![0; pairs(experts)]);
        }
        if load.counting & expert_counting::WEIGHTS != 0 {
            sums.weights.get_or_insert_with(|| vec![0; WEIGHT_BINS]);
        }
        let log = &session.logs[event.log];
        Some(Interval {
            layer,
            at_ns: event.start_ns,
            interval_ns: log.clock.duration_ns(load.interval_ticks),
            tokens: load.tokens,
            spread: Spread::of(&pending.counts)?,
            step: Some(event.record.step).filter(|step| *step != 0),
            process: log.process(Component::Worker),
        })
    }

    pub(crate) fn finish(self, session: &Session) -> Summary {
        let left = self.pending.values().filter(|pending| pending.missing > 0).count() as u64;
        let mut blind = BTreeMap::new();
        for (key, value) in session.logs.iter().flat_map(|log| &log.head.facts) {
            let layer = key.strip_prefix("moe_layer:").and_then(|layer| layer.parse::<u16>().ok());
            if let (Some(layer), Some(reason)) = (layer, value.strip_prefix("not seen: ")) {
                blind.entry(layer).or_insert_with(|| reason.to_owned());
            }
        }
        // What one process does not see, another may: stages of a pipeline do not.
        blind.retain(|layer, _| !self.layers.contains_key(layer));
        let watched = session.logs.iter().filter_map(|log| log.head.fact("moe_layers"));
        for layer in watched.flat_map(|layers| layers.split(',')).filter_map(|layer| layer.parse().ok()) {
            let why = match (self.layers.is_empty(), self.has_work) {
                (false, _) if self.layers.contains_key(&layer) => continue,
                (false, _) => "its router was not heard of while others were",
                (true, true) => "killed within the first interval, or its router is not asked",
                (true, false) => continue,
            };
            blind.entry(layer).or_insert_with(|| why.to_owned());
        }
        Summary {
            layers: self.layers.into_values().collect(),
            blind: blind.into_iter().collect(),
            incomplete: self.incomplete + left,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_experts_count_in_everything_but_the_ratio_to_the_least() {
        let spread = Spread::of(&[4, 0, 8, 0]).unwrap();
        assert_eq!((spread.total, spread.min, spread.max, spread.idle), (12, 0, 8, 2));
        assert!((spread.mean - 3.0).abs() < 1e-12 && (spread.std_dev - 11_f64.sqrt()).abs() < 1e-12);
        assert_eq!((spread.max_min_ratio(), spread.max_mean_ratio()), (None, Some(8.0 / 3.0)));
        let even = Spread::of(&[5, 5]).unwrap();
        assert_eq!((even.max_min_ratio(), even.max_mean_ratio(), even.std_dev), (Some(1.0), Some(1.0), 0.0));
        let nothing = Spread::of(&[0, 0]).unwrap();
        assert_eq!((nothing.max_min_ratio(), nothing.max_mean_ratio(), nothing.idle), (None, None, 2));
        assert_eq!(Spread::of(&[]), None);
    }
}
