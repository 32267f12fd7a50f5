//! Workers of one engine against each other.
//!
//! In tensor parallelism every pass has all-reduces, in which ranks wait for the last one: who is early has the longer pass, and
//! the times of passes hide who is slow. So it is the beginnings that tell a late rank, and its own idle time.

use super::{
    Change, Confidence, Direction, Evidence, Finding, Found, Level, Severity, Subject, count, evidence, proof,
    settings, share,
};
use crate::Answers;
use crate::ranks::{Rank, Skew};

/// Fewer steps say nothing.
pub const LEAST_STEPS: u64 = 200;

/// Share of a forward pass that ranks begin apart, or that others wait, from which it matters, percent.
pub const SKEW_PCT: f64 = 10.0;

/// Share of the steps in which it must be the same rank, percent.
pub const SAME_RANK_PCT: f64 = 70.0;

/// How much more of decoding a late rank's GPU must be idle than the least idle one, percent. A host that runs ahead of its GPU may
/// begin late for nothing.
pub const MORE_IDLE_PCT: f64 = 5.0;

pub(super) fn judge(answers: &Answers, found: &mut Found) {
    let judged: Vec<&Skew> = answers
        .ranks
        .iter()
        .filter(|skew| skew.steps >= LEAST_STEPS && !skew.are_stages && skew.ranks.len() > 1)
        .collect();
    if judged.is_empty() {
        if answers.ranks.is_empty() {
            return found.not_there(Subject::Ranks, "no engine has several workers whose passes are known");
        }
        if answers.ranks.iter().all(|skew| skew.are_stages) {
            return found.not_there(Subject::Ranks, "the workers are stages of a pipeline");
        }
        let steps = answers.ranks.iter().map(|skew| skew.steps).max().unwrap_or(0);
        return found.not_judged(Subject::Ranks, format!("{steps} steps of all ranks, {LEAST_STEPS} are needed"));
    }
    // One engine stands for all: the worst.
    let late = judged.iter().filter_map(|skew| Some((late(answers, skew)?, skew)));
    let late = late.max_by(|a, b| a.0.of_pass_pct.total_cmp(&b.0.of_pass_pct));
    if let Some((late, skew)) = late {
        return found.push(rank_is_late(answers, skew, &late));
    }
    let uneven = judged.iter().filter_map(|skew| Some((uneven(skew)?, skew)));
    if let Some(((rank, waiting_pct), skew)) = uneven.max_by(|a, b| a.0.1.total_cmp(&b.0.1)) {
        found.push(load_is_uneven(answers, skew, rank, waiting_pct));
    }
}

/// A rank whose host begins late.
struct Late<'a> {
    rank: &'a Rank,
    /// How late, in percent of the longest mean pass.
    of_pass_pct: f64,
    /// Idle time of its GPU in decoding, percent; `None` = not known.
    idle_pct: Option<f64>,
}

fn longest_ms(skew: &Skew) -> Option<f64> {
    skew.ranks.iter().map(|rank| rank.mean_forward_ms).reduce(f64::max).filter(|ms| *ms > 0.0)
}

fn late<'a>(answers: &Answers, skew: &'a Skew) -> Option<Late<'a>> {
    let rank = skew.ranks.iter().max_by_key(|rank| rank.last_steps)?;
    let late_pct = 100.0 * rank.mean_late_ms / longest_ms(skew)?;
    if share(rank.last_steps, skew.steps) < SAME_RANK_PCT || late_pct < SKEW_PCT {
        return None;
    }
    let idle = |of: &Rank| answers.gpu.iter().find(|gpu| gpu.process == of.process)?.decoding.idle_pct();
    let idle_pct = idle(rank);
    let least = skew.ranks.iter().filter_map(idle).reduce(f64::min);
    if let (Some(idle_pct), Some(least)) = (idle_pct, least)
        && idle_pct < least + MORE_IDLE_PCT
    {
        return None;
    }
    Some(Late { rank, of_pass_pct: late_pct, idle_pct })
}

