//! Why a step took longer than usual.
//!
//! 1. *Usual* is what decode steps take, for a step with decode tokens: of its number of decoding sequences where it also has a
//!    prompt in it, of all otherwise; for a prefill step, what prefill steps take. Or what steps of its own size take, if that is less.
//! 2. What steps of its own phase and size take more than that is explained by its **work**: prefill mixed in, recompute, or just
//!    more tokens than usual.
//! 3. What it took more than those is explained by what happened in it. Each cause is looked for where it acts (a garbage
//!    collection cannot make a GPU's kernels longer), gets no more than that part of the step is longer than usual, and takes from
//!    what the ones before it left. So all verdicts together never explain more than the excess.
//! 4. What is left is said to be so, with the part of the step where it lies; **unknown**, if that is more than half of the excess.

use super::recording::{Blocker, New, Part, Recording, Step, Stopped};
use super::usual::{AllUsual, LEAST_MS, Usual, size};
use crate::steps::Phase;

/// Share of the excess that a cause has to explain to be named.
pub(super) const LEAST_SHARE: f64 = 0.1;

/// Share of the excess that has to be explained, or the step is unknown.
pub(super) const EXPLAINED_SHARE: f64 = 0.5;

/// Share of the other steps of a kind that may take as long as the first one, for that to be an exception.
const EXCEPTION_SHARE: f64 = 0.05;

/// Share of the steps of a kind that have to use CUDA graphs more than a step does, for that to be a miss.
const OTHERS_REPLAY_SHARE: f64 = 0.5;

/// Why a step took longer.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// Tokens of prompts were computed beside the decoding.
    PrefillMixedIn {
        /// Those tokens, without those of [`Verdict::Recompute`].
        tokens: u32,
        /// Sequences that they belong to.
        sequences: u32,
    },
    /// Tokens of preempted requests were computed again.
    Recompute {
        /// Those tokens.
        tokens: u32,
        /// Requests that came back.
        requests: u32,
    },
    /// A larger batch of the same phase.
    MoreWork {
        /// Tokens, and what is usual.
        tokens: (u32, f64),
        /// Sequences, and what is usual.
        sequences: (u32, f64),
    },
    /// Something that is no work for requests: compilation, warm-up, the capture of a graph.
    WarmUp {
        /// vLLM's method, or `graph_capture`.
        what: String,
        /// The process.
        process: String,
        /// How long it stopped the step, milliseconds.
        ms: f64,
    },
    /// Python's garbage collector stopped a process of the step.
    GarbageCollection {
        /// Collections.
        count: u32,
        /// Together, milliseconds.
        ms: f64,
        /// The longest, milliseconds.
        longest_ms: f64,
        /// Generation of the longest.
        generation: u32,
        /// Process of the longest.
        process: String,
    },
    /// The first step of its size or descriptor; the later ones are quicker.
    FirstUse {
        /// What was new.
        what: New,
    },
    /// It used CUDA graphs less than most steps of its size.
    GraphMiss {
        /// How it was run: `NONE` or `PIECEWISE`.
        mode: &'static str,
        /// How most others are.
        usual_mode: &'static str,
        /// Their share, 0-100.
        usual_pct: f64,
    },
    /// Requests were preempted while it was made.
    Preemption {
        /// How many.
        requests: u32,
    },
    /// Cached KV blocks had to be emptied for it.
    KvEviction {
        /// How many.
        blocks: u32,
        /// How many usually.
        usual_blocks: f64,
    },
    /// One worker's forward pass was longer than the others'.
    SlowRank {
        /// That worker.
        process: String,
        /// Longer than the mean of the others, milliseconds.
        gap_ms: f64,
        /// How much longer the slowest one's usually is, milliseconds.
        usual_gap_ms: f64,
    },
    /// The model waited for the host: the GPU was idle, or the engine came late to its scheduler.
    LateScheduling {
        /// How long, milliseconds.
        ms: f64,
        /// How long usually, milliseconds.
        usual_ms: f64,
        /// What the host did longer than usual before the forward pass, and by how many milliseconds.
        longest: Option<(Part, f64)>,
    },
    /// The results were there, and the engine was busy with another step in flight before it took them.
    OtherStep {
        /// What with.
        blocker: Blocker,
        /// That step's phase and its tokens, and those of prompts; `None` if they are not known.
        work: Option<(Phase, u32, u32)>,
        /// How long they lay there, milliseconds.
        ms: f64,
        /// How long usually, milliseconds.
        usual_ms: f64,
    },
    /// What the others leave, and where it lies.
    Other(Option<Located>),
    /// Most of it is not explained; where it lies.
    Unknown(Option<Located>),
}

