//! From the log of a vLLM that ran with `--enable-logging-iteration-details` (0.14 or newer) to a session.
//!
//! Each engine becomes a raw log with the role `engine_core`: for each iteration the batch (kind 2), how long the engine
//! waited for the model's output (span `iteration`), and the share of the KV cache in use, where vLLM says it (since 0.26).
//! Requests, queues, the parts of a step and the GPU are not in such a log, so they are not in the session either.
//!
//! vLLM takes a request for a context request as long as it has no output token, so what a preempted request computes
//! again counts as generation here, and as prefill in what ProfileMate records.

mod date;
mod line;
mod place;

use std::collections::VecDeque;
use std::fs;
use std::io::{self, BufRead, Read};
use std::path::{Path, PathBuf};

use profilemate_format::head::{Anchor, ClockSource, Identity};
use profilemate_format::record::{FLAG_SHARE, KvCache, Label, Payload, Record, Schedule, Span};
use profilemate_record::{PastLog, session_folder};

use date::Years;
pub use line::{About, Iteration, Kind, Line, Origin, Stamp};
use place::{Known, place};

/// Value of the fact `source` in the logs that are made here.
pub const SOURCE: &str = "vllm log";

/// Longest line that is looked at; vLLM's own have some hundred bytes, or some thousand at its start.
const MAX_LINE_BYTES: u64 = 1 << 20;

/// How far iterations of one engine may stand from their order, since several API servers write them: in iterations.
const OUT_OF_ORDER: u64 = 64;

/// Most engines, one after the other, with one name: more is no log of vLLM's.
const MAX_ENGINES: usize = 1000;

const NANOSECONDS: u64 = 1_000_000_000;

/// Profilers that have something to read in such a log, and the others.
const PROFILERS: [(&str, bool); 7] = [
    ("cpu_timing", true),
    ("batch_utilization_tracking", true),
    ("cuda_graph_tracking", false),
    ("moe_expert_tracking", false),
    ("forward_pass_timing", false),
    ("preemption_tracking", false),
    ("encoder_decoder_timing", false),
];

const NOT_IN_THE_LOG: &str = "could not attach: not in the log";

/// Why nothing was imported. Nothing is left behind.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The log cannot be read.
    #[error("cannot read {name}: {reason}")]
    Read {
        /// What it is called.
        name: String,
        /// What the system said.
        reason: io::Error,
    },
    /// There is nothing in it.
    #[error(
        "there is no iteration in {name} (lines: {lines}): vLLM logs them when it is started with \
         --enable-logging-iteration-details"
    )]
    NoIterations {
        /// What it is called.
        name: String,
        /// Lines that were read.
        lines: u64,
    },
    /// What is in it is in another format.
    #[error(
        "line {first} of {name} looks like an iteration of vLLM's, and neither it nor any other line is in a format that \
         this version of ProfileMate knows (vLLM 0.14 to 0.33)"
    )]
    UnknownFormat {
        /// What it is called.
        name: String,
        /// The first such line, from 1.
        first: u64,
    },
    /// It does not say when anything happened.
    #[error(
        "no iteration in {name} has a time in front of it, such as 11-24 20:31:05 (iterations: {iterations}): \
         keep vLLM's own log format, or one with %(asctime)s"
    )]
    NoTimes {
        /// What it is called.
        name: String,
        /// Iterations that were read.
        iterations: u64,
    },
    /// It is not a log.
    #[error("{name} tells of more than {MAX_ENGINES} engines: it is no log of one launch of vLLM")]
    TooManyEngines {
        /// What it is called.
        name: String,
    },
    /// The session folder cannot be made.
    #[error("cannot make a session in {folder}: {reason}")]
    Folder {
        /// The output folder.
        folder: String,
        /// What the system said.
        reason: io::Error,
    },
    /// A raw log cannot be written.
    #[error("{reason}; nothing was imported. Make room, or choose another folder with `--output-dir`")]
    Write {
        /// Which file, and what the system said.
        reason: profilemate_record::Error,
    },
}

/// What became of a log's lines.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Lines {
    /// All of them.
    pub all: u64,
    /// Iterations that are in the session.
    pub iterations: u64,
    /// Those among them without requests.
    pub dummy: u64,
    /// Iterations that stand in the log more than once: all but the first.
    pub repeated: u64,
    /// Iterations of engines none of whose lines has a time.
    pub without_time: u64,
    /// Lines that begin like an iteration and go on in an unknown way, and the first of them, from 1.
    pub unknown: u64,
    /// See `unknown`.
    pub first_unknown: Option<u64>,
    /// Averages over some seconds; they belong to no step and are not used.
    pub throughput: u64,
    /// The rest.
    pub other: u64,
}

