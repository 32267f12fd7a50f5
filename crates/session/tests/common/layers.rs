//! A model of eight layers with experts on two GPUs, timed inside in every second step, and the memory of the GPUs.

use std::path::Path;

use profilemate_format::record::{GpuClock, GpuMemory, GpuMemoryMore, GpuStep, Label, LayerTime, Payload};

use super::{Log, Parts, profilers_on};

const FULL: [u32; 3] = [0, 2, 6];
const SLIDING: [u32; 3] = [1, 3, 7];
const EXPERTS: [u32; 3] = [0, 3, 7];

/// Nanoseconds on a GPU's clock: those of the GPUs have nothing in common.
fn gpu_ns(rank: u64, us: u64) -> u64 {
    1_700_000_000_000_000_000 + rank * 5_000_000_000 + us * 1000
}

/// One step on one GPU, as it was read back.
struct Pass<'a> {
    log: &'a mut Log,
    rank: u64,
    step: u64,
    /// When the host began it, and when the GPU did what is written next.
    us: u64,
    at_us: u64,
    pair: u32,
}

impl Pass<'_> {
    fn part(&mut self, component: &str, kind: &str, layer: Option<u32>, duration_ns: u32) {
        let name = self.log.name(component);
        let kind = if kind.is_empty() { 0 } else { self.log.name(kind) };
        let begin_gpu_ns = gpu_ns(self.rank, self.at_us);
        let part = LayerTime { begin_gpu_ns, duration_ns, layer, kind, pair: self.pair };
        self.pair += 1;
        self.at_us += 5 + u64::from(duration_ns) / 1000;
        self.log.push(self.us, self.step, Label::Work, name, Payload::LayerTime(part));
    }

    fn parts(&mut self, prefill: bool) {
        let grown = u32::try_from(self.step * 10).unwrap();
        for layer in 0..8 {
            let is_full = FULL.contains(&layer);
            if is_full || SLIDING.contains(&layer) {
                let kind = if is_full { "full" } else { "sliding window" };
                let length = if is_full { 20_000 } else { 9_000 } + if prefill { 15_000 } else { 0 };
                self.part("attention", kind, Some(layer), length + grown + layer * 100);
                // The second rank is done 2 us earlier, and waits.
                let wait = if self.rank == 1 { 2_000 + layer * 50 } else { 0 };
                self.part("all_reduce", "call 1", Some(layer), 6_000 + wait);
                self.part("all_reduce", "call 2", Some(layer), 7_000 + wait);
            }
            if EXPERTS.contains(&layer) {
                self.part("router", "FusedMoE", Some(layer), 4_000 + layer * 10);
                self.part("experts", "FusedMoE", Some(layer), 31_000 + layer * 1_000 + grown);
            }
        }
        self.part("sampler", "", None, 25_000);
    }
}

/// A look at the memory of a GPU of 80 GiB, of which a little more is handed out each time.
fn memory(log: &mut Log, us: u64, step: u64, rank: u64) {
    const GIB: u64 = 1 << 30;
    let allocated = 60 * GIB + step * (64 << 20);
    let more = GpuMemoryMore {
        peak_allocated: Some(allocated + GIB),
        peak_reserved: Some(70 * GIB),
        inactive_split: Some(GIB / 2),
        retries: Some(0),
        out_of_memory: Some(0),
    };
    let memory = GpuMemory {
        allocated: Some(allocated),
        reserved: Some(70 * GIB),
        free: Some((6 - rank) * GIB),
        total: Some(80 * GIB),
    };
    log.push(us, step, Label::Work, 0, Payload::GpuMemoryMore(more));
    log.push(us, step, Label::Work, 0, Payload::GpuMemory(memory));
}

pub(super) fn layers(raw: &Path) {
    let mut engine = Log::new("engine_core", 0, 0, 5001, 5000);
    profilers_on(&mut engine);
    engine.fact("model", "tiny-moe");
    engine.fact("setting:tensor_parallel_size", "2");
    engine.fact("timing_mode", "events");
    engine.limits(5_000, 8, 1024);
    let front = Log::new("api_server", 0, 0, 5000, 1);
    let workers = (0..2).map(|rank| {
        let mut worker = Log::new("worker", rank, 0, 5002 + rank, 5001);
        worker.fact("gpu_name", "NVIDIA H100");
        worker.fact("profiler:layer_timing", "on");
        worker.fact("layer_kind:attention/full", "4 0,2,6");
        worker.fact("layer_kind:attention/sliding window", "4 1,3,7");
        worker.fact("layer_kind:router/FusedMoE", "8 0,3,7");
        worker.fact("layer_kind:experts/FusedMoE", "8 0,3,7");
        worker.fact("layer_steps_stamped", "1/2");
        worker.fact("profiler:gpu_memory", "on");
        worker.fact("gpu_memory_weights_bytes", "17179869184");
        worker.fact("gpu_memory_kv_cache_bytes", "42949672960");
        worker.fact("gpu_memory_cuda_graph_bytes", "1073741824");
        worker.fact("collectives_per_forward", "all_reduce=17 all_gather=0 reduce_scatter=0");
        worker
    });
    let logs = [engine, front].into_iter().chain(workers).collect();
    let mut parts = Parts { logs, engine: 0, front: 1, workers: vec![2, 3] };
    for step in 1..=24 {
        let us = 10_000 + step * 1000;
        parts.work(step, 1);
        if step % 9 == 0 {
            continue;
        }
        let prefill = step <= 2 || step % 5 == 0;
        for rank in 0..2_u64 {
            let log = &mut parts.logs[usize::try_from(2 + rank).unwrap()];
            if step % 8 == 1 {
                let seen = GpuClock { gpu_ns: gpu_ns(rank, us), error_ns: 4_000 };
                log.push(us, 0, Label::Work, 0, Payload::GpuClock(seen));
                memory(log, us, step, rank);
            }
            let forward_ms = if prefill { 0.8125 } else { 0.6875 };
            let descriptor =
                log.name(if prefill { "NONE" } else { "FULL num_tokens=4 num_reqs=4 uniform=1 has_lora=0" });
            let gpu_step = GpuStep {
                forward_ms: Some(forward_ms),
                sample_ms: Some(0.03125),
                idle_before_ms: (step != 1).then_some(0.125),
                draft_ms: None,
                busy_ms: Some(forward_ms + 0.0625),
                padded_tokens: if prefill { 0 } else { 4 },
                descriptor,
                read_after_us: 1000,
            };
            log.push(us + 130, step, Label::Work, 0, Payload::GpuStep(gpu_step));
            if step % 2 == 0 {
                Pass { log, rank, step, us: us + 80, at_us: us + 140, pair: 0 }.parts(prefill);
            }
        }
    }
    for log in &mut parts.logs {
        log.anchors_us = vec![0, 50_000];
        log.closed_us = Some(45_000);
        log.write(raw);
    }
}