/// The part of a step that was longer than usual.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Located {
    /// Which.
    pub part: Part,
    /// How long it was, milliseconds.
    pub ms: f64,
    /// How long it usually is, milliseconds.
    pub usual_ms: f64,
}

impl Verdict {
    /// Its name.
    pub fn text(&self) -> &'static str {
        match self {
            Self::PrefillMixedIn { .. } => "prefill_mixed_in",
            Self::Recompute { .. } => "recompute",
            Self::MoreWork { .. } => "more_work",
            Self::WarmUp { .. } => "warm_up",
            Self::GarbageCollection { .. } => "garbage_collection",
            Self::FirstUse { .. } => "first_use",
            Self::GraphMiss { .. } => "cuda_graph_miss",
            Self::Preemption { .. } => "preemption",
            Self::KvEviction { .. } => "kv_eviction",
            Self::SlowRank { .. } => "slow_rank",
            Self::LateScheduling { .. } => "late_scheduling",
            Self::OtherStep { .. } => "other_step",
            Self::Other(_) => "other",
            Self::Unknown(_) => "unknown",
        }
    }
}

/// A verdict and what it explains.
#[derive(Debug, Clone, PartialEq)]
pub struct Cause {
    /// Why.
    pub verdict: Verdict,
    /// How much of the excess that is, milliseconds.
    pub explains_ms: f64,
}

/// Whether a step was slow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// It took longer than usual.
    Slow,
    /// It did not.
    AsUsual,
    /// There are too few steps to say what is usual.
    TooFew,
}

impl Status {
    /// Its name.
    pub fn text(self) -> &'static str {
        match self {
            Self::Slow => "slow",
            Self::AsUsual => "as_usual",
            Self::TooFew => "too_few_steps",
        }
    }
}

/// What is said of one step.
#[derive(Debug, Clone)]
pub struct Explanation<'a> {
    /// The step.
    pub step: &'a Step,
    /// Its phase.
    pub phase: Phase,
    /// The engine: `engine_core-0`.
    pub process: &'a str,
    /// What the batch was dispatched as.
    pub descriptor: Option<&'a str>,
    /// How long it took, milliseconds.
    pub ms: f64,
    /// Whether that is slow.
    pub status: Status,
    /// What is usual, milliseconds.
    pub usual_ms: Option<f64>,
    /// Up to how long is usual, milliseconds.
    pub usual_up_to_ms: Option<f64>,
    /// How much longer it took, milliseconds; 0 if it did not.
    pub excess_ms: f64,
    /// The steps that say what is usual.
    pub usual: Option<&'a Usual>,
    /// Those of its own phase and size.
    pub similar: Option<&'a Usual>,
    /// What those take, or what its tokens cost elsewhere; milliseconds.
    pub expected_ms: Option<f64>,
    /// Why it took longer, the greatest first; what is left comes last. Together they explain no more than the excess, and less of it
    /// only by what is too little to be named.
    pub causes: Vec<Cause>,
}

impl Explanation<'_> {
    /// What a part of steps like this one usually takes, milliseconds.
    pub fn usual_part(&self, part: Part) -> Option<f64> {
        let usual = self.similar.or(self.usual.filter(|usual| usual.phase == self.phase))?;
        Some(usual.part(part)?.median)
    }
}

