//! The requests of an engine: what each was waiting for or doing, and the steps in which that changed.

use std::collections::{HashMap, HashSet, VecDeque};

use profilemate_analysis::requests::{Happening as Event, Kind, Lifecycle, RequestEvent};

use super::packets::{Arguments, Called, Happening, Packets, Uuid, Value, shown};
use super::tracks::Slots;
use super::{CATEGORY_REQUEST, Window, after_start};
use crate::Error;

/// Most changes of a request that are drawn; one that is preempted for ever has more.
const MAX_CHANGES: usize = 256;
/// Most requests that wait for the step in which they ended.
const MAX_WAITING: usize = 4096;
/// Most ends of flows that wait for their step; steps that are not recorded do not come.
const MAX_LOOSE: usize = 65_536;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    Started,
    Preempted,
    Resumed,
    FirstToken,
    Over,
}

/// Something that a step did to a request.
#[derive(Debug, Clone, Copy)]
struct Change {
    at_ns: u64,
    what: What,
    flow: Option<u64>,
}

/// A request that is over, or not over at the end.
#[derive(Debug)]
struct Life {
    called: Called,
    arguments: Arguments,
    arrived_ns: Option<u64>,
    queued_ns: Option<u64>,
    started_ns: Option<u64>,
    first_token_ns: Option<u64>,
    left_engine_ns: Option<u64>,
    finished_ns: Option<u64>,
    is_aborted: bool,
    changes: Vec<Change>,
}

/// The requests of one engine.
#[derive(Debug, Default)]
pub(super) struct Requests {
    /// Of requests that are not over, by their id.
    changes: HashMap<Box<str>, Vec<Change>>,
    /// Of requests that are over and have no row yet.
    over: HashMap<Box<str>, VecDeque<Vec<Change>>>,
    /// Ends of flows whose step is not written yet, and when they were.
    loose: Vec<(u64, u64)>,
    /// Flows that have an end at a step, and none at a request yet.
    tied: HashSet<u64>,
    waiting: VecDeque<Life>,
    /// What holds their tracks, so that all of them can be folded away.
    group: Option<Uuid>,
    slots: Slots,
}

impl Requests {
    /// Something happened to a request in a step. `flow` is the next number of a flow.
    pub(super) fn see(&mut self, event: &RequestEvent<'_>, flow: &mut u64) {
        let what = match event.what {
            Event::Started { .. } => What::Started,
            Event::Preempted { .. } => What::Preempted,
            Event::Resumed { .. } => What::Resumed,
            Event::Finished { .. } | Event::Aborted { .. } => What::Over,
        };
        self.change(event.request_id, event.at_ns, event.step, what, flow);
        if what == What::Over
            && let Some((id, changes)) = self.changes.remove_entry(event.request_id)
        {
            self.over.entry(id).or_default().push_back(changes);
        }
    }

    /// The engine has the first token of a request.
    pub(super) fn first_token(&mut self, request_id: &str, at_ns: i64, step: Option<u64>, flow: &mut u64) {
        self.change(request_id, at_ns, step, What::FirstToken, flow);
    }

    fn change(&mut self, request_id: &str, at_ns: i64, step: Option<u64>, what: What, next: &mut u64) {
        if request_id.is_empty() {
            return;
        }
        let at_ns = after_start(at_ns);
        let changes = match self.changes.get_mut(request_id) {
            Some(changes) => changes,
            None => self.changes.entry(request_id.into()).or_default(),
        };
        if changes.len() >= MAX_CHANGES && what != What::Over {
            return;
        }
        let flow = step.map(|_| {
            *next += 1;
            if self.loose.len() >= MAX_LOOSE {
                self.loose.clear();
            }
            self.loose.push((at_ns, *next));
            *next
        });
        changes.push(Change { at_ns, what, flow });
    }

    /// A step is about to be written, or is not, outside of the window; the flows that begin at it.
    pub(super) fn step(&mut self, start_ns: u64, end_ns: u64, window: Window, is_written: bool) -> Vec<u64> {
        if self.loose.is_empty() {
            return Vec::new();
        }
        let mut flows = Vec::new();
        self.loose.retain(|(at_ns, flow)| {
            // One request's slice lies in the window as well, if what happened does.
            if is_written && *at_ns >= start_ns && *at_ns <= end_ns && window.holds(*at_ns, *at_ns) {
                flows.push(*flow);
            }
            *at_ns > end_ns
        });
        self.tied.extend(&flows);
        flows
    }

