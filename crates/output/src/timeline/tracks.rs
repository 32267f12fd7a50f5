//! Tracks on which slices lie in order and within one another, as the format wants them.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BinaryHeap};

use super::packets::{Happening, Packets, Uuid};
use crate::Error;

/// Slices that a track holds back, for what holds them ends after them.
const MAX_PENDING: usize = 8192;
/// How far a slice that is in no table may reach over the end of what holds it, and is cut for that: a hook's own end comes a
/// little after that of the function.
const OVERHANG_NS: u64 = 200_000;
/// Most tracks that slices of one are spread over; threads that do the same at the same time.
const MAX_LANES: usize = 32;

/// A slice of a track, or an instant if it has no end.
#[derive(Debug)]
pub(super) struct Slice {
    pub(super) start_ns: u64,
    pub(super) end_ns: Option<u64>,
    /// Whether its end may be cut a little.
    pub(super) is_loose: bool,
    pub(super) what: Happening,
}

/// A slice that is held back. The greatest is the next: the earliest, of those the longest, of those the first that came.
#[derive(Debug)]
struct Pending {
    slice: Slice,
    number: u64,
}

impl Pending {
    fn key(&self) -> (std::cmp::Reverse<u64>, u64, std::cmp::Reverse<u64>) {
        let end_ns = self.slice.end_ns.unwrap_or(self.slice.start_ns);
        (std::cmp::Reverse(self.slice.start_ns), end_ns, std::cmp::Reverse(self.number))
    }
}

impl Ord for Pending {
    fn cmp(&self, other: &Self) -> Ordering {
        self.key().cmp(&other.key())
    }
}

impl PartialOrd for Pending {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Pending {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for Pending {}

/// One track of the trace.
#[derive(Debug)]
struct Lane {
    uuid: Uuid,
    /// Ends of what is open, the innermost last.
    open: Vec<u64>,
    last_ns: u64,
}

impl Lane {
    /// Ends what is over at `at_ns`.
    fn close(&mut self, at_ns: u64, packets: &mut Packets) -> Result<(), Error> {
        while let Some(end_ns) = self.open.last().copied().filter(|end_ns| *end_ns <= at_ns) {
            self.open.pop();
            self.last_ns = end_ns;
            packets.end(self.uuid, end_ns)?;
        }
        Ok(())
    }

    /// Whether there is room for a slice; one that is loose is made to fit.
    fn takes(&self, slice: &mut Slice) -> bool {
        if let (true, Some(end_ns), Some(open_ns)) = (slice.is_loose, slice.end_ns, self.open.last().copied())
            && end_ns > open_ns
            && end_ns - open_ns <= OVERHANG_NS
        {
            slice.end_ns = Some(open_ns);
        }
        let end_ns = slice.end_ns.unwrap_or(slice.start_ns);
        slice.start_ns >= self.last_ns && self.open.last().is_none_or(|open_ns| end_ns <= *open_ns)
    }
}

/// A track whose slices come in the order in which they ended. Slices that neither hold nor follow one another, as of several
/// threads, are spread over tracks of the same name with a number.
#[derive(Debug)]
pub(super) struct Track {
    parent: Uuid,
    name: String,
    rank: i32,
    lanes: Vec<Lane>,
    pending: BinaryHeap<Pending>,
    numbers: u64,
}

impl Track {
    pub(super) fn new(parent: Uuid, name: String, rank: i32) -> Self {
        Self { parent, name, rank, lanes: Vec::new(), pending: BinaryHeap::new(), numbers: 0 }
    }

    pub(super) fn push(&mut self, slice: Slice, packets: &mut Packets) -> Result<(), Error> {
        self.numbers += 1;
        self.pending.push(Pending { slice, number: self.numbers });
        if self.pending.len() > MAX_PENDING { self.emit(packets) } else { Ok(()) }
    }

