//! Sizes of CUDA graphs that fit the batches of a run: less padding, or fewer graphs.

use std::collections::BTreeSet;

use super::cuda_graphs::{CAPTURE_SIZES, Graphs, LEAST_STEPS, graph_tokens, once};
use super::{
    Change, Confidence, Direction, Evidence, Finding, Level, Proof, Severity, Subject, count, evidence, maybe,
    proof, share,
};
use crate::cuda_graphs::{Descriptor, Summary, Usage};

/// Share of the tokens in graphs that padding must be, percent.
pub const PADDING_PCT: f64 = 10.0;

/// Share of the time in graphs that other sizes must save, percent. Decoding waits for memory, so padding often costs nothing.
pub const SAVED_TIME_PCT: f64 = 1.0;

/// Share of the captured graphs that were never used from which they are too many, percent.
pub const UNUSED_PCT: f64 = 50.0;

/// Time for captures from which it matters at a start, seconds.
pub const CAPTURE_SEC: f64 = 10.0;

/// Fewer steps do not show which graphs are never used.
pub const LEAST_STEPS_FOR_UNUSED: u64 = 1000;

/// With fewer sizes, powers of two leave no room for any other.
const LEAST_SIZES: usize = 12;

/// Most sizes that are proposed: about as many as vLLM captures by default up to 512 tokens.
const MOST_SIZES: usize = 64;

/// Tokens that each sequence has in a decode step: more than one with drafts. Captured sizes are multiples of it.
pub(super) fn tokens_per_seq(summary: &Summary) -> u64 {
    let descriptors = summary.usage.iter().map(|usage| Descriptor::parse(&usage.descriptor));
    // At the upper end sequences are cut to what the scheduler allows, so the smallest ratio is the true one.
    descriptors
        .filter(|descriptor| descriptor.uniform == Some(true))
        .filter_map(|descriptor| descriptor.num_tokens?.checked_div(descriptor.num_reqs?))
        .min()
        .unwrap_or(1)
        .max(1)
}

/// Batches by size that run in graphs: tokens and steps, ascending.
fn in_graphs(graphs: &Graphs<'_>) -> Vec<(u64, u64)> {
    let largest = graphs.largest().unwrap_or(0);
    let sizes = graphs.summary.sizes.iter();
    sizes
        .map(|size| (u64::from(size.tokens), size.decode_in_graph + size.other_in_graph))
        .filter(|(tokens, steps)| *steps > 0 && *tokens > 0 && *tokens <= largest)
        .collect()
}

/// Padding of these batches if graphs of these sizes are captured.
fn padding(batches: &[(u64, u64)], sizes: &[u64]) -> u64 {
    batches
        .iter()
        .map(|(tokens, steps)| {
            let at = sizes.partition_point(|size| size < tokens);
            sizes.get(at).map_or(0, |size| (size - tokens) * steps)
        })
        .sum()
}

/// Sizes to capture for these batches: at most `most`, with as much padding as `enough` or less, if they can.
///
/// Powers of two up to `largest` stay, so that a batch of a size that was not seen is padded to less than twice its size. To
/// them the size is added that saves most padding, again and again.
fn fitting(batches: &[(u64, u64)], largest: u64, multiple: u64, most: usize, enough: u64) -> Vec<u64> {
    let doubled = std::iter::successors(Some(multiple), |size| size.checked_mul(2));
    let mut sizes: BTreeSet<u64> = doubled.take_while(|size| *size < largest).collect();
    sizes.insert(largest);
    let candidates: BTreeSet<u64> = batches
        .iter()
        .map(|(tokens, _)| tokens.next_multiple_of(multiple))
        .filter(|size| *size < largest)
        .collect();
    // Steps with at most so many tokens.
    let mut sums = Vec::with_capacity(batches.len());
    let mut sum = 0;
    for (_, steps) in batches {
        sum += steps;
        sums.push(sum);
    }
    let steps_up_to = |tokens: u64| {
        let at = batches.partition_point(|(size, _)| *size <= tokens);
        at.checked_sub(1).map_or(0, |last| sums[last])
    };
    let mut left = padding(batches, &sizes.iter().copied().collect::<Vec<_>>());
    while left > enough && sizes.len() < most {
        let saving = |size: u64| {
            let below = sizes.range(..size).next_back().copied().unwrap_or(0);
            let above = sizes.range(size..).next().copied().unwrap_or(size);
            (steps_up_to(size) - steps_up_to(below)) * (above - size)
        };
        let best = candidates.iter().filter(|size| !sizes.contains(size)).map(|size| (saving(*size), *size)).max();
        let Some((saved, size)) = best.filter(|(saved, _)| *saved > 0) else { break };
        sizes.insert(size);
        left -= saved.min(left);
    }
    sizes.into_iter().collect()
}