    /// A request has its row.
    pub(super) fn life(&mut self, life: &Lifecycle<'_>, packets: &mut Packets) {
        let changes = match self.over.get_mut(life.request_id) {
            Some(all) => {
                let first = all.pop_front();
                if all.is_empty() {
                    self.over.remove(life.request_id);
                }
                first
            }
            None => self.changes.remove(life.request_id),
        };
        let number = |number: Option<u32>| number.map(|number| Value::Number(number.into()));
        let client = Some(life.client_request_id).filter(|id| *id != life.request_id && !id.is_empty());
        let arguments = [
            ("kind", life.kind.map(Kind::text).map(|kind| packets.text(kind))),
            ("client_request_id", client.map(|id| Value::Text(shown(id).into_boxed_str()))),
            ("prompt_tokens", number(life.prompt_tokens)),
            ("cached_tokens", number(life.cached_tokens)),
            ("output_tokens", number(life.output_tokens)),
            ("preemptions", life.preemptions.map(Value::Number)),
            ("recomputed_tokens", life.recomputed_tokens.map(Value::Number)),
            ("finish_reason", life.finish_reason.map(|reason| packets.text(reason))),
        ];
        let id = if life.request_id.is_empty() { "request" } else { life.request_id };
        self.waiting.push_back(Life {
            called: Called::Text(shown(id).into_boxed_str()),
            arguments: arguments.into_iter().filter_map(|(name, value)| Some((name, value?))).collect(),
            arrived_ns: life.arrived_ns.map(after_start),
            queued_ns: life.queued_ns.map(after_start),
            started_ns: life.started_ns.map(after_start),
            first_token_ns: life.first_token_ns.map(after_start),
            left_engine_ns: life.left_engine_ns.map(after_start),
            finished_ns: life.finished_ns.map(after_start),
            is_aborted: life.finish_reason == Some("abort"),
            changes: changes.unwrap_or_default(),
        });
    }

    /// Writes the requests whose last step is written: those that were over at `until_ns`. One that is not over ends at
    /// `latest_ns`.
    pub(super) fn write(
        &mut self,
        until_ns: u64,
        latest_ns: u64,
        parent: Uuid,
        window: Window,
        packets: &mut Packets,
    ) -> Result<(), Error> {
        while let Some(life) = self.waiting.front() {
            let last_ns = life.changes.iter().map(|change| change.at_ns).max();
            if last_ns > Some(until_ns) && self.waiting.len() < MAX_WAITING {
                break;
            }
            let Some(life) = self.waiting.pop_front() else { break };
            self.draw(&life, latest_ns, parent, window, packets)?;
        }
        Ok(())
    }

