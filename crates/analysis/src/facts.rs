//! What the processes of a session said of themselves, put together.

use profilemate_session::{Component, Session};

/// A profiler: those of the first generation by the names that they had there, and those since.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profiler {
    /// Captures and replays of CUDA graphs.
    CudaGraphTracking,
    /// KV cache usage.
    KvCacheTracking,
    /// Expert loads.
    MoeExpertTracking,
    /// Forward passes.
    ForwardPassTiming,
    /// CPU operations.
    CpuTiming,
    /// How full batches are.
    BatchUtilizationTracking,
    /// Request lifecycles.
    PreemptionTracking,
    /// Encoders against the language model.
    EncoderDecoderTiming,
    /// Sampling and its features.
    SamplingTiming,
    /// Memory of GPUs.
    GpuMemory,
    /// Parts of forward passes.
    LayerTiming,
}

impl Profiler {
    /// Every profiler, in the order of `metadata.json`.
    pub const ALL: [Self; 11] = [
        Self::CudaGraphTracking,
        Self::KvCacheTracking,
        Self::MoeExpertTracking,
        Self::ForwardPassTiming,
        Self::CpuTiming,
        Self::BatchUtilizationTracking,
        Self::PreemptionTracking,
        Self::EncoderDecoderTiming,
        Self::SamplingTiming,
        Self::GpuMemory,
        Self::LayerTiming,
    ];

    /// Its name.
    pub fn text(self) -> &'static str {
        match self {
            Self::CudaGraphTracking => "cuda_graph_tracking",
            Self::KvCacheTracking => "kv_cache_tracking",
            Self::MoeExpertTracking => "moe_expert_tracking",
            Self::ForwardPassTiming => "forward_pass_timing",
            Self::CpuTiming => "cpu_timing",
            Self::BatchUtilizationTracking => "batch_utilization_tracking",
            Self::PreemptionTracking => "preemption_tracking",
            Self::EncoderDecoderTiming => "encoder_decoder_timing",
            Self::SamplingTiming => "sampling_timing",
            Self::GpuMemory => "gpu_memory",
            Self::LayerTiming => "layer_timing",
        }
    }
}

/// Facts of a session, put together over its processes. `None` = nobody said.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Facts {
    /// What the session was made from, if it was not recorded: `vllm log`.
    pub source: Option<String>,
    /// How far off its times may be then, milliseconds.
    pub time_error_ms: Option<f64>,
    /// Version of vLLM.
    pub vllm_version: Option<String>,
    /// Version of torch.
    pub torch_version: Option<String>,
    /// Name of the GPU.
    pub gpu_name: Option<String>,
    /// Version of its driver.
    pub gpu_driver: Option<String>,
    /// How many GPUs.
    pub gpu_count: Option<u64>,
    /// The model.
    pub model: Option<String>,
    /// The command that was launched.
    pub command: Option<String>,
    /// How forward passes were timed.
    pub timing_mode: Option<String>,
    /// Switches, as they were set: the profilers and `cuda_events_enabled`.
    pub flags: Vec<(String, bool)>,
    /// Settings of vLLM, by the names that it has for them in Python (`gpu_memory_utilization`), as the processes found
    /// them when they began; by name.
    pub settings: Vec<(String, String)>,
    /// State of each profiler: `on`, `off`, `could not attach: …`; in the order of [`Profiler::ALL`].
    pub profilers: Vec<(String, String)>,
    /// Whether vLLM tells of evicted KV cache blocks: `on`, or `could not attach: …`.
    pub kv_evictions: Option<String>,
    /// Whether pairs of experts were counted.
    pub moe_coselection: bool,
    /// Whether routing weights were counted.
    pub moe_weights: bool,
    /// What each hook resolved to, or `absent: …`; by name.
    pub hooks: Vec<(String, String)>,
}

/// How much a process's word on a profiler or a hook counts: who holds the component knows best.
fn weight(value: &str) -> u8 {
    match value {
        "off" => 0,
        absent if absent.starts_with("absent") => 0,
        failed if failed.starts_with("could not attach") => 1,
        _ => 2,
    }
}

impl Facts {
    /// Puts the facts of all logs together.
    pub fn of(session: &Session) -> Self {
        // The launcher knows the command that somebody typed; a spawned process only knows its own.
        let mut logs: Vec<_> = session.logs.iter().collect();
        logs.sort_by_key(|log| log.head.identity.role != "launcher");
        let first = |key: &str| logs.iter().find_map(|log| log.head.fact(key)).map(str::to_owned);
        let strongest = |key: &str| {
            let values = logs.iter().filter_map(|log| log.head.fact(key));
            values.fold(None, |best: Option<&str>, value| {
                Some(best.filter(|best| weight(best) >= weight(value)).unwrap_or(value))
            })
        };
        let mut hooks: Vec<&str> =
            logs.iter().flat_map(|log| &log.head.facts).filter_map(|(key, _)| key.strip_prefix("hook:")).collect();
        hooks.sort_unstable();
        hooks.dedup();
        let mut settings: Vec<&str> = logs
            .iter()
            .flat_map(|log| &log.head.facts)
            .filter_map(|(key, _)| key.strip_prefix("setting:"))
            .collect();
        settings.sort_unstable();
        settings.dedup();
        let flags = Profiler::ALL.map(Profiler::text).into_iter().chain(["cuda_events_enabled"]);
        Self {
            source: first("source"),
            time_error_ms: logs
                .iter()
                .filter_map(|log| log.head.fact("time_error_ms")?.parse().ok())
                .filter(|error: &f64| error.is_finite())
                .reduce(f64::max),
            vllm_version: first("vllm_version"),
            torch_version: first("torch_version"),
            gpu_name: first("gpu_name"),
            gpu_driver: first("gpu_driver"),
            gpu_count: first("gpu_count").and_then(|count| count.parse().ok()),
            model: first("model"),
            command: first("command"),
            // Every process has an opinion; the worker's is how forward passes were timed.
            timing_mode: logs
                .iter()
                .filter(|log| log.role(Component::Worker).is_some())
                .find_map(|log| log.head.fact("timing_mode"))
                .map_or_else(|| first("timing_mode"), |mode| Some(mode.to_owned())),
            flags: flags
                .filter_map(|flag| Some((flag.to_owned(), first(&format!("flag:{flag}"))? == "1")))
                .collect(),
            settings: settings
                .into_iter()
                .filter_map(|name| Some((name.to_owned(), first(&format!("setting:{name}"))?)))
                .collect(),
            profilers: Profiler::ALL
                .into_iter()
                .map(Profiler::text)
                .filter_map(|name| Some((name.to_owned(), strongest(&format!("profiler:{name}"))?.to_owned())))
                .collect(),
            kv_evictions: strongest("kv_evictions").map(str::to_owned),
            moe_coselection: first("moe_coselection").is_some_and(|on| on == "1"),
            moe_weights: first("moe_weights").is_some_and(|on| on == "1"),
            hooks: hooks
                .into_iter()
                .filter_map(|name| Some((name.to_owned(), strongest(&format!("hook:{name}"))?.to_owned())))
                .collect(),
        }
    }

    /// Whether evictions of KV cache blocks were seen, if there were any. Nobody said otherwise: they were.
    pub fn sees_evictions(&self) -> bool {
        self.is_on(Profiler::KvCacheTracking) && self.kv_evictions.as_deref().is_none_or(|state| state == "on")
    }

    /// Whether a profiler was on in some process.
    pub fn is_on(&self, profiler: Profiler) -> bool {
        self.profilers.iter().any(|(name, state)| name == profiler.text() && state == "on")
    }
}
