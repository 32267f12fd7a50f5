//! Workers of one engine against each other, in the same steps: who is slow, who is late, and what the others wait.

use std::collections::BTreeMap;

use profilemate_session::{Component, Event, Name, Session};

use crate::forward::Pass;
use crate::statistics::{Distribution, Samples, milliseconds};
use crate::steps::Steps;

/// Most steps of which some ranks are still missing. Ranks work in step, give or take what is under way.
const PENDING: usize = 256;

/// One worker among those of its engine.
#[derive(Debug, Clone, PartialEq)]
pub struct Rank {
    /// The worker: `worker-0`.
    pub process: String,
    /// Its rank.
    pub rank: u32,
    /// Its process id.
    pub pid: u32,
    /// Mean forward time in the steps that all ranks have, milliseconds.
    pub mean_forward_ms: f64,
    /// Steps in which it had the longest pass; of several equal ones the lowest rank.
    pub slowest_steps: u64,
    /// Steps in which its host began the pass last.
    pub last_steps: u64,
    /// How much later than the first rank its host began the pass, on average, milliseconds.
    pub mean_late_ms: f64,
}

/// The workers of one engine, compared.
#[derive(Debug, Clone, PartialEq)]
pub struct Skew {
    /// The engine: `engine_core-0`.
    pub process: String,
    /// Its process id.
    pub pid: u32,
    /// Steps that all ranks have.
    pub steps: u64,
    /// Whether some ranks choose tokens and others never do: then they are stages of a pipeline, and the times of different
    /// stages say nothing about one another.
    pub are_stages: bool,
    /// Longest less shortest forward pass of each step, milliseconds.
    pub skew_ms: Distribution,
    /// Last less first beginning of the pass, by the hosts' clock, milliseconds.
    pub start_skew_ms: Distribution,
    /// Share of the ranks' time that is spent waiting for the longest pass, if all wait for it, 0-100; `None` when no time
    /// passed.
    pub waiting_pct: Option<f64>,
    /// The ranks, by rank.
    pub ranks: Vec<Rank>,
}

#[derive(Debug)]
struct Member {
    log: usize,
    samples: bool,
    forward_ns: u128,
    late_ns: u128,
    slowest: u64,
    last: u64,
}

/// The workers of one engine.
#[derive(Debug)]
struct Group {
    engine: usize,
    members: Vec<Member>,
    /// By step: when each member's pass began and how long it took, nanoseconds.
    pending: BTreeMap<u64, Vec<Option<(i64, u64)>>>,
    skews: Samples,
    start_skews: Samples,
    waited_ns: u128,
    whole_ns: u128,
}

#[derive(Debug)]
pub(crate) struct Collector {
    groups: Vec<Group>,
    /// Group and place in it, by log.
    places: Vec<Option<(usize, usize)>>,
}

impl Collector {
    pub(crate) fn new(session: &Session, steps: &Steps) -> Self {
        let mut by_engine: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (log, of) in session.logs.iter().enumerate() {
            if of.role(Component::Worker).is_some()
                && let Some(engine) = steps.engine_of(log)
            {
                by_engine.entry(engine).or_default().push(log);
            }
        }
        let mut places = vec![None; session.logs.len()];
        let mut groups: Vec<Group> = Vec::new();
        for (engine, logs) in by_engine {
            if logs.len() < 2 {
                continue;
            }
            for (place, log) in logs.iter().enumerate() {
                places[*log] = Some((groups.len(), place));
            }
            let member = |log| Member { log, samples: false, forward_ns: 0, late_ns: 0, slowest: 0, last: 0 };
            groups.push(Group {
                engine,
                members: logs.into_iter().map(member).collect(),
                pending: BTreeMap::new(),
                skews: Samples::default(),
                start_skews: Samples::default(),
                waited_ns: 0,
                whole_ns: 0,
            });
        }
        Self { groups, places }
    }