    fn draw(
        &mut self,
        life: &Life,
        latest_ns: u64,
        parent: Uuid,
        window: Window,
        packets: &mut Packets,
    ) -> Result<(), Error> {
        let known = [life.arrived_ns, life.queued_ns, life.started_ns, life.first_token_ns, life.left_engine_ns];
        let changes = || life.changes.iter().map(|change| change.at_ns);
        let Some(start_ns) = known.iter().copied().flatten().chain(changes()).min() else { return Ok(()) };
        let over_ns = if life.left_engine_ns.is_some() { life.finished_ns } else { Some(latest_ns) };
        let end_ns = known.into_iter().flatten().chain(over_ns).chain(changes()).max().unwrap_or(start_ns);
        let tied: Vec<Change> = life
            .changes
            .iter()
            .map(|change| Change { flow: change.flow.filter(|flow| self.tied.remove(flow)), ..*change })
            .collect();
        if !window.holds(start_ns, end_ns) {
            return Ok(());
        }
        let group = match self.group {
            Some(group) => group,
            None => *self.group.insert(packets.track(parent, "requests", super::RANK_REQUESTS)?),
        };
        let track = self.slots.take((start_ns, end_ns), || packets.track(group, "requests", 0))?;
        let flow_of = |what: What| tied.iter().find(|change| change.what == what).and_then(|change| change.flow);
        let mut marks: Vec<(u64, &'static str, Option<u64>)> = Vec::new();
        if let Some(at_ns) = life.first_token_ns {
            marks.push((at_ns, "first_token", flow_of(What::FirstToken)));
        }
        if life.left_engine_ns.is_some() {
            let name = if life.is_aborted { "aborted" } else { "finished" };
            marks.push((end_ns, name, flow_of(What::Over)));
        }
        let mut marks = marks.into_iter().peekable();
        let happening = |name: &'static str, flow: Option<u64>| Happening {
            called: Called::Name(name),
            category: CATEGORY_REQUEST,
            arguments: Vec::new(),
            flows: flow.into_iter().collect(),
        };
        let request = Happening {
            called: life.called.clone(),
            category: CATEGORY_REQUEST,
            arguments: life.arguments.clone(),
            flows: Vec::new(),
        };
        packets.begin(track, start_ns, &request)?;
        let phases = phases(life, &tied, start_ns);
        let mut at_ns = start_ns;
        for (index, (begin_ns, name, flow)) in phases.iter().enumerate() {
            let next_ns = phases.get(index + 1).map_or(end_ns, |(next_ns, ..)| *next_ns);
            let (begin_ns, phase_end_ns) = ((*begin_ns).clamp(at_ns, end_ns), next_ns.clamp(at_ns, end_ns));
            if begin_ns >= phase_end_ns && flow.is_none() {
                continue;
            }
            packets.begin(track, begin_ns, &happening(name, *flow))?;
            at_ns = begin_ns;
            while let Some((mark_ns, name, flow)) = marks.next_if(|(mark_ns, ..)| *mark_ns < phase_end_ns) {
                at_ns = mark_ns.max(at_ns);
                packets.instant(track, at_ns, &happening(name, flow))?;
            }
            at_ns = phase_end_ns.max(at_ns);
            packets.end(track, at_ns)?;
        }
        for (mark_ns, name, flow) in marks {
            at_ns = mark_ns.clamp(at_ns, end_ns.max(at_ns));
            packets.instant(track, at_ns, &happening(name, flow))?;
        }
        packets.end(track, end_ns)
    }
}

/// Beginnings of what a request was waiting for or doing, in order.
fn phases(life: &Life, changes: &[Change], start_ns: u64) -> Vec<(u64, &'static str, Option<u64>)> {
    enum Turn {
        Queued,
        Runs,
        Waits,
        HasToken,
        Left,
    }
    let mut turns: Vec<(u64, Turn, Option<u64>)> = Vec::with_capacity(changes.len() + 4);
    turns.extend(life.queued_ns.map(|at_ns| (at_ns, Turn::Queued, None)));
    if !changes.iter().any(|change| change.what == What::Started) {
        turns.extend(life.started_ns.map(|at_ns| (at_ns, Turn::Runs, None)));
    }
    turns.extend(changes.iter().filter_map(|change| {
        let turn = match change.what {
            What::Started | What::Resumed => Turn::Runs,
            What::Preempted => Turn::Waits,
            What::FirstToken | What::Over => return None,
        };
        Some((change.at_ns, turn, change.flow))
    }));
    turns.extend(life.first_token_ns.map(|at_ns| (at_ns, Turn::HasToken, None)));
    turns.extend(life.left_engine_ns.map(|at_ns| (at_ns, Turn::Left, None)));
    turns.sort_by_key(|(at_ns, ..)| *at_ns);
    let mut phases = Vec::with_capacity(turns.len() + 1);
    if life.arrived_ns.is_some() && life.arrived_ns < life.queued_ns {
        phases.push((start_ns, "front_end", None));
    }
    let (mut runs, mut has_token, mut has_left) = (false, false, false);
    for (at_ns, turn, flow) in turns {
        let name = match turn {
            Turn::Queued => "queued",
            Turn::Runs => {
                runs = true;
                if has_token { "decode" } else { "prefill" }
            }
            Turn::Waits => {
                runs = false;
                "preempted"
            }
            Turn::HasToken => {
                has_token = true;
                if !runs || has_left {
                    continue;
                }
                "decode"
            }
            Turn::Left => {
                has_left = true;
                "delivery"
            }
        };
        phases.push((at_ns, name, flow));
    }
    phases
}