/// What one more token in a graph costs, milliseconds: the slope of a line through the mean times of whole graphs, by least
/// squares; `None` = too few of them were timed.
fn ms_per_token(usage: &[Usage]) -> Option<f64> {
    let points: Vec<(f64, f64, f64)> = usage
        .iter()
        .filter(|usage| usage.descriptor.starts_with("FULL"))
        .filter_map(|usage| {
            let times = usage.times.filter(|times| times.count >= 10)?;
            Some((graph_tokens(&usage.descriptor)? as f64, times.mean_ms, times.count as f64))
        })
        .collect();
    if points.len() < 3 {
        return None;
    }
    let weights: f64 = points.iter().map(|(.., weight)| weight).sum();
    let mean_of = |value: fn(&(f64, f64, f64)) -> f64| {
        points.iter().map(|point| value(point) * point.2).sum::<f64>() / weights
    };
    let (x, y) = (mean_of(|point| point.0), mean_of(|point| point.1));
    let (mut above, mut below) = (0.0, 0.0);
    for (tokens, ms, weight) in &points {
        above += weight * (tokens - x) * (ms - y);
        below += weight * (tokens - x) * (tokens - x);
    }
    (below > 0.0).then(|| (above / below).max(0.0))
}

/// Graphs that were captured and never used: how many, of how many; by mode and tokens.
fn unused(graphs: &Graphs<'_>) -> (u64, u64) {
    let key = |text: &str| {
        let descriptor = Descriptor::parse(text);
        graph_tokens(text).map(|tokens| (descriptor.mode == "FULL", tokens))
    };
    let used: BTreeSet<_> = graphs.summary.usage.iter().filter_map(|usage| key(&usage.descriptor)).collect();
    let captured: BTreeSet<_> = graphs.summary.captured.iter().filter_map(|of| key(&of.descriptor)).collect();
    (captured.difference(&used).count() as u64, captured.len() as u64)
}

pub(super) fn list(sizes: &[u64]) -> String {
    sizes.iter().map(u64::to_string).collect::<Vec<_>>().join(" ")
}

/// Other sizes for the same batches, and what they save.
struct Proposal {
    sizes: Vec<u64>,
    /// Padding that is left of the tokens in graphs, percent.
    padding_pct: f64,
    /// Tokens of padding that are saved.
    saved: u64,
    /// Share of the time in graphs that this is, percent; `None` = too few graphs were timed.
    time_pct: Option<f64>,
}

/// What is known of the sizes that were captured.
struct Captured<'a> {
    graphs: &'a Graphs<'a>,
    /// Batches by size: tokens and steps.
    batches: Vec<(u64, u64)>,
    sizes: Vec<u64>,
    largest: u64,
    steps: u64,
    real: u64,
    padding: u64,
    /// Graphs that were never used, and all.
    unused: (u64, u64),
    /// Time to capture them, by one worker, seconds.
    capture_sec: f64,
}

impl<'a> Captured<'a> {
    /// `None` = too few steps.
    fn of(graphs: &'a Graphs<'a>) -> Option<Self> {
        let batches = in_graphs(graphs);
        let sizes: Vec<u64> = graphs.captured.iter().copied().collect();
        let steps = once(graphs.summary, batches.iter().map(|(_, steps)| steps).sum());
        let real = batches.iter().map(|(tokens, steps)| tokens * steps).sum();
        if steps < LEAST_STEPS || real == 0 {
            return None;
        }
        let capture_ns: u64 = graphs.summary.captured.iter().map(|of| of.duration_ns).sum();
        Some(Self {
            largest: graphs.largest()?,
            padding: padding(&batches, &sizes),
            unused: unused(graphs),
            capture_sec: capture_ns as f64 / graphs.summary.workers.max(1) as f64 / 1e9,
            graphs,
            batches,
            sizes,
            steps,
            real,
        })
    }

