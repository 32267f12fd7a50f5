//! CUDA graphs: whether decoding runs in them, and whether the captured sizes fit the batches.

use std::collections::BTreeSet;

use super::{
    Change, Confidence, Direction, Evidence, Finding, Found, Level, Severity, Subject, capture_sizes, count,
    evidence, host, maybe, proof, settings, share,
};
use crate::Answers;
use crate::cuda_graphs::{BatchSize, Descriptor, Summary};

/// Fewer steps say nothing about a load.
pub const LEAST_STEPS: u64 = 200;

/// Share of decode steps in graphs under which coverage is low, percent.
pub const COVERAGE_PCT: f64 = 70.0;

pub(super) const CAPTURE_SIZES: &str = "--cudagraph-capture-sizes";
const LARGEST_SIZE: &str = "--max-cudagraph-capture-size";
const COMPILATION: &str = "--compilation-config";
const BOTH_MODES: &str = "'{\"cudagraph_mode\": \"FULL_AND_PIECEWISE\"}'";

/// Steps, counted once for all workers that ran them.
pub(super) fn once(graphs: &Summary, steps: u64) -> u64 {
    steps / graphs.workers.max(1)
}

/// What is known of a session's graphs, put together.
pub(super) struct Graphs<'a> {
    pub(super) summary: &'a Summary,
    /// Tokens of the graphs that there are, as far as they were captured or used.
    pub(super) captured: BTreeSet<u64>,
    decode_in_graph: u64,
    decode_eager: u64,
    steps: u64,
}

impl<'a> Graphs<'a> {
    fn of(summary: &'a Summary) -> Self {
        let descriptors = summary.captured.iter().map(|captured| &captured.descriptor);
        let used = summary.usage.iter().map(|usage| &usage.descriptor);
        let sum = |steps: fn(&BatchSize) -> u64| summary.sizes.iter().map(steps).sum();
        Self {
            summary,
            captured: descriptors.chain(used).filter_map(|text| graph_tokens(text)).collect(),
            decode_in_graph: sum(|size| size.decode_in_graph),
            decode_eager: sum(|size| size.decode_eager),
            steps: summary.usage.iter().map(|usage| usage.count).sum(),
        }
    }

    pub(super) fn largest(&self) -> Option<u64> {
        self.captured.last().copied()
    }