/// An engine that was imported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Engine {
    /// Its data-parallel rank.
    pub rank: u32,
    /// Iterations.
    pub iterations: u64,
    /// Iterations that are missing between its first and its last.
    pub missing: u64,
    /// How far off its times may be, nanoseconds.
    pub error_ns: u64,
}

/// What was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    /// The session folder.
    pub folder: PathBuf,
    /// What became of the lines.
    pub lines: Lines,
    /// The engines, in the order in which they began in the log.
    pub engines: Vec<Engine>,
}

/// Makes a session in `output_dir` from a log. `name` is what errors call it; `until` is when it was last written to, in
/// seconds since 1970, which tells the year.
///
/// # Errors
/// When the log cannot be read or holds no iteration that can be placed in time, or the session cannot be written.
pub fn import(log: impl BufRead, name: &str, until: i64, output_dir: &Path) -> Result<Imported, Error> {
    let mut found = Found::read(log, name)?;
    let lives = found.place(until);
    let counts = &mut found.lines;
    counts.iterations = lives.iter().map(|life| life.iterations.len() as u64).sum();
    counts.dummy = lives.iter().flat_map(|life| &life.iterations).filter(|(said, _)| said.is_dummy).count() as u64;
    if lives.is_empty() {
        let name = name.to_owned();
        return Err(match (counts.without_time, counts.first_unknown) {
            (0, None) => Error::NoIterations { name, lines: counts.all },
            (0, Some(first)) => Error::UnknownFormat { name, first },
            (iterations, _) => Error::NoTimes { name, iterations },
        });
    }
    let folder = session_folder::create(output_dir)
        .map_err(|reason| Error::Folder { folder: output_dir.display().to_string(), reason })?;
    if let Err(reason) = write(&folder, &lives, &found.about) {
        let _ = fs::remove_dir_all(&folder);
        return Err(Error::Write { reason });
    }
    let engines = lives.iter().map(Placed::engine).collect();
    Ok(Imported { folder, lines: found.lines, engines })
}

/// One engine from its start to its end, as the log tells it. An engine that is started again begins another life.
#[derive(Debug, Default)]
struct Life {
    rank: u32,
    pid: Option<u32>,
    /// What was said, in the order of the log.
    said: Vec<(Iteration, Option<Stamp>)>,
    /// The greatest index so far.
    last: u64,
    /// The iterations that were said last.
    recent: VecDeque<Iteration>,
}

/// What to do with an iteration of an engine.
enum Belongs {
    Here,
    /// It was said before, word for word.
    Again,
    /// It is of the next engine with this name.
    Next,
}

impl Life {
    fn belongs(&self, iteration: &Iteration) -> Belongs {
        if self.recent.contains(iteration) {
            return Belongs::Again;
        }
        let is_late = iteration.index.saturating_add(OUT_OF_ORDER) > self.last;
        let is_there = self.recent.iter().any(|recent| recent.index == iteration.index);
        if iteration.index > self.last || is_late && !is_there { Belongs::Here } else { Belongs::Next }
    }

    fn push(&mut self, iteration: Iteration, stamp: Option<Stamp>) {
        self.last = self.last.max(iteration.index);
        if self.recent.len() as u64 == OUT_OF_ORDER {
            self.recent.pop_front();
        }
        self.recent.push_back(iteration);
        self.said.push((iteration, stamp));
    }
}

/// A life whose iterations have their places: what was said, and when it ended in nanoseconds since 1970.
#[derive(Debug)]
struct Placed {
    rank: u32,
    pid: Option<u32>,
    iterations: Vec<(Iteration, u64)>,
    error_ns: u64,
}

impl Placed {
    fn engine(&self) -> Engine {
        let iterations = self.iterations.len() as u64;
        let [first, last] =
            [self.iterations.first(), self.iterations.last()].map(|end| end.map_or(0, |(said, _)| said.index));
        Engine {
            rank: self.rank,
            iterations,
            missing: (last - first).saturating_add(1).saturating_sub(iterations),
            error_ns: self.error_ns,
        }
    }
}

/// What is in a log.
#[derive(Debug, Default)]
struct Found {
    lines: Lines,
    about: About,
    lives: Vec<Life>,
    /// The process of each engine, as it was last seen.
    pids: Vec<(u32, u32)>,
}

impl Found {
    fn read(mut log: impl BufRead, name: &str) -> Result<Self, Error> {
        let mut found = Self::default();
        let mut bytes = Vec::new();
        loop {
            bytes.clear();
            let line =
                read_line(&mut log, &mut bytes).map_err(|reason| Error::Read { name: name.to_owned(), reason })?;
            if !line {
                return Ok(found);
            }
            found.lines.all += 1;
            found.take(Line::parse(&String::from_utf8_lossy(&bytes)));
            if found.lives.len() > MAX_ENGINES {
                return Err(Error::TooManyEngines { name: name.to_owned() });
            }
        }
    }