    /// At most as many sizes as there are, or a few, with hardly more padding than `enough`, if they can.
    fn fitting(&self, enough: u64) -> Vec<u64> {
        let most = self.sizes.len().clamp(LEAST_SIZES, MOST_SIZES);
        fitting(&self.batches, self.largest, tokens_per_seq(self.graphs.summary), most, enough)
    }

    fn proposal(&self) -> Proposal {
        let sizes = self.fitting(self.real / 100);
        let left = padding(&self.batches, &sizes);
        let saved = self.padding.saturating_sub(left);
        let usage = &self.graphs.summary.usage;
        let in_graphs = usage.iter().filter(|usage| graph_tokens(&usage.descriptor).is_some());
        let total_ms: f64 = in_graphs.filter_map(|usage| Some(usage.times?.total_ms)).sum();
        let saved_ms = ms_per_token(usage).map(|slope| slope * saved as f64);
        Proposal {
            padding_pct: share(left, self.real + left),
            saved,
            time_pct: saved_ms.filter(|_| total_ms > 0.0).map(|saved_ms| 100.0 * saved_ms / total_ms),
            sizes,
        }
    }

    fn padding_pct(&self) -> f64 {
        share(self.padding, self.real + self.padding)
    }

    fn numbers(&self) -> Vec<Evidence> {
        let mut numbers = vec![
            evidence("padding_of_tokens_in_graphs", self.padding_pct(), "%"),
            count("captured_sizes", self.sizes.len() as u64, "sizes"),
            count("steps_in_graphs", self.steps, "steps"),
        ];
        if self.unused.1 > 0 {
            numbers.push(count("captured_graphs_never_used", self.unused.0, "graphs"));
            numbers.push(evidence("time_to_capture", self.capture_sec, "s"));
        }
        numbers
    }

    fn change(&self, sizes: &[u64]) -> Change {
        Change::new(CAPTURE_SIZES, Direction::Set)
            .to(list(sizes))
            .from(Some(list(&self.sizes)))
            .note("offline, and in vLLM 0.11.0: cudagraph_capture_sizes in the compilation config")
    }
}

fn proofs() -> Vec<Proof> {
    vec![
        proof("cuda_graph_usage.csv", "padding_pct"),
        proof("cuda_graph_timeline.csv", "real_tokens"),
        proof("cuda_graph_captures.csv", "num_tokens"),
    ]
}

/// Sizes to capture that fit the batches better than those that were captured.
pub(super) fn judge(graphs: &Graphs<'_>) -> Option<Finding> {
    let captured = Captured::of(graphs)?;
    wasteful(&captured).or_else(|| too_many(&captured))
}

fn wasteful(captured: &Captured<'_>) -> Option<Finding> {
    let proposal = captured.proposal();
    if captured.padding_pct() < PADDING_PCT
        || proposal.saved * 2 < captured.padding
        || proposal.time_pct.is_some_and(|percent| percent < SAVED_TIME_PCT)
    {
        return None;
    }
    let mut evidence = captured.numbers();
    evidence.push(super::evidence("padding_with_the_proposed_sizes", proposal.padding_pct, "%"));
    evidence.push(count("padding_tokens_saved", once(captured.graphs.summary, proposal.saved), "tokens"));
    evidence.extend(maybe("time_in_graphs_saved", proposal.time_pct, "%"));
    let number = format!("{} sizes instead of {}", proposal.sizes.len(), captured.sizes.len());
    let (severity, confidence, expect) = match proposal.time_pct {
        Some(percent) => (
            Severity::Warning,
            Confidence::new(
                Level::Medium,
                "padding is counted; the time that it costs is taken from the mean times of graphs of other sizes",
            ),
            format!("About {percent:.1} % less time in CUDA graphs, with {number}."),
        ),
        None => (
            Severity::Info,
            Confidence::new(Level::Low, "padding is counted; too few graphs were timed to say what it costs"),
            "Less padding with no more graphs than now. Where decoding waits for memory, it costs little."
                .to_owned(),
        ),
    };
    Some(Finding {
        id: "capture-sizes-do-not-fit",
        subject: Subject::CudaGraphs,
        severity,
        confidence,
        title: format!(
            "{:.1} % of the tokens in CUDA graphs are padding; with sizes that fit the batches it is {:.1} %",
            captured.padding_pct(),
            proposal.padding_pct
        ),
        evidence,
        changes: vec![captured.change(&proposal.sizes)],
        expect,
        proof: proofs(),
    })
}