/// How much CUDA graphs are used, by a descriptor: 0 = not at all.
pub(super) fn mode(descriptor: &str) -> Option<u8> {
    match descriptor.split(' ').next() {
        Some("NONE") => Some(0),
        Some("PIECEWISE") => Some(1),
        Some("FULL") => Some(2),
        _ => None,
    }
}

fn mode_text(mode: u8) -> &'static str {
    ["NONE", "PIECEWISE", "FULL"].get(usize::from(mode)).copied().unwrap_or("")
}

/// What is left of the excess to be explained.
#[derive(Debug, Clone, Copy)]
struct Left {
    /// On the GPU: its kernels took longer.
    device: f64,
    /// The rest.
    host: f64,
    /// A cause that explains less is not named.
    least: f64,
}

impl Left {
    /// Takes what the host took longer, at most so much.
    fn host(&mut self, ms: f64) -> Option<f64> {
        let taken = ms.min(self.host);
        (taken >= self.least).then(|| {
            self.host -= taken;
            taken
        })
    }

    /// Takes what the forward pass took longer.
    fn forward(&mut self, ms: f64) -> Option<f64> {
        let taken = ms.min(self.device + self.host);
        (taken >= self.least).then(|| {
            let on_device = taken.min(self.device);
            self.device -= on_device;
            self.host -= taken - on_device;
            taken
        })
    }
}

/// What a step is compared with.
#[derive(Debug, Clone, Copy)]
struct Baseline<'a> {
    usual: &'a Usual,
    usual_ms: f64,
    similar: Option<&'a Usual>,
    expected_ms: Option<f64>,
    /// Longer is slow.
    up_to_ms: f64,
    is_slow: bool,
}

/// Everything to explain steps with.
#[derive(Debug)]
pub struct Explainer<'a> {
    recording: &'a Recording,
    usual: AllUsual,
}

impl<'a> Explainer<'a> {
    /// Finds out what is usual in this recording.
    pub fn new(recording: &'a Recording) -> Self {
        let usual = AllUsual::of(&recording.steps, |step| mode(recording.name(step.descriptor)));
        Self { recording, usual }
    }