fn numbers(skew: &Skew, rank: &Rank) -> Vec<Evidence> {
    vec![
        count("rank", rank.rank.into(), "rank"),
        evidence("mean_time_behind_the_first_rank", rank.mean_late_ms, "ms"),
        evidence("steps_in_which_it_began_last", share(rank.last_steps, skew.steps), "%"),
        evidence("steps_in_which_it_took_longest", share(rank.slowest_steps, skew.steps), "%"),
        evidence("its_mean_forward_time", rank.mean_forward_ms, "ms"),
        evidence("median_skew_of_forward_times", skew.skew_ms.p50, "ms"),
        count("steps", skew.steps, "steps"),
    ]
}

fn rank_is_late(answers: &Answers, skew: &Skew, late: &Late<'_>) -> Finding {
    let mut evidence = numbers(skew, late.rank);
    evidence.extend(late.idle_pct.map(|idle| super::evidence("its_gpu_idle_in_decoding", idle, "%")));
    let is_bound = settings::switch(&answers.facts, "--numa-bind");
    let change = Change::new("--numa-bind", Direction::Set)
        .from(is_bound.map(|on| if on { "True" } else { "False" }))
        .note("where this version of vLLM has it, and the machine has several NUMA nodes");
    Finding {
        id: "rank-late",
        subject: Subject::Ranks,
        severity: Severity::Warning,
        confidence: if late.idle_pct.is_some() {
            Confidence::new(
                Level::Medium,
                "the rank is late and its GPU idle, both measured; that binding helps is a guess",
            )
        } else {
            Confidence::new(Level::Low, "the rank is late; whether the others wait for it was not measured")
        },
        title: format!(
            "Rank {} begins its passes {:.2} ms after the first, {:.1} % of a pass, and the others wait for it",
            late.rank.rank, late.rank.mean_late_ms, late.of_pass_pct
        ),
        evidence,
        changes: if is_bound == Some(true) { vec![] } else { vec![change] },
        expect:
            "What keeps that worker's process is to be found: another process on its cores, memory on the other \
                 socket, work that only this rank does. Without it, steps are shorter by up to that time."
                .to_owned(),
        proof: vec![
            proof("breakdown.json", "ranks"),
            proof("forward_pass_timing.csv", "timestamp_sec"),
            proof("forward_pass_timing.csv", "gpu_idle_before_ms"),
        ],
    }
}

/// A rank that takes longer than the others although it does not begin before them, and the time that the others wait, percent.
fn uneven(skew: &Skew) -> Option<(&Rank, f64)> {
    let waiting_pct = skew.waiting_pct.filter(|waiting| *waiting >= SKEW_PCT)?;
    let rank = skew.ranks.iter().max_by_key(|rank| rank.slowest_steps)?;
    // Who begins first waits for the others in the first all-reduce: its pass is long for that.
    let last_ms = skew.ranks.iter().map(|rank| rank.mean_late_ms).reduce(f64::max)?;
    let is_first = 100.0 * (last_ms - rank.mean_late_ms) / longest_ms(skew)? >= SKEW_PCT / 2.0;
    (share(rank.slowest_steps, skew.steps) >= SAME_RANK_PCT && !is_first).then_some((rank, waiting_pct))
}

fn load_is_uneven(answers: &Answers, skew: &Skew, rank: &Rank, waiting_pct: f64) -> Finding {
    let has_experts = settings::switch(&answers.facts, "--enable-expert-parallel") == Some(true);
    let is_balanced = settings::switch(&answers.facts, "--enable-eplb") == Some(true);
    let mut evidence = numbers(skew, rank);
    evidence.insert(0, super::evidence("time_that_ranks_wait_for_the_longest_pass", waiting_pct, "%"));
    let change = Change::new("--enable-eplb", Direction::Set)
        .from(Some("False"))
        .note("it copies experts that are asked most, which takes memory");
    Finding {
        id: "rank-slow",
        subject: Subject::Ranks,
        severity: Severity::Warning,
        confidence: Confidence::new(Level::Low, "that the others wait until its pass ends is concluded"),
        title: format!(
            "Rank {} takes longest in {:.1} % of the steps, and the ranks wait {waiting_pct:.1} % of the time",
            rank.rank,
            share(rank.slowest_steps, skew.steps)
        ),
        evidence,
        changes: if has_experts && !is_balanced { vec![change] } else { vec![] },
        expect: "Passes take as long as that of the slowest rank: see its GPU's clock and temperature, and which \
                 experts it holds."
            .to_owned(),
        proof: vec![proof("breakdown.json", "ranks"), proof("forward_pass_timing.csv", "forward_time_ms")],
    }
}
