//! What to change: rules over the answers of a session, each with its evidence, how sure it is, and the setting of vLLM.
//!
//! [`find`] is a pure function of [`Answers`]. One file per subject holds its rules with their thresholds; `docs/findings.md`
//! has the source of each. Three things keep the advice together:
//!
//! - A rule looks for the cause before it blames a setting: what limited the batches, and whether anybody waited.
//! - Symptoms of one cause make one finding. Which cause a queue has is decided in one place ([`queue::cause`]), and so is
//!   whether the KV cache is too small ([`kv_cache::pressure`]); the rules ask there.
//! - No rule fires on few samples. What could not be judged is said, with the reason.

pub mod batches;
pub mod capture_sizes;
pub mod cuda_graphs;
pub mod encoder;
pub mod garbage;
pub mod host;
pub mod kv_cache;
pub mod moe_experts;
pub mod preemption;
pub mod queue;
pub mod ranks;
pub mod sampling;
mod settings;

use std::fmt::Display;

use crate::Answers;

/// What a finding is about, in the order of reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Subject {
    /// How full batches are.
    Batches,
    /// Requests that wait to be started.
    Queue,
    /// Requests that lost their blocks.
    Preemption,
    /// Blocks of the KV cache and the prefix cache.
    KvCache,
    /// CUDA graphs.
    CudaGraphs,
    /// Encoders of images and sound.
    Encoder,
    /// What the host does between steps.
    Host,
    /// Pauses of Python's garbage collector.
    GarbageCollection,
    /// Workers of one engine against each other.
    Ranks,
    /// The load of experts.
    MoeExperts,
    /// Choosing the next tokens.
    Sampling,
}

impl Subject {
    /// Every subject.
    pub const ALL: [Self; 11] = [
        Self::Batches,
        Self::Queue,
        Self::Preemption,
        Self::KvCache,
        Self::CudaGraphs,
        Self::Encoder,
        Self::Host,
        Self::GarbageCollection,
        Self::Ranks,
        Self::MoeExperts,
        Self::Sampling,
    ];

    /// Its name.
    pub fn text(self) -> &'static str {
        match self {
            Self::Batches => "batches",
            Self::Queue => "queue",
            Self::Preemption => "preemption",
            Self::KvCache => "kv_cache",
            Self::CudaGraphs => "cuda_graphs",
            Self::Encoder => "encoder",
            Self::Host => "host",
            Self::GarbageCollection => "garbage_collection",
            Self::Ranks => "ranks",
            Self::MoeExperts => "moe_experts",
            Self::Sampling => "sampling",
        }
    }
}

/// How much it matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// Good to know; nothing has to change.
    Info,
    /// Costs time or throughput.
    Warning,
    /// Costs much of it.
    Critical,
}

impl Severity {
    /// Its name.
    pub fn text(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }
}

/// How sure it is that the cause is named rightly and that the change helps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// It may be something else.
    Low,
    /// It was concluded.
    Medium,
    /// It was counted or measured.
    High,
}

impl Level {
    /// Its name.
    pub fn text(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
        }
    }
}

/// How sure, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Confidence {
    /// How sure.
    pub level: Level,
    /// Why: a clause.
    pub reason: String,
}

impl Confidence {
    fn new(level: Level, reason: impl Into<String>) -> Self {
        Self { level, reason: reason.into() }
    }
}

/// A number that a finding rests on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Evidence {
    /// What it is, in words joined by `_`.
    pub name: &'static str,
    /// The number; finite.
    pub value: f64,
    /// Its unit: `%`, `s`, `ms`, `steps`, `requests`, `tokens`, `blocks`, …
    pub unit: &'static str,
}

/// Which way to change a setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// A greater value.
    Raise,
    /// A smaller value.
    Lower,
    /// This value, or, without one, give the flag.
    Set,
    /// Leave the flag out.
    Remove,
}

impl Direction {
    /// Its name.
    pub fn text(self) -> &'static str {
        match self {
            Self::Raise => "raise",
            Self::Lower => "lower",
            Self::Set => "set",
            Self::Remove => "remove",
        }
    }
}

/// A change of one setting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The flag of `vllm serve`, with its dashes.
    pub flag: &'static str,
    /// Which way.
    pub direction: Direction,
    /// The value that is suggested, as it is written behind the flag; `None` = none could be computed.
    pub value: Option<String>,
    /// The value that it has; `None` = not known.
    pub current: Option<String>,
    /// What else to know about it; a clause.
    pub note: Option<&'static str>,
}

impl Change {
    fn new(flag: &'static str, direction: Direction) -> Self {
        Self { flag, direction, value: None, current: None, note: None }
    }

    fn to(self, value: impl Display) -> Self {
        Self { value: Some(value.to_string()), ..self }
    }

    fn from(self, current: Option<impl Display>) -> Self {
        Self { current: current.map(|current| current.to_string()), ..self }
    }

