//! The figures that are compared, and their names.

use profilemate_session::Name;

use crate::steps::Phase;

/// Something of which a run has many times.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Times {
    /// Forward passes of a phase.
    Forward(Phase),
    /// An operation of the CPU.
    Cpu(Name),
    /// Requests, from queued to started.
    Queue,
    /// Requests, from arrival to the first token.
    FirstToken,
    /// Requests, per output token after the first.
    PerOutputToken,
    /// Requests, from arrival to the end.
    EndToEnd,
}

impl Times {
    /// Everything of which there are times.
    pub fn all() -> Vec<Self> {
        let forward = Phase::ALL.map(Self::Forward);
        let cpu = Name::ALL.iter().copied().filter(|name| crate::cpu::is_operation(*name)).map(Self::Cpu);
        let requests = [Self::Queue, Self::FirstToken, Self::PerOutputToken, Self::EndToEnd];
        forward.into_iter().chain(cpu).chain(requests).collect()
    }

    /// Its name.
    pub fn text(self) -> &'static str {
        match self {
            Self::Forward(phase) => phase.text(),
            Self::Cpu(name) => name.text(),
            Self::Queue => "queue",
            Self::FirstToken => "ttft",
            Self::PerOutputToken => "tpot",
            Self::EndToEnd => "e2e",
        }
    }

    /// What it is, in a few words.
    pub fn meaning(self) -> &'static str {
        match self {
            Self::Forward(Phase::Prefill) => "forward pass of steps that only compute prompts",
            Self::Forward(Phase::Decode) => "forward pass of steps that compute no prompt",
            Self::Forward(Phase::Mixed) => "forward pass of steps that do both",
            Self::Cpu(_) => "operation of the CPU, see docs/session.md",
            Self::Queue => "requests, from queued to started",
            Self::FirstToken => "requests, from arrival to the first token",
            Self::PerOutputToken => "requests, per output token after the first",
            Self::EndToEnd => "requests, from arrival to the end",
        }
    }
}

/// What is said of many times.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Statistic {
    /// Mean.
    Mean,
    /// Median.
    P50,
    /// 95th percentile.
    P95,
    /// 99th percentile.
    P99,
}

impl Statistic {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Mean, Self::P50, Self::P95, Self::P99];

    /// Its name.
    pub fn text(self) -> &'static str {
        match self {
            Self::Mean => "mean",
            Self::P50 => "p50",
            Self::P95 => "p95",
            Self::P99 => "p99",
        }
    }

    /// The share of the samples that lie under it; `None` for the mean.
    pub(crate) fn fraction(self) -> Option<f64> {
        match self {
            Self::Mean => None,
            Self::P50 => Some(0.5),
            Self::P95 => Some(0.95),
            Self::P99 => Some(0.99),
        }
    }
}

/// What is so many per second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rate {
    /// Tokens that were generated, over all time.
    GeneratedTokens,
    /// Tokens of prompts that were computed, over all time.
    PromptTokens,
    /// Requests that ended, over all time.
    Requests,
    /// Engine steps, over all time.
    Steps,
    /// Tokens of the steps of a phase, over the time of their forward passes.
    Forward(Phase),
}

/// What is a share of something, in percent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Share {
    /// Time that GPUs waited for the host between steps.
    GpuIdle,
    /// Sequences of batches, of the most that there may be.
    Sequences,
    /// Tokens of batches, of the most that there may be.
    Tokens,
    /// Requests that were preempted.
    Preempted,
    /// KV cache blocks in use, on average.
    KvUsage,
    /// KV cache blocks in use, at most.
    KvPeak,
    /// Tokens of prompts that the prefix cache found.
    KvHits,
    /// Steps that ran in a CUDA graph.
    GraphCoverage,
    /// Computed tokens that were padding.
    GraphPadding,
}

/// A figure of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Metric {
    /// Milliseconds.
    Time(Times, Statistic),
    /// Per second.
    Rate(Rate),
    /// Percent.
    Share(Share),
}

/// Which way is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Better {
    /// Less is better.
    Lower,
    /// More is better.
    Higher,
    /// It depends.
    Neither,
}

impl Rate {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::GeneratedTokens,
        Self::PromptTokens,
        Self::Requests,
        Self::Steps,
        Self::Forward(Phase::Prefill),
        Self::Forward(Phase::Decode),
        Self::Forward(Phase::Mixed),
    ];

    fn text(self) -> &'static str {
        match self {
            Self::GeneratedTokens => "throughput.tokens_per_sec",
            Self::PromptTokens => "throughput.prompt_tokens_per_sec",
            Self::Requests => "throughput.requests_per_sec",
            Self::Steps => "throughput.steps_per_sec",
            Self::Forward(Phase::Prefill) => "prefill.tokens_per_sec",
            Self::Forward(Phase::Decode) => "decode.tokens_per_sec",
            Self::Forward(Phase::Mixed) => "mixed.tokens_per_sec",
        }
    }

    fn meaning(self) -> &'static str {
        match self {
            Self::GeneratedTokens => "generated tokens, from the first step to the last",
            Self::PromptTokens => "computed tokens of prompts, over the same time",
            Self::Requests => "requests that ended, over the same time",
            Self::Steps => "engine steps, over the same time",
            Self::Forward(_) => "tokens of these steps over their forward time",
        }
    }
}