    /// The recording.
    pub fn recording(&self) -> &'a Recording {
        self.recording
    }

    /// The steps with this number: one of each engine that has one.
    pub fn step(&self, number: u64) -> Vec<Explanation<'_>> {
        let steps = self.recording.steps.iter().filter(|step| step.number == number);
        steps.filter_map(|step| self.explain(step)).collect()
    }

    /// The steps that took the most longer than usual, the slowest first.
    pub fn slowest(&self, count: usize) -> Vec<Explanation<'_>> {
        self.slowest_of(self.recording.steps.iter(), count)
    }

    pub(super) fn slowest_of<'s>(
        &'s self,
        steps: impl Iterator<Item = &'s Step>,
        count: usize,
    ) -> Vec<Explanation<'s>> {
        let mut slow: Vec<(f64, &Step)> = steps
            .filter_map(|step| {
                let base = self.baseline(step)?;
                Some((step.ms()? - base.usual_ms, step)).filter(|_| base.is_slow)
            })
            .collect();
        slow.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.began_ns.cmp(&b.1.began_ns)));
        slow.into_iter().take(count).filter_map(|(_, step)| self.explain(step)).collect()
    }

    /// How many steps took longer than usual, and how much longer together, milliseconds.
    pub fn slow(&self) -> (usize, f64) {
        self.slow_of(self.recording.steps.iter())
    }

    pub(super) fn slow_of<'s>(&self, steps: impl Iterator<Item = &'s Step>) -> (usize, f64) {
        steps.fold((0, 0.0), |(count, excess), step| {
            match (self.baseline(step).filter(|base| base.is_slow), step.ms()) {
                (Some(base), Some(ms)) => (count + 1, excess + ms - base.usual_ms),
                _ => (count, excess),
            }
        })
    }

    fn baseline<'s>(&'s self, step: &Step) -> Option<Baseline<'s>> {
        let (phase, ms) = (step.phase()?, step.ms()?);
        let after_idle = step.after_idle;
        let similar = self.usual.get(phase, Some(step.num_tokens), after_idle);
        let usual = match phase {
            Phase::Mixed => {
                let decoding = step.num_seqs.saturating_sub(step.prefill_seqs).max(1);
                let as_decode = self.usual.get(Phase::Decode, Some(decoding), false);
                as_decode.or_else(|| self.usual.get(Phase::Decode, None, false))
            }
            Phase::Prefill | Phase::Decode => self.usual.get(phase, None, after_idle),
        };
        let usual = usual.or_else(|| self.usual.get(phase, None, after_idle))?;
        let (expected_ms, margin) = if let Some(similar) = similar {
            (Some(similar.time.median), similar.time.margin())
        } else if let Some(cost) = self.usual.per_prompt_token(phase) {
            let tokens = f64::from(step.prefill_tokens);
            let base = if phase == Phase::Mixed { usual.time.median } else { 0.0 };
            (Some(base + tokens * cost.median), cost.times_margin(tokens))
        } else {
            (None, 0.0)
        };
        let usual_ms = expected_ms.map_or(usual.time.median, |expected| expected.min(usual.time.median));
        let whole_up_to_ms = usual.time.median + usual.time.margin();
        let up_to_ms = expected_ms.map_or(whole_up_to_ms, |expected| whole_up_to_ms.min(expected + margin));
        Some(Baseline { usual, usual_ms, similar, expected_ms, up_to_ms, is_slow: ms > up_to_ms })
    }

    /// Explains a step; `None` if it had no work or was not over.
    pub fn explain<'s>(&'s self, step: &'s Step) -> Option<Explanation<'s>> {
        let (phase, ms) = (step.phase()?, step.ms()?);
        let mut explanation = Explanation {
            step,
            phase,
            process: self.recording.engine(step),
            descriptor: Some(self.recording.name(step.descriptor)).filter(|text| !text.is_empty()),
            ms,
            status: Status::TooFew,
            usual_ms: None,
            usual_up_to_ms: None,
            excess_ms: 0.0,
            usual: None,
            similar: None,
            expected_ms: None,
            causes: Vec::new(),
        };
        let Some(base) = self.baseline(step) else { return Some(explanation) };
        explanation.usual_ms = Some(base.usual_ms);
        explanation.usual_up_to_ms = Some(base.up_to_ms);
        explanation.usual = Some(base.usual);
        explanation.similar = base.similar;
        explanation.expected_ms = base.expected_ms;
        explanation.excess_ms = (ms - base.usual_ms).max(0.0);
        explanation.status = if base.is_slow { Status::Slow } else { Status::AsUsual };
        if base.is_slow {
            explanation.causes = self.causes(step, phase, &base, explanation.excess_ms);
        }
        Some(explanation)
    }

    fn causes(&self, step: &Step, phase: Phase, base: &Baseline<'_>, excess_ms: f64) -> Vec<Cause> {
        let least = (LEAST_SHARE * excess_ms).max(LEAST_MS);
        let mut causes = Vec::new();
        let mut left_ms = excess_ms;
        // What the GPU did before the step's time began made it no longer.
        let own_ms = step.until_ready.ms().map_or(f64::INFINITY, |ready_ms| {
            (ready_ms - base.usual.until_ready.map_or(0.0, |usual| usual.median)).max(0.0)
        });
        let more_work_ms = base.expected_ms.map_or(0.0, |expected| expected - base.usual_ms);
        let work_ms = more_work_ms.min(own_ms).clamp(0.0, excess_ms);
        for (verdict, ms) in work(step, phase, base, work_ms) {
            if ms >= least {
                causes.push(Cause { verdict, explains_ms: ms });
                left_ms -= ms;
            }
        }
        // What was too little to be named stays unexplained.
        let comparable = base.similar.or(Some(base.usual).filter(|usual| usual.phase == phase));
        // No more than what passed until it was ready is because of the GPU.
        let inside_ms = step.gpu_inside.ms().unwrap_or(f64::INFINITY).min(own_ms - work_ms);
        let device = comparable
            .and_then(|usual| Some(step.gpu_busy.ms()? - usual.gpu_busy?.median))
            .filter(|_| base.similar.is_some())
            .map_or(0.0, |longer| longer.min(inside_ms).clamp(0.0, left_ms));
        let mut left = Left { device, host: left_ms - device, least };
        self.happenings(step, base, comparable, &mut left, &mut causes);
        causes.sort_by(|a, b| b.explains_ms.total_cmp(&a.explains_ms));
        let rest_ms = left.device + left.host;
        if rest_ms > (1.0 - EXPLAINED_SHARE) * excess_ms {
            causes.push(Cause { verdict: Verdict::Unknown(located(step, base)), explains_ms: rest_ms });
        } else if rest_ms >= least {
            causes.push(Cause { verdict: Verdict::Other(located(step, base)), explains_ms: rest_ms });
        }
        causes
    }

    /// What happened in a step that makes it longer than others like it.
    fn happenings(
        &self,
        step: &Step,
        base: &Baseline<'_>,
        comparable: Option<&Usual>,
        left: &mut Left,
        causes: &mut Vec<Cause>,
    ) {
        let mut add = |verdict: Verdict, ms: Option<f64>| {
            if let Some(explains_ms) = ms {
                causes.push(Cause { verdict, explains_ms });
            }
        };
        // By how much a part was longer than in comparable steps, if that is unusual.
        let longer =
            |part: Part| comparable.and_then(|usual| usual.part(part)?.excess(step.part(part)?)).unwrap_or(0.0);
        let forward_ms = if base.similar.is_some() { longer(Part::Forward) } else { 0.0 };
        let forward_ms = forward_ms.min(step.gpu_inside.ms().unwrap_or(f64::INFINITY));

        // By how much the parts of a step were longer that a stopped process can have made so.
        let stoppable = |stopped: &Stopped| {
            let Some(similar) = base.similar.filter(|_| !step.is_on_gpu) else { return f64::INFINITY };
            let parts = Part::ALL.into_iter().filter(|part| match part {
                Part::BatchPreparation | Part::Forward | Part::Sampling | Part::Bookkeeping => stopped.worker,
                Part::Other => true,
                _ => stopped.engine,
            });
            let more = |part: Part| Some((step.part(part)? - similar.part(part)?.median).max(0.0));
            parts.filter_map(more).sum()
        };
        let warm_up = &step.warm_up;
        if warm_up.count > 0 {
            let verdict = Verdict::WarmUp {
                what: self.recording.name(warm_up.what).to_owned(),
                process: self.recording.worker(warm_up.log).to_owned(),
                ms: warm_up.ms.into(),
            };
            add(verdict, left.forward(f64::from(warm_up.ms).min(stoppable(warm_up))));
        }
        let garbage = &step.garbage;
        if garbage.count > 0 {
            let usual_ms = comparable.and_then(|usual| usual.garbage).map_or(0.0, |usual| usual.median);
            let verdict = Verdict::GarbageCollection {
                count: garbage.count,
                ms: garbage.ms.into(),
                longest_ms: garbage.longest_ms.into(),
                generation: garbage.what,
                process: self.recording.engine_of_log(garbage.log).to_owned(),
            };
            let more_ms = (f64::from(garbage.ms) - usual_ms).max(0.0);
            add(verdict, left.host(more_ms.min(stoppable(garbage))));
        }
        if let Some(what) = step.new.filter(|_| base.similar.is_some() && self.is_the_exception(step, base)) {
            let first_ms = forward_ms + longer(Part::BatchPreparation) + longer(Part::Sampling);
            let bubble_ms = if step.is_on_gpu { longer(Part::GpuIdle) } else { 0.0 };
            let until_ready_ms = step.until_ready.ms().unwrap_or(f64::INFINITY);
            let first_ms = first_ms.max(forward_ms + bubble_ms).min(until_ready_ms);
            add(Verdict::FirstUse { what }, left.forward(first_ms));
        }
        if let Some(verdict) = base.similar.and_then(|similar| self.graph_miss(step, similar)) {
            add(verdict, left.forward(forward_ms));
        }
        let scheduling_ms = longer(Part::Scheduling).min(step.scheduling_inside.ms().unwrap_or(f64::INFINITY));
        let mut scheduling_left_ms = scheduling_ms;
        if step.preempted > 0 {
            let taken = left.host(scheduling_left_ms);
            scheduling_left_ms -= taken.unwrap_or(0.0);
            add(Verdict::Preemption { requests: step.preempted }, taken);
        }
        if let (Some(blocks), Some(usual)) = (step.evicted_blocks(), comparable.and_then(|usual| usual.evicted))
            && usual.excess_count(blocks.into()).is_some()
        {
            add(Verdict::KvEviction { blocks, usual_blocks: usual.median }, left.host(scheduling_left_ms));
        }
        if let (Some(gap_ms), Some(usual)) = (step.rank_gap(), base.similar.and_then(|similar| similar.rank_gap))
            && let Some(more_ms) = usual.excess(gap_ms)
        {
            let process = self.recording.worker(step.slowest_log_number()).to_owned();
            let verdict = Verdict::SlowRank { process, gap_ms, usual_gap_ms: usual.median };
            add(verdict, left.forward(more_ms.min(forward_ms)));
        }
        if let Some((verdict, more_ms)) = self.other_step(step, base) {
            add(verdict, left.host(more_ms));
        }
        let bubble = if step.is_on_gpu { Part::GpuIdle } else { Part::BetweenSteps };
        let bubble_ms = longer(bubble);
        if bubble_ms > 0.0 {
            let before = [Part::BetweenSteps, Part::OutputProcessing, Part::Scheduling, Part::BatchPreparation];
            let verdict = Verdict::LateScheduling {
                ms: step.part(bubble).unwrap_or(0.0),
                usual_ms: comparable.and_then(|usual| usual.part(bubble)).map_or(0.0, |usual| usual.median),
                longest: before
                    .into_iter()
                    .map(|part| (part, longer(part)))
                    .filter(|(part, ms)| *ms > 0.0 && *part != bubble)
                    .max_by(|a, b| a.1.total_cmp(&b.1)),
            };
            add(verdict, left.host(bubble_ms));
        }
    }

    /// How much longer than usual its results lay there. Usual is the lesser of what is compared with, as for its time.
    fn other_step(&self, step: &Step, base: &Baseline<'_>) -> Option<(Verdict, f64)> {
        let (blocker, ms) = (step.blocker?, step.part(Part::OtherStep)?);
        let usual = [Some(base.usual), base.similar].into_iter().flatten();
        let usual =
            usual.filter_map(|usual| usual.part(Part::OtherStep)).min_by(|a, b| a.median.total_cmp(&b.median));
        let more_ms = usual.map_or(Some(ms), |usual| usual.excess(ms))?;
        let other =
            self.recording.steps.iter().find(|other| (other.log, other.number) == (step.log, blocker.number));
        let work = other.and_then(|other| Some((other.phase()?, other.num_tokens, other.prefill_tokens)));
        let usual_ms = usual.map_or(0.0, |usual| usual.median);
        Some((Verdict::OtherStep { blocker, work, ms, usual_ms }, more_ms))
    }

    /// Whether nearly no other step of its phase and size took as long.
    fn is_the_exception(&self, step: &Step, base: &Baseline<'_>) -> bool {
        let (Some(phase), Some(ms)) = (step.phase(), step.ms()) else { return false };
        let as_long_ms = f64::midpoint(base.usual_ms, ms);
        let others = self.recording.steps.iter().filter(|other| {
            other.phase() == Some(phase)
                && size(other.num_tokens) == size(step.num_tokens)
                && (other.log, other.number) != (step.log, step.number)
        });
        let (all, as_long) = others.fold((0.0, 0.0), |(all, as_long), other| {
            (all + 1.0, as_long + f64::from(u8::from(other.ms().is_some_and(|ms| ms >= as_long_ms))))
        });
        as_long <= EXCEPTION_SHARE * all
    }

    fn graph_miss(&self, step: &Step, similar: &Usual) -> Option<Verdict> {
        let own = mode(self.recording.name(step.descriptor))?;
        let (usual, _) = *similar.modes.first().filter(|(usual, _)| own < *usual)?;
        let all: usize = similar.modes.iter().map(|(_, count)| count).sum();
        let more: usize = similar.modes.iter().filter(|(mode, _)| *mode > own).map(|(_, count)| count).sum();
        let share = more as f64 / all as f64;
        (share > OTHERS_REPLAY_SHARE).then(|| Verdict::GraphMiss {
            mode: mode_text(own),
            usual_mode: mode_text(usual),
            usual_pct: 100.0 * share,
        })
    }
}