    fn note(self, note: &'static str) -> Self {
        Self { note: Some(note), ..self }
    }
}

/// Where the numbers can be looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Proof {
    /// A file of the session.
    pub file: &'static str,
    /// A column or key in it.
    pub column: &'static str,
}

/// One thing that was found.
#[derive(Debug, Clone, PartialEq)]
pub struct Finding {
    /// Its name: stable, words joined by `-`.
    pub id: &'static str,
    /// What it is about.
    pub subject: Subject,
    /// How much it matters.
    pub severity: Severity,
    /// How sure it is.
    pub confidence: Confidence,
    /// What was found: one sentence without its full stop.
    pub title: String,
    /// The numbers.
    pub evidence: Vec<Evidence>,
    /// What to change: the first is to be tried first, the others instead of it or beside it. Empty = no setting helps.
    pub changes: Vec<Change>,
    /// What to expect of it: a sentence or two.
    pub expect: String,
    /// Where it can be looked up.
    pub proof: Vec<Proof>,
}

/// A subject that could not be judged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotJudged {
    /// What.
    pub subject: Subject,
    /// Why not: a clause.
    pub reason: String,
    /// Whether this server has it at all: with a longer or a fuller recording it could be judged.
    pub is_there: bool,
}

/// Everything that was found in a session.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Findings {
    /// What matters most first.
    pub findings: Vec<Finding>,
    /// What could not be judged.
    pub not_judged: Vec<NotJudged>,
}

impl Findings {
    /// Whether something was judged, and nothing of it has to change.
    pub fn is_all_well(&self) -> bool {
        self.is_anything_judged() && self.to_act_on().next().is_none()
    }

    /// Those that say more than what is good to know.
    pub fn to_act_on(&self) -> impl Iterator<Item = &Finding> {
        self.findings.iter().filter(|finding| finding.severity > Severity::Info)
    }

    /// Whether there was enough to judge anything.
    pub fn is_anything_judged(&self) -> bool {
        self.not_judged.len() < Subject::ALL.len()
    }
}

/// Takes findings and reasons while the rules are gone through.
#[derive(Debug, Default)]
struct Found(Findings);

impl Found {
    fn push(&mut self, finding: Finding) {
        self.0.findings.push(finding);
    }

    fn not_judged(&mut self, subject: Subject, reason: impl Into<String>) {
        self.0.not_judged.push(NotJudged { subject, reason: reason.into(), is_there: true });
    }

    /// This server does not have it.
    fn not_there(&mut self, subject: Subject, reason: &str) {
        self.0.not_judged.push(NotJudged { subject, reason: reason.to_owned(), is_there: false });
    }

    fn has(&self, id: &str) -> bool {
        self.0.findings.iter().any(|finding| finding.id == id)
    }

    /// Whether some finding asks for this.
    fn asks(&self, flag: &str, direction: Direction) -> bool {
        let mut changes = self.0.findings.iter().flat_map(|finding| &finding.changes);
        changes.any(|change| change.flag == flag && change.direction == direction)
    }
}

/// Goes through all rules.
pub fn find(answers: &Answers) -> Findings {
    let mut found = Found::default();
    batches::judge(answers, &mut found);
    queue::judge(answers, &mut found);
    preemption::judge(answers, &mut found);
    cuda_graphs::judge(answers, &mut found);
    encoder::judge(answers, &mut found);
    host::judge(answers, &mut found);
    garbage::judge(answers, &mut found);
    ranks::judge(answers, &mut found);
    moe_experts::judge(answers, &mut found);
    sampling::judge(answers, &mut found);
    // Last: memory is only to spare if nothing else asks for it.
    kv_cache::judge(answers, &mut found);
    let mut findings = found.0;
    findings.findings.sort_by_key(|finding| {
        // Of what is good to know, what keeps requests waiting comes before what a cache saved, however sure that is.
        let is_info = finding.severity == Severity::Info;
        let level = Some(finding.confidence.level).filter(|_| !is_info);
        (std::cmp::Reverse(finding.severity), std::cmp::Reverse(level), finding.subject)
    });
    findings.not_judged.sort_by_key(|not_judged| not_judged.subject);
    findings
}

fn evidence(name: &'static str, value: f64, unit: &'static str) -> Evidence {
    Evidence { name, value, unit }
}

fn count(name: &'static str, value: u64, unit: &'static str) -> Evidence {
    evidence(name, value as f64, unit)
}

/// A number that may not be known.
fn maybe(name: &'static str, value: Option<f64>, unit: &'static str) -> Option<Evidence> {
    value.filter(|value| value.is_finite()).map(|value| evidence(name, value, unit))
}

fn proof(file: &'static str, column: &'static str) -> Proof {
    Proof { file, column }
}

/// `part` of `whole`, percent; 0 when there is no whole.
fn share(part: u64, whole: u64) -> f64 {
    crate::batch::percent(part, whole).unwrap_or(0.0)
}