impl Share {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::GpuIdle,
        Self::Sequences,
        Self::Tokens,
        Self::Preempted,
        Self::KvUsage,
        Self::KvPeak,
        Self::KvHits,
        Self::GraphCoverage,
        Self::GraphPadding,
    ];

    fn text(self) -> &'static str {
        match self {
            Self::GpuIdle => "gpu.idle_pct",
            Self::Sequences => "batch.seq_utilization_pct",
            Self::Tokens => "batch.token_utilization_pct",
            Self::Preempted => "preemption.rate_pct",
            Self::KvUsage => "kv.usage_pct",
            Self::KvPeak => "kv.peak_pct",
            Self::KvHits => "kv.hit_rate_pct",
            Self::GraphCoverage => "cuda_graphs.coverage_pct",
            Self::GraphPadding => "cuda_graphs.padding_pct",
        }
    }

    fn meaning(self) -> &'static str {
        match self {
            Self::GpuIdle => "time that the GPU waits for the host between steps",
            Self::Sequences => "sequences of batches, of --max-num-seqs",
            Self::Tokens => "tokens of batches, of --max-num-batched-tokens",
            Self::Preempted => "requests that were preempted at least once",
            Self::KvUsage => "KV cache blocks in use, on average",
            Self::KvPeak => "KV cache blocks in use, at most",
            Self::KvHits => "tokens that the prefix cache found, of those asked for",
            Self::GraphCoverage => "steps that ran in a CUDA graph",
            Self::GraphPadding => "computed tokens that were padding",
        }
    }
}

impl Metric {
    /// Every metric, in the order of reports.
    pub fn all() -> Vec<Self> {
        let times = |times: Times| Statistic::ALL.map(|statistic| Self::Time(times, statistic));
        Rate::ALL
            .map(Self::Rate)
            .into_iter()
            .chain(Times::all().into_iter().flat_map(times))
            .chain(Share::ALL.map(Self::Share))
            .collect()
    }

    /// Its name, as it stands in `--fail-on`.
    pub fn name(self) -> String {
        match self {
            Self::Time(times, statistic) => format!("{}.{}", times.text(), statistic.text()),
            Self::Rate(rate) => rate.text().to_owned(),
            Self::Share(share) => share.text().to_owned(),
        }
    }

    /// The metric with this name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::all().into_iter().find(|metric| match metric {
            Self::Time(times, statistic) => {
                let rest = name.strip_prefix(times.text()).and_then(|rest| rest.strip_prefix('.'));
                rest == Some(statistic.text())
            }
            Self::Rate(rate) => rate.text() == name,
            Self::Share(share) => share.text() == name,
        })
    }

    /// What it is, in a few words.
    pub fn meaning(self) -> &'static str {
        match self {
            Self::Time(times, _) => times.meaning(),
            Self::Rate(rate) => rate.meaning(),
            Self::Share(share) => share.meaning(),
        }
    }

    /// The unit of its values.
    pub fn unit(self) -> &'static str {
        match self {
            Self::Time(..) => "ms",
            Self::Rate(_) => "1/s",
            Self::Share(_) => "%",
        }
    }

    /// Whether its differences are percentage points; otherwise they are shares of the base's value.
    pub fn is_in_points(self) -> bool {
        matches!(self, Self::Share(_))
    }

    /// Which way is better.
    pub fn better(self) -> Better {
        match self {
            // How long the engine had no request says nothing of how it works.
            Self::Time(Times::Cpu(Name::EngineIdle), _)
            | Self::Rate(Rate::Steps)
            | Self::Share(Share::Sequences | Share::Tokens | Share::KvUsage | Share::KvPeak) => Better::Neither,
            Self::Time(..) | Self::Share(Share::GpuIdle | Share::Preempted | Share::GraphPadding) => Better::Lower,
            Self::Rate(_) | Self::Share(Share::KvHits | Share::GraphCoverage) => Better::Higher,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_reads_back() {
        let all = Metric::all();
        for metric in &all {
            assert_eq!(Metric::parse(&metric.name()), Some(*metric));
        }
        for name in ["decode.p99", "ttft.p50", "throughput.tokens_per_sec", "engine_step.mean", "kv.hit_rate_pct"]
        {
            assert!(Metric::parse(name).is_some(), "{name}");
        }
        for name in ["", "decode", "decode.p98", "forward.p50", "Decode.p50", "warm_up.p50"] {
            assert_eq!(Metric::parse(name), None);
        }
    }
}