/// How its work explains what steps like it take more than usual.
fn work(step: &Step, phase: Phase, base: &Baseline<'_>, work_ms: f64) -> Vec<(Verdict, f64)> {
    let recomputed = step.recomputed_tokens.min(step.prefill_tokens);
    let mut found = Vec::new();
    if recomputed > 0 {
        let ms = work_ms * f64::from(recomputed) / f64::from(step.prefill_tokens);
        found.push((Verdict::Recompute { tokens: recomputed, requests: step.resumed }, ms));
    }
    let rest_ms = work_ms - found.iter().map(|(_, ms)| ms).sum::<f64>();
    let verdict = if phase == Phase::Mixed && base.usual.phase == Phase::Decode {
        Verdict::PrefillMixedIn {
            tokens: step.prefill_tokens - recomputed,
            sequences: step.prefill_seqs.saturating_sub(step.resumed.min(step.prefill_seqs)),
        }
    } else {
        Verdict::MoreWork {
            tokens: (step.num_tokens, base.usual.median_tokens),
            sequences: (step.num_seqs, base.usual.median_seqs),
        }
    };
    found.push((verdict, rest_ms));
    found
}

/// The part that was the most longer than usual.
fn located(step: &Step, base: &Baseline<'_>) -> Option<Located> {
    let usual = base.similar?;
    let waits_for_gpu = step.is_on_gpu && step.part(Part::GpuIdle).is_some();
    let longer_ms = |located: &Located| {
        let longer_ms = located.ms - located.usual_ms;
        match (located.part, step.gpu_inside.ms()) {
            // What the GPU did before the step's time began made it no longer.
            (Part::Forward | Part::Sampling, Some(inside_ms)) => longer_ms.min(inside_ms),
            _ => longer_ms,
        }
    };
    Part::ALL
        .into_iter()
        .filter(|part| match part {
            // It has a verdict of its own.
            Part::OtherStep => false,
            Part::GpuIdle | Part::Forward | Part::Sampling | Part::Other => true,
            Part::UpdateFromOutput if step.until_ready.ms().is_some() => true,
            // What the host does while the GPU works is no part of the time that passes.
            _ => !waits_for_gpu,
        })
        .filter_map(|part| {
            let (ms, usual_ms) = (step.part(part)?, usual.part(part)?.median);
            Some(Located { part, ms, usual_ms }).filter(|located| longer_ms(located) > LEAST_MS)
        })
        .max_by(|a, b| longer_ms(a).total_cmp(&longer_ms(b)))
}