    fn take(&mut self, line: Line) {
        let own_engine = line.origin.as_ref().and_then(Origin::engine);
        if let (Some(rank), Some(origin)) = (own_engine, &line.origin) {
            match self.pids.iter_mut().find(|(of, _)| *of == rank) {
                Some((_, pid)) => *pid = origin.pid,
                None => self.pids.push((rank, origin.pid)),
            }
        }
        match line.kind {
            Kind::Iteration(iteration) => {
                // Before 0.26 the engine's process says it by itself.
                let rank = iteration.engine.or(own_engine).unwrap_or(0);
                self.iteration(rank, iteration, line.stamp);
            }
            Kind::UnknownIteration => {
                self.lines.unknown += 1;
                self.lines.first_unknown.get_or_insert(self.lines.all);
            }
            Kind::Throughput => self.lines.throughput += 1,
            Kind::About(about) => {
                self.lines.other += 1;
                let known = &mut self.about;
                known.version = about.version.or_else(|| known.version.take());
                known.model = about.model.or_else(|| known.model.take());
                known.max_num_seqs = about.max_num_seqs.or(known.max_num_seqs);
                known.max_num_tokens = about.max_num_tokens.or(known.max_num_tokens);
            }
            Kind::Other => self.lines.other += 1,
        }
    }

    fn iteration(&mut self, rank: u32, iteration: Iteration, stamp: Option<Stamp>) {
        let pid = self.pids.iter().find(|(of, _)| *of == rank).map(|(_, pid)| *pid);
        let current = self.lives.iter_mut().rev().find(|life| life.rank == rank);
        if let Some(life) = current {
            match life.belongs(&iteration) {
                Belongs::Again => {
                    self.lines.repeated += 1;
                    return;
                }
                Belongs::Here if life.pid == pid => {
                    life.push(iteration, stamp);
                    return;
                }
                Belongs::Here | Belongs::Next => {}
            }
        }
        let mut life = Life { rank, pid, ..Life::default() };
        life.push(iteration, stamp);
        self.lives.push(life);
    }

    /// Gives every iteration its place in time.
    fn place(&mut self, until: i64) -> Vec<Placed> {
        let mut lives = Vec::new();
        // An engine that follows another one was over when its lines end; so years are found from the end of each.
        for mut life in std::mem::take(&mut self.lives) {
            let mut years = Years::before(until);
            let written: Vec<Option<[i64; 2]>> = life
                .said
                .iter()
                .rev()
                .map(|(_, stamp)| years.span(stamp.as_ref()?))
                .collect::<Vec<_>>()
                .into_iter()
                .rev()
                .collect();
            let mut known: Vec<(Iteration, Option<[i64; 2]>)> =
                life.said.drain(..).zip(written).map(|((said, _), written)| (said, written)).collect();
            known.sort_by_key(|(said, _)| said.index);
            let times: Vec<Known> = known
                .iter()
                .map(|(said, written)| Known { written: *written, duration: said.elapsed_ns.cast_signed() })
                .collect();
            let Some(placed) = place(&times) else {
                self.lines.without_time += known.len() as u64;
                continue;
            };
            let ends = placed.ends.into_iter().map(|end| u64::try_from(end).unwrap_or(0));
            lives.push(Placed {
                rank: life.rank,
                pid: life.pid,
                iterations: known.into_iter().map(|(said, _)| said).zip(ends).collect(),
                error_ns: placed.error.unsigned_abs(),
            });
        }
        lives
    }
}

/// Reads a line without its end into `bytes`, or as much of it as is looked at; `false` at the end of the log.
fn read_line(log: &mut impl BufRead, bytes: &mut Vec<u8>) -> io::Result<bool> {
    let read = log.by_ref().take(MAX_LINE_BYTES).read_until(b'\n', bytes)?;
    if bytes.last() == Some(&b'\n') {
        bytes.pop();
    } else if read as u64 == MAX_LINE_BYTES {
        // No line of vLLM's: what it is cut to could look like one.
        bytes.clear();
        skip_line(log)?;
    }
    Ok(read > 0)
}

fn skip_line(log: &mut impl BufRead) -> io::Result<()> {
    loop {
        let buffer = log.fill_buf()?;
        if buffer.is_empty() {
            return Ok(());
        }
        let (length, is_end) = match buffer.iter().position(|byte| *byte == b'\n') {
            Some(at) => (at + 1, true),
            None => (buffer.len(), false),
        };
        log.consume(length);
        if is_end {
            return Ok(());
        }
    }
}