    /// An event of real work.
    #[inline]
    pub(crate) fn see(&mut self, event: &Event) {
        if event.name == Name::Sampling
            && let Some((group, place)) = self.places[event.log]
        {
            self.groups[group].members[place].samples = true;
        }
    }

    /// A forward pass, of this event.
    #[inline]
    pub(crate) fn see_pass(&mut self, pass: &Pass<'_>, event: &Event) {
        let (Some((group, place)), Some(step), Some(duration_ns)) =
            (self.places[event.log], pass.step, pass.duration_ns)
        else {
            return;
        };
        let group = &mut self.groups[group];
        let passes = group.pending.entry(step).or_insert_with(|| vec![None; group.members.len()]);
        // A second pass of a step is a draft's, or of a second micro-batch.
        passes[place].get_or_insert((pass.start_ns, duration_ns));
        if passes.iter().all(Option::is_some) {
            if let Some(passes) = group.pending.remove(&step) {
                group.compare(&passes.into_iter().flatten().collect::<Vec<_>>());
            }
        } else if group.pending.len() > PENDING {
            group.pending.pop_first();
        }
    }

    pub(crate) fn finish(self, session: &Session) -> Vec<Skew> {
        self.groups.into_iter().filter_map(|group| group.finish(session)).collect()
    }
}

impl Group {
    fn compare(&mut self, passes: &[(i64, u64)]) {
        let first_ns = passes.iter().map(|pass| pass.0).min().unwrap_or(0);
        let last_ns = passes.iter().map(|pass| pass.0).max().unwrap_or(0);
        let shortest_ns = passes.iter().map(|pass| pass.1).min().unwrap_or(0);
        let longest_ns = passes.iter().map(|pass| pass.1).max().unwrap_or(0);
        self.skews.push(longest_ns - shortest_ns);
        self.start_skews.push(last_ns.abs_diff(first_ns));
        let (mut is_slowest, mut is_last) = (true, true);
        for (member, (start_ns, duration_ns)) in self.members.iter_mut().zip(passes) {
            member.forward_ns += u128::from(*duration_ns);
            member.late_ns += u128::from(start_ns.abs_diff(first_ns));
            self.waited_ns += u128::from(longest_ns - duration_ns);
            self.whole_ns += u128::from(longest_ns);
            // One of them, and none where there is nothing to tell them by.
            if *duration_ns == longest_ns && longest_ns > shortest_ns && std::mem::take(&mut is_slowest) {
                member.slowest += 1;
            }
            if *start_ns == last_ns && last_ns > first_ns && std::mem::take(&mut is_last) {
                member.last += 1;
            }
        }
    }

    fn finish(mut self, session: &Session) -> Option<Skew> {
        let steps = self.skews.len() as u64;
        let skew_ms = self.skews.distribution(milliseconds)?;
        let start_skew_ms = self.start_skews.distribution(milliseconds)?;
        let engine = &session.logs[self.engine];
        let are_stages =
            self.members.iter().any(|member| member.samples) && !self.members.iter().all(|member| member.samples);
        let mut ranks: Vec<Rank> = self
            .members
            .iter()
            .map(|member| {
                let log = &session.logs[member.log];
                Rank {
                    process: log.process(Component::Worker).to_owned(),
                    rank: log.role(Component::Worker).map_or(log.head.identity.rank, |role| role.rank),
                    pid: log.head.identity.pid,
                    mean_forward_ms: member.forward_ns as f64 / steps as f64 / 1e6,
                    slowest_steps: member.slowest,
                    last_steps: member.last,
                    mean_late_ms: member.late_ns as f64 / steps as f64 / 1e6,
                }
            })
            .collect();
        ranks.sort_by_key(|rank| (rank.rank, rank.pid));
        Some(Skew {
            process: engine.process(Component::EngineCore).to_owned(),
            pid: engine.head.identity.pid,
            steps,
            are_stages,
            skew_ms,
            start_skew_ms,
            waiting_pct: (self.whole_ns > 0).then(|| 100.0 * self.waited_ns as f64 / self.whole_ns as f64),
            ranks,
        })
    }
}