    /// Writes the first of those that are held back.
    fn emit(&mut self, packets: &mut Packets) -> Result<(), Error> {
        let Some(Pending { mut slice, .. }) = self.pending.pop() else { return Ok(()) };
        let mut chosen = None;
        for (at, lane) in self.lanes.iter_mut().enumerate() {
            if slice.start_ns >= lane.last_ns {
                lane.close(slice.start_ns, packets)?;
            }
            if lane.takes(&mut slice) {
                chosen = Some(at);
                break;
            }
        }
        let at = match chosen {
            Some(at) => at,
            None if self.lanes.len() < MAX_LANES => {
                let number = self.lanes.len() + 1;
                let name = if number == 1 { self.name.clone() } else { format!("{} ({number})", self.name) };
                let uuid = packets.track(self.parent, &name, self.rank)?;
                self.lanes.push(Lane { uuid, open: Vec::new(), last_ns: 0 });
                number - 1
            }
            // No more tracks: it is cut to what there is room for.
            None => {
                let lane = &mut self.lanes[MAX_LANES - 1];
                slice.start_ns = slice.start_ns.max(lane.last_ns);
                lane.close(slice.start_ns, packets)?;
                let room_ns = lane.open.last().copied().unwrap_or(u64::MAX);
                slice.end_ns = slice.end_ns.map(|end_ns| end_ns.clamp(slice.start_ns, room_ns));
                MAX_LANES - 1
            }
        };
        let lane = &mut self.lanes[at];
        lane.last_ns = slice.start_ns;
        match slice.end_ns {
            Some(end_ns) => {
                lane.open.push(end_ns);
                packets.begin(lane.uuid, slice.start_ns, &slice.what)
            }
            None => packets.instant(lane.uuid, slice.start_ns, &slice.what),
        }
    }

    /// Writes everything that is held back.
    pub(super) fn finish(&mut self, packets: &mut Packets) -> Result<(), Error> {
        while !self.pending.is_empty() {
            self.emit(packets)?;
        }
        for lane in &mut self.lanes {
            lane.close(u64::MAX, packets)?;
        }
        Ok(())
    }
}

/// As many tracks as things go on at a time, each of which comes as a whole when it is over.
#[derive(Debug, Default)]
pub(super) struct Slots {
    /// Tracks by the end of the last thing on them.
    free: BTreeMap<u64, Vec<Uuid>>,
}

impl Slots {
    /// A track that has been free since `start_ns` at the latest, and will be again at `end_ns`.
    pub(super) fn take(
        &mut self,
        (start_ns, end_ns): (u64, u64),
        new: impl FnOnce() -> Result<Uuid, Error>,
    ) -> Result<Uuid, Error> {
        // That which has been free for the shortest time leaves the most room to others.
        let found = self.free.range_mut(..=start_ns).next_back().and_then(|(since, tracks)| {
            let track = tracks.pop()?;
            Some((track, tracks.is_empty().then_some(*since)))
        });
        let uuid = match found {
            Some((track, emptied)) => {
                if let Some(since) = emptied {
                    self.free.remove(&since);
                }
                track
            }
            None => new()?,
        };
        self.free.entry(end_ns).or_default().push(uuid);
        Ok(uuid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_never_hold_two_things_at_a_time_and_are_used_again() {
        let folder = tempfile::tempdir().unwrap();
        let file = crate::replace::NewFile::create(folder.path(), "x").unwrap();
        let mut packets = Packets::new(file, 0).unwrap();
        let parent = packets.process(1, "engine", 0).unwrap();
        let mut slots = Slots::default();
        let mut made = 0;
        let mut used: Vec<(Uuid, u64, u64)> = Vec::new();
        for (start_ns, end_ns) in [(0, 10), (5, 12), (10, 13), (12, 14), (11, 15), (14, 20), (14, 21), (0, 22)] {
            let uuid = slots
                .take((start_ns, end_ns), || {
                    made += 1;
                    packets.track(parent, "requests", 0)
                })
                .unwrap();
            let overlaps = used.iter().any(|(other, from, to)| *other == uuid && *from < end_ns && start_ns < *to);
            assert!(!overlaps, "{start_ns} to {end_ns}");
            used.push((uuid, start_ns, end_ns));
        }
        // Three at most go on at a time, and the last lies over all of them.
        assert_eq!(made, 4);
    }
}