fn write(folder: &Path, lives: &[Placed], about: &About) -> Result<(), profilemate_record::Error> {
    for life in lives {
        write_life(folder, life, about)?;
    }
    Ok(())
}

fn write_life(folder: &Path, life: &Placed, about: &About) -> Result<(), profilemate_record::Error> {
    let mut log = PastLog::create(
        folder,
        Identity {
            log_id: [0; 16],
            role: "engine_core".to_owned(),
            rank: life.rank,
            data_parallel_rank: life.rank,
            // 0 = not known.
            pid: life.pid.unwrap_or(0),
            parent_pid: 0,
            process_start: 0,
            ticks_per_second: NANOSECONDS,
            clock: ClockSource::Monotonic,
            segment_slots: 65_535,
            text_capacity: 0,
        },
    );
    facts(&mut log, life, about);
    let name = log.intern("iteration");
    for (said, end) in &life.iterations {
        for record in records(said, *end, name).into_iter().flatten() {
            log.push(&record)?;
        }
    }
    // Ticks are nanoseconds since 1970. The log begins with its first iteration and ends with its last.
    let [begin, end] = [life.iterations.first(), life.iterations.last()]
        .map(|edge| edge.map_or([0; 2], |(said, end)| [end.saturating_sub(said.elapsed_ns), *end]));
    let anchors = [begin[0], end[1]].map(|ticks| Anchor { ticks, monotonic_ns: ticks, realtime_ns: ticks });
    log.finish(&anchors[..if anchors[0] == anchors[1] { 1 } else { 2 }])
}

fn facts(log: &mut PastLog, life: &Placed, about: &About) {
    log.fact("source", SOURCE);
    log.fact("time_error_ms", &format!("{:.3}", life.error_ns as f64 / 1e6));
    for (key, value) in [("vllm_version", &about.version), ("model", &about.model)] {
        if let Some(value) = value {
            log.fact(key, value);
        }
    }
    for (key, value) in [("max_num_seqs", about.max_num_seqs), ("max_num_tokens", about.max_num_tokens)] {
        if let Some(value) = value {
            log.fact(key, &value.to_string());
        }
    }
    let has_kv_cache = life.iterations.iter().any(|(said, _)| said.kv_usage.is_some());
    for (profiler, is_there) in PROFILERS.into_iter().chain([("kv_cache_tracking", has_kv_cache)]) {
        log.fact(&format!("profiler:{profiler}"), if is_there { "on" } else { NOT_IN_THE_LOG });
    }
    log.fact("kv_evictions", NOT_IN_THE_LOG);
}

/// The records of an iteration: the batch, the wait for its output, the KV cache after it.
fn records(said: &Iteration, end: u64, name: u32) -> [Option<Record>; 3] {
    const UNKNOWN: u32 = u32::MAX;
    let begin = end.saturating_sub(said.elapsed_ns);
    let num_tokens = said.context_tokens.saturating_add(said.generation_tokens);
    let step = said.index.saturating_add(1);
    let label = if said.is_dummy { Label::Dummy } else { Label::Work };
    let record = |ticks, flags, name, payload| Record { ticks, step, label, flags, name, payload };
    let schedule = Schedule {
        num_seqs: said.context_requests.saturating_add(said.generation_requests),
        num_tokens,
        prefill_tokens: said.context_tokens,
        prefill_seqs: said.context_requests,
        running: None,
        waiting: None,
        completed_prompt_tokens: None,
        completed_prompts: None,
    };
    let [inputs, embeddings] = said.encoder.unwrap_or_default();
    let span = Span {
        duration_ticks: said.elapsed_ns,
        value_a: u64::from(inputs),
        value_b: u64::from(embeddings),
        ..Span::default()
    };
    let kv_cache = said.kv_usage.map(|used| KvCache {
        used,
        total: 1000,
        cached: UNKNOWN,
        allocated: UNKNOWN,
        reused: UNKNOWN,
        evicted: UNKNOWN,
        prefix_query_tokens: UNKNOWN,
        prefix_hit_tokens: UNKNOWN,
    });
    // vLLM up to 0.23 also says when it scheduled nothing; no model ran then.
    let has_run = num_tokens > 0 || said.is_dummy;
    [
        (!said.is_dummy).then(|| record(begin, 0, 0, Payload::Schedule(schedule))),
        has_run.then(|| record(begin, 0, name, Payload::Span(span))),
        kv_cache.map(|kv_cache| record(end, FLAG_SHARE, 0, Payload::KvCache(kv_cache))),
    ]
}