fn too_many(captured: &Captured<'_>) -> Option<Finding> {
    let (unused, all) = captured.unused;
    let sizes = captured.fitting(captured.padding);
    if all == 0
        || share(unused, all) < UNUSED_PCT
        || captured.capture_sec < CAPTURE_SEC
        || captured.steps < LEAST_STEPS_FOR_UNUSED
        || sizes.len() >= captured.sizes.len()
    {
        return None;
    }
    let fewer = 1.0 - sizes.len() as f64 / captured.sizes.len() as f64;
    Some(Finding {
        id: "cuda-graphs-unused",
        subject: Subject::CudaGraphs,
        severity: Severity::Info,
        confidence: Confidence::new(
            Level::Medium,
            "another load may have batches of the sizes that this one had not",
        ),
        title: format!("{unused} of {all} captured CUDA graphs were never used"),
        evidence: captured.numbers(),
        changes: vec![captured.change(&sizes)],
        expect: format!(
            "The server starts faster, by up to {:.0} s of {:.0} s for captures, and graphs take less memory. Steps take \
             as long as before.",
            captured.capture_sec * fewer,
            captured.capture_sec
        ),
        proof: proofs(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_sizes_that_save_most_are_added_first() {
        let batches = [(9, 100), (20, 50), (33, 1)];
        // 1, 2, 4, …, 64: padding 7·100 + 12·50 + 31.
        assert_eq!(padding(&batches, &[1, 2, 4, 8, 16, 32, 64]), 1331);
        assert_eq!(fitting(&batches, 64, 1, 8, 0), [1, 2, 4, 8, 9, 16, 32, 64]);
        assert_eq!(fitting(&batches, 64, 1, 9, 0), [1, 2, 4, 8, 9, 16, 20, 32, 64]);
        assert_eq!(fitting(&batches, 64, 1, 64, 31), [1, 2, 4, 8, 9, 16, 20, 32, 64]);
        // With drafts, sizes are multiples of the tokens of a sequence.
        assert_eq!(fitting(&[(9, 10), (15, 10)], 48, 3, 64, 0), [3, 6, 9, 12, 15, 24, 48]);
    }

    #[test]
    fn the_slope_is_that_of_the_times() {
        let usage = |tokens: u64, mean_us: u64| {
            let mut samples = crate::statistics::Samples::default();
            (0..20).for_each(|_| samples.push(mean_us * 1000));
            Usage {
                descriptor: format!("FULL num_tokens={tokens}"),
                count: 20,
                real_tokens: 1,
                padding_tokens: 0,
                times: samples.statistics(),
            }
        };
        let slope = ms_per_token(&[usage(8, 1500), usage(16, 2500), usage(32, 4500)]).unwrap();
        assert!((slope - 0.125).abs() < 1e-9, "{slope}");
        assert_eq!(ms_per_token(&[usage(8, 1500), usage(16, 2500)]), None);
        // Faster with more tokens is noise: nothing is saved by fewer.
        assert_eq!(ms_per_token(&[usage(8, 3000), usage(16, 2000), usage(32, 1000)]), Some(0.0));
    }

    proptest! {
        #[test]
        fn proposed_sizes_hold_every_batch_and_pad_no_more_than_powers_of_two(
            batches in prop::collection::btree_map(1u64..512, 1u64..1000, 1..60),
            multiple in 1u64..6,
            most in 8usize..64,
        ) {
            let batches: Vec<(u64, u64)> = batches.into_iter().collect();
            let largest = 512u64.next_multiple_of(multiple);
            let sizes = fitting(&batches, largest, multiple, most, 0);
            prop_assert_eq!(sizes.last(), Some(&largest));
            prop_assert!(sizes.is_sorted() && sizes.iter().all(|size| size % multiple == 0));
            let base = fitting(&batches, largest, multiple, 0, 0);
            prop_assert!(sizes.len() <= most.max(base.len()));
            prop_assert!(padding(&batches, &sizes) <= padding(&batches, &base));
            // As many sizes as there are batches leave no padding but that of the multiple.
            let all = fitting(&batches, largest, multiple, usize::MAX, 0);
            let rest: u64 = batches.iter().map(|(t, s)| (t.next_multiple_of(multiple) - t) * s).sum();
            prop_assert_eq!(padding(&batches, &all), rest);
        }
    }
}
