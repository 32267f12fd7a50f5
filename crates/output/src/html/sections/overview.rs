//! The numbers that stand first, and what has to be known before any of them is read.

use profilemate_analysis::Answers;
use profilemate_session::Session;

use crate::html::model::{Figure, Text};
use crate::numbers::{duration, grouped};

fn figure(label: &str, value: String, note: Option<String>) -> Figure {
    Figure { label: label.into(), value: value.into(), note: note.map(Into::into) }
}

/// What ran on what.
pub(in crate::html) fn about(session: &Session, answers: &Answers) -> Vec<Text> {
    let facts = &answers.facts;
    let gpu = facts.gpu_name.as_ref().map(|name| match facts.gpu_count {
        Some(count) if count > 1 => format!("{count} x {name}"),
        _ => name.clone(),
    });
    let started = (session.start.realtime_ns > 0).then(|| {
        let date = crate::date::iso8601(session.start.realtime_ns);
        let (day, time) = date.split_once('T').unwrap_or((&date, ""));
        format!("{day} {} UTC", time.split('.').next().unwrap_or(""))
    });
    [
        facts.model.clone(),
        facts.vllm_version.as_ref().map(|version| format!("vLLM {version}")),
        gpu,
        started,
        facts.source.as_ref().map(|source| format!("made from {source}")),
    ]
    .into_iter()
    .flatten()
    .map(Into::into)
    .collect()
}

/// What makes the rest incomplete.
pub(in crate::html) fn warnings(session: &Session, answers: &Answers) -> Vec<Text> {
    let mut warnings = Vec::new();
    if session.is_alive() {
        warnings.push(
            "The server was still running when this page was made: it shows what was recorded until then.".into(),
        );
    }
    if let Some(source) = &answers.facts.source {
        let error = answers
            .facts
            .time_error_ms
            .map_or(String::new(), |error| format!(" Its times may be off by {error:.0} ms."));
        warnings.push(format!("Made from {source}, which knows less than a recording.{error}").into());
    }
    for (count, what) in [
        (session.records_lost(), "records were lost"),
        (session.records_damaged(), "records are damaged"),
        (answers.probe_errors, "times a probe failed"),
    ] {
        if count > 0 {
            warnings.push(format!("{} {what}: what they would have said is missing here.", grouped(count)).into());
        }
    }
    warnings
}

/// The most important numbers.
pub(in crate::html) fn figures(answers: &Answers) -> Vec<Figure> {
    let counters = &answers.counters;
    let mut figures = vec![figure("Duration", duration(answers.duration_ns), None)];
    figures.extend(counters.finished_requests.map(|requests| {
        let preemptions = counters.preemptions.map(|count| format!("{} preemptions", grouped(count)));
        figure("Requests finished", grouped(requests), preemptions)
    }));
    figures.extend(counters.generation_tokens.map(|new| {
        figure("New tokens", grouped(new), counters.prompt_tokens.map(|of| format!("{} prompt", grouped(of))))
    }));
    let inner = &answers.throughput.intervals;
    let worked_ns: u64 = inner.iter().map(|interval| interval.length_ns).sum();
    if let (Some(new), true) = (counters.generation_tokens, worked_ns > 0) {
        let rate = new as f64 / (worked_ns as f64 / 1e9);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "not negative; shown rounded")]
        let rate = grouped(rate.round() as u64);
        figures.push(figure("Throughput", rate, Some("new tokens/s, while there was work".to_owned())));
    }
    if let Some(requests) = &answers.requests {
        figures.extend(requests.ttft.map(|of| {
            figure("Time to first token", format!("{:.3} s", of.p50), Some(format!("p50; p99 {:.3} s", of.p99)))
        }));
        figures.extend(requests.tpot.map(|of| {
            figure(
                "Time per output token",
                format!("{:.2} ms", of.p50),
                Some(format!("p50; p99 {:.2} ms", of.p99)),
            )
        }));
    }
    let engine_step = answers
        .cpu
        .as_ref()
        .and_then(|cpu| cpu.operations.iter().find(|(of, _)| *of == profilemate_session::Name::EngineStep));
    figures.extend(engine_step.map(|(_, times)| {
        let note = format!("mean of {}; p99 {:.2} ms", grouped(times.count), times.p99_ms);
        figure("Engine step", format!("{:.2} ms", times.mean_ms), Some(note))
    }));
    let bubbles = answers
        .breakdown
        .iter()
        .flat_map(|breakdown| &breakdown.workers)
        .filter_map(|worker| Some((worker, worker.gpu.as_ref()?.bubble_pct()?)))
        .max_by(|a, b| a.1.total_cmp(&b.1));
    figures.extend(bubbles.map(|(worker, share)| {
        figure(
            "GPU waits for the host",
            format!("{share:.1} %"),
            Some(format!("{}, of the time with requests", worker.process)),
        )
    }));
    if let Some(batch) = &answers.batch {
        figures.extend(batch.mean_seq_utilization_pct.map(|seqs| {
            let tokens = batch
                .mean_token_utilization_pct
                .map(|tokens| format!("of the sequences; {tokens:.1} % of the tokens"));
            figure("Batches filled", format!("{seqs:.1} %"), tokens)
        }));
    }
    if let Some(cache) = &answers.kv_cache {
        figures.extend(cache.all.peak_usage_pct().map(|peak| {
            let mean = cache.all.mean_usage_pct.map(|mean| format!("mean {mean:.1} %"));
            figure("KV cache peak", format!("{peak:.1} %"), mean)
        }));
    }
    if let Some(graphs) = answers.cuda_graphs.as_ref().filter(|_| answers.facts.gpu_name.is_some()) {
        figures.extend(graphs.coverage_pct().map(|share| {
            let padding =
                graphs.padding_pct().map(|padding| format!("of steps; padding {padding:.1} % of tokens"));
            figure("In CUDA graphs", format!("{share:.1} %"), padding)
        }));
    }
    figures
}