    fn numbers(&self, answers: &Answers) -> Vec<Evidence> {
        let decodes = self.decode_in_graph + self.decode_eager;
        let mut decodes_of = self.summary.sizes.iter().filter(|size| size.decode_in_graph + size.decode_eager > 0);
        [
            Some(evidence("decode_steps_in_graphs", share(self.decode_in_graph, decodes), "%")),
            maybe("all_steps_in_graphs", self.summary.coverage_pct(), "%"),
            Some(count("decode_steps", once(self.summary, decodes), "steps")),
            self.largest().map(|tokens| count("largest_captured_size", tokens, "tokens")),
            decodes_of.next_back().map(|size| count("largest_decode_batch", size.tokens.into(), "tokens")),
            maybe("gpu_idle_in_decoding", host::decoding(answers).and_then(|bubble| bubble.idle_pct()), "%"),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

/// Tokens of the graph with this descriptor; `None` for what runs without.
pub(super) fn graph_tokens(descriptor: &str) -> Option<u64> {
    let descriptor = Descriptor::parse(descriptor);
    descriptor.num_tokens.filter(|tokens| !descriptor.is_eager() && *tokens > 0)
}

pub(super) fn judge(answers: &Answers, found: &mut Found) {
    if answers.facts.gpu_name.is_none() {
        return found.not_there(Subject::CudaGraphs, "nothing was seen to run on a GPU");
    }
    let reason = match &answers.cuda_graphs {
        None => "cuda_graph_tracking was not on".to_owned(),
        Some(summary) => {
            let graphs = Graphs::of(summary);
            let steps = once(summary, graphs.steps);
            if steps >= LEAST_STEPS {
                found.0.findings.extend(judge_graphs(answers, &graphs));
                return;
            }
            format!("{steps} steps, {LEAST_STEPS} are needed")
        }
    };
    found.not_judged(Subject::CudaGraphs, reason);
}

fn judge_graphs(answers: &Answers, graphs: &Graphs<'_>) -> Vec<Finding> {
    if let Some(finding) = coverage(answers, graphs) {
        // What sizes would fit is seen once decoding runs in graphs.
        return vec![finding];
    }
    [mixed_eager(answers, graphs), capture_sizes::judge(graphs)].into_iter().flatten().collect()
}

/// Decoding runs without graphs.
///
/// Large steps with prompts run without by design: they keep the GPU busy for longer than launching them takes. So it is decode
/// steps whose coverage counts.
fn coverage(answers: &Answers, graphs: &Graphs<'_>) -> Option<Finding> {
    let decodes = graphs.decode_in_graph + graphs.decode_eager;
    let coverage_pct = share(graphs.decode_in_graph, decodes);
    if once(graphs.summary, decodes) < LEAST_STEPS || coverage_pct >= COVERAGE_PCT {
        return None;
    }
    let facts = &answers.facts;
    let over: u64 = graphs
        .summary
        .sizes
        .iter()
        .filter(|size| graphs.largest().is_some_and(|largest| u64::from(size.tokens) > largest))
        .map(|size| size.decode_eager)
        .sum();
    let mode = settings::setting(facts, "--cudagraph-mode");
    let (why, changes, confidence) = if graphs.captured.is_empty() {
        match (settings::switch(facts, "--enforce-eager"), mode) {
            (Some(true), _) => (
                "because --enforce-eager was given",
                vec![Change::new("--enforce-eager", Direction::Remove).from(Some("True"))],
                Confidence::new(Level::High, "the flag was given, and every step was seen to run without a graph"),
            ),
            (_, Some("NONE")) => (
                "because the mode of CUDA graphs is NONE",
                vec![Change::new(COMPILATION, Direction::Set).to(BOTH_MODES).from(Some("NONE"))],
                Confidence::new(
                    Level::Medium,
                    "vLLM may have chosen the mode itself, for a model that allows no other",
                ),
            ),
            (None, None) => (
                "and none was captured",
                vec![Change::new("--enforce-eager", Direction::Remove).note("if it was given")],
                Confidence::new(Level::Low, "the session does not say how vLLM was configured"),
            ),
            _ => (
                "and none was captured",
                vec![],
                Confidence::new(
                    Level::Low,
                    "no setting that is known to us prevents it: see what vLLM logs at its start",
                ),
            ),
        }
    } else if over * 2 >= graphs.decode_eager {
        let change = larger_graphs(answers, graphs)?;
        (
            "because batches are larger than the largest captured size",
            vec![change],
            Confidence::new(Level::High, "sizes of batches and of graphs were recorded"),
        )
    } else {
        let is_both = mode.is_none_or(|mode| mode == "FULL_AND_PIECEWISE");
        let change = (!is_both).then(|| Change::new(COMPILATION, Direction::Set).to(BOTH_MODES).from(mode));
        (
            "although graphs of their sizes were captured",
            change.into_iter().collect(),
            Confidence::new(Level::Low, "why vLLM did not use them is not recorded"),
        )
    };
    let mut evidence = graphs.numbers(answers);
    evidence.push(count("decode_steps_over_the_largest_size", once(graphs.summary, over), "steps"));
    Some(Finding {
        id: "cuda-graph-coverage-low",
        subject: Subject::CudaGraphs,
        severity: if graphs.captured.is_empty() { Severity::Critical } else { Severity::Warning },
        confidence,
        title: format!("{:.1} % of the decode steps run without a CUDA graph {why}", 100.0 - coverage_pct),
        evidence,
        changes,
        expect: "Decode steps no longer wait for the host to launch each kernel: time per output token falls, most for \
                 small models and batches. Graphs take memory and time at the start."
            .to_owned(),
        proof: vec![
            proof("cuda_graph_usage.csv", "runtime_mode"),
            proof("cuda_graph_timeline.csv", "real_tokens"),
            proof("cuda_graph_captures.csv", "num_tokens"),
        ],
    })
}

/// Graphs up to the largest batch of decodes.
fn larger_graphs(answers: &Answers, graphs: &Graphs<'_>) -> Option<Change> {
    let largest = graphs.summary.sizes.iter().rfind(|size| size.decode_in_graph + size.decode_eager > 0)?;
    let largest = u64::from(largest.tokens)
        .next_multiple_of(16)
        .next_multiple_of(capture_sizes::tokens_per_seq(graphs.summary));
    let current = graphs.largest();
    if settings::setting(&answers.facts, CAPTURE_SIZES).is_none() {
        return Some(Change::new(LARGEST_SIZE, Direction::Raise).to(largest).from(current));
    }
    // A list was given, and vLLM takes the two flags only if they agree.
    let mut captured = graphs.captured.clone();
    captured.insert(largest);
    Some(
        Change::new(CAPTURE_SIZES, Direction::Set)
            .to(capture_sizes::list(&captured.into_iter().collect::<Vec<_>>()))
            .note("the list that there is, and the largest batch"),
    )
}

/// Small steps with prompts run without a graph, although graphs of their sizes were captured.
fn mixed_eager(answers: &Answers, graphs: &Graphs<'_>) -> Option<Finding> {
    let largest = graphs.largest()?;
    let small = graphs.summary.sizes.iter().filter(|size| u64::from(size.tokens) <= largest);
    let (eager, in_graph) =
        small.fold((0, 0), |(eager, in_graph), size| (eager + size.other_eager, in_graph + size.other_in_graph));
    let coverage_pct = share(in_graph, in_graph + eager);
    let of_all_pct = share(eager, graphs.steps);
    if once(graphs.summary, in_graph + eager) < LEAST_STEPS || coverage_pct >= COVERAGE_PCT || of_all_pct < 10.0 {
        return None;
    }
    let mode = settings::setting(&answers.facts, "--cudagraph-mode");
    let is_decode_only = matches!(mode, Some("FULL_DECODE_ONLY"));
    let mut evidence = graphs.numbers(answers);
    evidence.push(super::evidence("small_steps_with_prompts_in_graphs", coverage_pct, "%"));
    evidence.push(super::evidence("of_all_steps_small_with_prompts_and_eager", of_all_pct, "%"));
    Some(Finding {
        id: "mixed-steps-eager",
        subject: Subject::CudaGraphs,
        severity: Severity::Warning,
        confidence: if is_decode_only {
            Confidence::new(Level::High, "the mode has graphs for decodes alone")
        } else {
            Confidence::new(Level::Low, "the mode may be the only one that this model and attention allow")
        },
        title: format!(
            "{of_all_pct:.1} % of the steps hold prompts, are small enough for a CUDA graph and run without one"
        ),
        evidence,
        changes: if matches!(mode, Some("FULL_AND_PIECEWISE")) {
            vec![]
        } else {
            vec![Change::new(COMPILATION, Direction::Set).to(BOTH_MODES).from(mode)]
        },
        expect: "Small steps with prompts run in pieces of graphs, so requests that decode beside them wait less."
            .to_owned(),
        proof: vec![
            proof("cuda_graph_timeline.csv", "descriptor"),
            proof("cuda_graph_timeline.csv", "real_tokens"),
        ],
    })
}
