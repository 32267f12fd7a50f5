//! GPU memory: what torch's allocator holds of it, and how it is divided.

use profilemate_session::record::{GpuMemory, GpuMemoryMore};
use profilemate_session::{Component, Event, Log, Payload, Session};

use crate::batch::percent;
use crate::{Context, Row};

/// One look at a GPU's memory. Bytes; `None` = unknown.
#[derive(Debug, Clone, Copy)]
pub struct Sample<'a> {
    /// When: nanoseconds since the session's start.
    pub at_ns: i64,
    /// What is held and what is free.
    pub memory: GpuMemory,
    /// Peaks, and what stands in the way.
    pub more: GpuMemoryMore,
    /// The step that began; `None` = none.
    pub step: Option<u64>,
    /// The process: `worker-0`.
    pub process: &'a str,
}

impl Sample<'_> {
    /// What torch keeps and has not handed out, and what it keeps.
    pub fn unused(&self) -> Option<(u64, u64)> {
        let (allocated, reserved) = (self.memory.allocated?, self.memory.reserved?);
        Some((reserved.saturating_sub(allocated), reserved))
    }

    /// What is in use on the device and not by torch: the CUDA context, libraries, graphs, other processes.
    pub fn outside(&self) -> Option<u64> {
        let used = self.memory.total?.checked_sub(self.memory.free?)?;
        Some(used.saturating_sub(self.memory.reserved?))
    }
}

/// What is said of one worker's GPU. Bytes; `None` = unknown.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Gpu {
    /// The worker.
    pub process: String,
    /// Looks.
    pub samples: u64,
    /// What the device has.
    pub total: Option<u64>,
    /// What the model took when it was loaded, by vLLM's measure.
    pub weights: Option<u64>,
    /// What was allocated while the KV cache was made.
    pub kv_cache: Option<u64>,
    /// What captured graphs took of the device, by vLLM's measure.
    pub cuda_graphs: Option<u64>,
    /// The last look.
    pub last: GpuMemory,
    /// Peaks of the last look, and what torch had to do so far.
    pub last_more: GpuMemoryMore,
    /// Most that was handed out, of all looks.
    pub most_allocated: Option<u64>,
    /// Most that torch held, of all looks.
    pub most_reserved: Option<u64>,
    /// Least that was free on the device, of all looks.
    pub least_free: Option<u64>,
    /// Most of what is in use on the device and not by torch, of all looks.
    pub most_outside: Option<u64>,
    /// Mean share of what torch held and had not handed out, percent.
    pub mean_unused_pct: Option<f64>,
    /// Most in pieces that could not be given back, of all looks.
    pub most_inactive_split: Option<u64>,
}

impl Gpu {
    /// Share of something in all that the device has, 0-100.
    pub fn share_pct(&self, part: Option<u64>) -> Option<f64> {
        percent(part?, self.total?)
    }
}

#[derive(Debug, Default)]
struct Gathered {
    more: GpuMemoryMore,
    gpu: Gpu,
    unused_pct: (f64, u64),
}

fn most(of: &mut Option<u64>, value: Option<u64>) {
    *of = (*of).max(value);
}

impl Gathered {
    fn add(&mut self, sample: &Sample<'_>) {
        let gpu = &mut self.gpu;
        gpu.samples += 1;
        (gpu.last, gpu.last_more) = (sample.memory, sample.more);
        gpu.total = sample.memory.total.or(gpu.total);
        most(&mut gpu.most_allocated, sample.memory.allocated);
        most(&mut gpu.most_reserved, sample.memory.reserved);
        most(&mut gpu.most_outside, sample.outside());
        most(&mut gpu.most_inactive_split, sample.more.inactive_split);
        gpu.least_free = match (gpu.least_free, sample.memory.free) {
            (Some(least), Some(free)) => Some(least.min(free)),
            (least, free) => least.or(free),
        };
        if let Some(pct) = sample.unused().and_then(|(unused, reserved)| percent(unused, reserved)) {
            self.unused_pct.0 += pct;
            self.unused_pct.1 += 1;
        }
    }
}

#[derive(Debug)]
pub(crate) struct Collector {
    /// By log.
    gathered: Vec<Gathered>,
}

impl Collector {
    pub(crate) fn new(session: &Session) -> Self {
        Self { gathered: session.logs.iter().map(|_| Gathered::default()).collect() }
    }

    /// Hands out what an event says of a GPU's memory.
    pub(crate) fn see<E>(
        &mut self,
        context: &Context<'_>,
        event: &Event,
        row: &mut impl FnMut(Row<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let gathered = &mut self.gathered[event.log];
        match event.record.payload {
            Payload::GpuMemoryMore(more) => gathered.more = more,
            Payload::GpuMemory(memory) => {
                let sample = Sample {
                    at_ns: event.start_ns,
                    memory,
                    more: std::mem::take(&mut gathered.more),
                    step: Some(event.record.step).filter(|step| *step != 0),
                    process: context.session.logs[event.log].process(Component::Worker),
                };
                gathered.add(&sample);
                return row(Row::GpuMemory(sample));
            }
            _ => {}
        }
        Ok(())
    }

    pub(crate) fn finish(self, session: &Session) -> Vec<Gpu> {
        let gpus = session.logs.iter().zip(self.gathered).map(|(log, gathered)| {
            let (sum, count) = gathered.unused_pct;
            Gpu {
                process: log.process(Component::Worker).to_owned(),
                weights: bytes(log, "gpu_memory_weights_bytes"),
                kv_cache: bytes(log, "gpu_memory_kv_cache_bytes"),
                cuda_graphs: bytes(log, "gpu_memory_cuda_graph_bytes"),
                mean_unused_pct: (count > 0).then(|| sum / count as f64),
                ..gathered.gpu
            }
        });
        gpus.filter(|gpu| gpu.samples > 0).collect()
    }
}

fn bytes(log: &Log, fact: &str) -> Option<u64> {
    log.head.fact(fact)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_is_not_compared() {
        let sample = |allocated, free| Sample {
            at_ns: 0,
            memory: GpuMemory { allocated, reserved: Some(80), free, total: Some(100) },
            more: GpuMemoryMore::default(),
            step: Some(1),
            process: "worker-0",
        };
        let mut gathered = Gathered::default();
        gathered.add(&sample(Some(60), None));
        gathered.add(&sample(None, Some(15)));
        gathered.add(&sample(Some(40), Some(12)));
        let gpu = &gathered.gpu;
        assert_eq!((gpu.most_allocated, gpu.least_free, gpu.most_outside), (Some(60), Some(12), Some(8)));
        assert_eq!(gathered.unused_pct, (75.0, 2));
        assert_eq!(gpu.most_inactive_split, None);
        assert_eq!(gpu.share_pct(Some(25)), Some(25.0));
    }
}
