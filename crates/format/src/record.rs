//! One record: 64 bytes, eight little-endian `u64` words, the last of which commits it.
//!
//! ```text
//! word 0   ticks      when it began, on the clock of the head
//! word 1   step       engine step it belongs to; 0 = none
//! word 2   bits 0-15 kind · 16-23 label · 24-31 flags · 32-63 name (string id; 0 = none)
//! word 3-6 payload    by kind, see the types below
//! word 7   bits 0-31 low half of XXH3-64 (seed 0) over words 0-6 · bits 32-63 slot number in its segment + 1
//! ```
//! The writer stores word 7 last with release order; a slot whose word 7 does not fit is not a record.

mod calls;
mod experts;
mod gpu_memory;
mod kv_cache;
mod layers;
mod requests;
mod sampling;

pub use calls::{EncoderInput, GpuCall};
pub use experts::{
    Counted, ExpertCounts, ExpertLoad, PACKED_BITS, WEIGHT_BINS, expert_counting, pack_counts, pair_index, pairs,
};
pub use gpu_memory::{GpuMemory, GpuMemoryMore};
pub use kv_cache::{KvCache, KvEviction};
pub use layers::{GpuClock, LayerTime};
pub use requests::{
    ClientRequest, RequestAdmitted, RequestFinished, RequestFirstToken, RequestPreempted, RequestQueued,
    RequestStopped, RequestText, TEXT_BYTES, request_traits,
};
pub use sampling::{SamplingMix, Speculation};
use xxhash_rust::xxh3::xxh3_64;

/// Bytes in a record.
pub const RECORD_BYTES: usize = 64;

/// Words in a record before the committing one.
pub const PAYLOAD_WORDS: usize = 7;

/// A record without its committing word.
pub type Words = [u64; PAYLOAD_WORDS];

/// What the engine was doing; anything but `Work` stays out of the tables of real work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Label {
    /// Real work for requests.
    Work = 0,
    /// Loading, memory profiling, compilation, graph capture, kernel warm-up.
    WarmUp = 1,
    /// A step without requests (data-parallel idle ranks).
    Dummy = 2,
}

impl Label {
    /// The label with this number; a number from a newer writer reads as warm-up, so it never enters real work.
    pub fn from_u8(value: u8) -> Self {
        match value {
            0 => Self::Work,
            2 => Self::Dummy,
            _ => Self::WarmUp,
        }
    }
}

/// Flag: vLLM's own function raised an exception.
pub const FLAG_RAISED: u8 = 1;

/// Flag of a [`KvCache`] record: only the share in use is known. Blocks are thousandths of all, and nothing else is said.
pub const FLAG_SHARE: u8 = 2;

/// A region of time with a name: one call of a hooked function.
///
/// Payload: word 3 duration in ticks · word 4 `value_a` · word 5 `value_b` · word 6 low half `context` (string id),
/// high half `overhead` in ticks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Span {
    /// How long it took, in ticks.
    pub duration_ticks: u64,
    /// First value; its meaning depends on the name of the span (see `FORMAT.md`).
    pub value_a: u64,
    /// Second value.
    pub value_b: u64,
    /// String id of a context; 0 = none.
    pub context: u32,
    /// Time spent in probes of this process since the span of the same name before, in ticks, saturating;
    /// only on spans that close a step.
    pub overhead_ticks: u32,
}

/// What one call of `Scheduler.schedule` decided. The record's name says what kept the batch from being larger, in our words;
/// 0 = not known.
///
/// Payload: eight `u32`, in the order of the fields; in the last four `u32::MAX` = unknown, `None` here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Schedule {
    /// Sequences in the batch.
    pub num_seqs: u32,
    /// Tokens in the batch, without padding.
    pub num_tokens: u32,
    /// Those that belong to a prompt (or a preempted request) not yet computed.
    pub prefill_tokens: u32,
    /// Sequences whose tokens in this batch are prefill tokens.
    pub prefill_seqs: u32,
    /// Requests running after the call.
    pub running: Option<u32>,
    /// Requests waiting after the call.
    pub waiting: Option<u32>,
    /// Sum of the prompt lengths of requests whose prompt is completely computed for the first time by this step.
    pub completed_prompt_tokens: Option<u32>,
    /// Number of those requests.
    pub completed_prompts: Option<u32>,
}

impl Default for Schedule {
    /// Nothing scheduled, nobody there.
    fn default() -> Self {
        Self {
            num_seqs: 0,
            num_tokens: 0,
            prefill_tokens: 0,
            prefill_seqs: 0,
            running: Some(0),
            waiting: Some(0),
            completed_prompt_tokens: Some(0),
            completed_prompts: Some(0),
        }
    }
}

/// A number that may be unknown, as it is written.
fn or_unknown(value: Option<u32>) -> u32 {
    value.unwrap_or(u32::MAX)
}

fn known(value: u32) -> Option<u32> {
    Some(value).filter(|value| *value != u32::MAX)
}

/// What one engine step sends to one client (API server).
///
/// Payload: word 3 `timestamp_bits` · word 4 client index (low half), outputs (high half) · word 5 new tokens · word 6 finished requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Outputs {
    /// Bits of the `f64` in `EngineCoreOutputs.timestamp`: the front end sees the same value, which joins the two.
    pub timestamp_bits: u64,
    /// vLLM's client index.
    pub client: u32,
    /// Request outputs in it.
    pub num_outputs: u32,
    /// Generated tokens in it.
    pub new_tokens: u64,
    /// Requests that the step finished, on the record of its first client.
    pub finished: u64,
}

/// Limits of a scheduler, written when it is made.
///
/// Payload: word 3 `max_num_seqs` · word 4 `max_num_tokens`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limits {
    /// `max_num_seqs` of the scheduler.
    pub max_num_seqs: u64,
    /// Token budget of a step.
    pub max_num_tokens: u64,
}

/// A process that the launcher started has ended.
///
/// Payload: word 3 pid · word 4 exit code (as `i64`) · word 5 signal number, 0 = none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ProcessExit {
    /// Process id.
    pub pid: u64,
    /// Exit code, when it exited by itself.
    pub code: i64,
    /// Signal that ended it; 0 = none.
    pub signal: u64,
}

/// Times of one engine step on the GPU, read from its own clock once the step was done.
///
/// Payload: word 3 `forward_ms`, `sample_ms` · word 4 `idle_before_ms`, `draft_ms` (bits of `f32`, low half first; NaN =
/// not measured) · word 5 `busy_ms`, `padded_tokens` · word 6 descriptor (string id), `read_after` (microseconds).
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct GpuStep {
    /// From the first to the last kernel of the forward pass, in milliseconds.
    pub forward_ms: Option<f32>,
    /// Sampling, in milliseconds.
    pub sample_ms: Option<f32>,
    /// From the last kernel of the step before to the first of this one's forward pass, in milliseconds.
    pub idle_before_ms: Option<f32>,
    /// Drafting (speculative decoding), in milliseconds.
    pub draft_ms: Option<f32>,
    /// From the first kernel of the forward pass to the last of the step, in milliseconds.
    pub busy_ms: Option<f32>,
    /// Tokens with padding; 0 = unknown.
    pub padded_tokens: u32,
    /// String id of the descriptor of the batch (`MODE num_tokens=… num_reqs=… uniform=… has_lora=…`); 0 = unknown.
    pub descriptor: u32,
    /// Microseconds from the record's ticks (the host launching the forward pass) to the moment the step was found done.
    pub read_after_us: u32,
}

/// The part of a record that depends on its kind.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Payload {
    /// Kind 1.
    Span(Span),
    /// Kind 2.
    Schedule(Schedule),
    /// Kind 3.
    Outputs(Outputs),
    /// Kind 4.
    Limits(Limits),
    /// Kind 5.
    ProcessExit(ProcessExit),
    /// Kind 6.
    GpuStep(GpuStep),
    /// Kind 7.
    RequestQueued(RequestQueued),
    /// Kind 8.
    RequestText(RequestText),
    /// Kind 9.
    RequestAdmitted(RequestAdmitted),
    /// Kind 10.
    RequestPreempted(RequestPreempted),
    /// Kind 11.
    RequestFirstToken(RequestFirstToken),
    /// Kind 12.
    RequestFinished(RequestFinished),
    /// Kind 13.
    ClientRequest(ClientRequest),
    /// Kind 14.
    RequestStopped(RequestStopped),
    /// Kind 15.
    KvCache(KvCache),
    /// Kind 16.
    KvEviction(KvEviction),
    /// Kind 17.
    LayerTime(LayerTime),
    /// Kind 18.
    GpuClock(GpuClock),
    /// Kind 19.
    ExpertLoad(ExpertLoad),
    /// Kind 20.
    ExpertCounts(ExpertCounts),
    /// Kind 22.
    GpuCall(GpuCall),
    /// Kind 23.
    EncoderInput(EncoderInput),
    /// Kind 24.
    SamplingMix(SamplingMix),
    /// Kind 25.
    Speculation(Speculation),
    /// Kind 26.
    GpuMemory(GpuMemory),
    /// Kind 27.
    GpuMemoryMore(GpuMemoryMore),
    /// A kind that this build does not know.
    Unknown {
        /// Its number.
        kind: u16,
        /// Its payload words.
        words: [u64; 4],
    },
}

/// One record.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Record {
    /// When it began, in ticks of the process's clock.
    pub ticks: u64,
    /// Engine step; 0 = none.
    pub step: u64,
    /// What the engine was doing.
    pub label: Label,
    /// See [`FLAG_RAISED`] and [`FLAG_SHARE`].
    pub flags: u8,
    /// String id of its name; 0 = none.
    pub name: u32,
    /// The rest.
    pub payload: Payload,
}

const fn halves(low: u32, high: u32) -> u64 {
    low as u64 | (high as u64) << 32
}

#[expect(clippy::cast_possible_truncation, reason = "the two halves are taken apart on purpose")]
const fn low(word: u64) -> u32 {
    word as u32
}

const fn high(word: u64) -> u32 {
    (word >> 32) as u32
}

fn milliseconds_bits(value: Option<f32>) -> u32 {
    value.unwrap_or(f32::NAN).to_bits()
}

/// No writer writes a negative or infinite time, so what is none of ours is unknown.
fn milliseconds(bits: u32) -> Option<f32> {
    Some(f32::from_bits(bits)).filter(|value| value.is_finite() && *value >= 0.0)
}

impl Record {
    /// The record's words, as they lie in the file before the committing word.
    #[inline]
    pub fn to_words(&self) -> Words {
        let (kind, payload): (u16, [u64; 4]) = match self.payload {
            Payload::Span(s) => (1, [s.duration_ticks, s.value_a, s.value_b, halves(s.context, s.overhead_ticks)]),
            Payload::Schedule(s) => (
                2,
                [
                    halves(s.num_seqs, s.num_tokens),
                    halves(s.prefill_tokens, s.prefill_seqs),
                    halves(or_unknown(s.running), or_unknown(s.waiting)),
                    halves(or_unknown(s.completed_prompt_tokens), or_unknown(s.completed_prompts)),
                ],
            ),
            Payload::Outputs(o) => {
                (3, [o.timestamp_bits, halves(o.client, o.num_outputs), o.new_tokens, o.finished])
            }
            Payload::Limits(l) => (4, [l.max_num_seqs, l.max_num_tokens, 0, 0]),
            Payload::ProcessExit(e) => (5, [e.pid, e.code.cast_unsigned(), e.signal, 0]),
            Payload::GpuStep(g) => (
                6,
                [
                    halves(milliseconds_bits(g.forward_ms), milliseconds_bits(g.sample_ms)),
                    halves(milliseconds_bits(g.idle_before_ms), milliseconds_bits(g.draft_ms)),
                    halves(milliseconds_bits(g.busy_ms), g.padded_tokens),
                    halves(g.descriptor, g.read_after_us),
                ],
            ),
            Payload::RequestQueued(record) => (7, record.words()),
            Payload::RequestText(record) => (8, record.words()),
            Payload::RequestAdmitted(record) => (9, record.words()),
            Payload::RequestPreempted(record) => (10, record.words()),
            Payload::RequestFirstToken(record) => (11, record.words()),
            Payload::RequestFinished(record) => (12, record.words()),
            Payload::ClientRequest(record) => (13, record.words()),
            Payload::RequestStopped(record) => (14, record.words()),
            Payload::KvCache(record) => (15, record.words()),
            Payload::KvEviction(record) => (16, record.words()),
            Payload::LayerTime(record) => (17, record.words()),
            Payload::GpuClock(record) => (18, record.words()),
            Payload::ExpertLoad(record) => (19, record.words()),
            Payload::ExpertCounts(record) => (20, record.words()),
            Payload::GpuCall(record) => (22, record.words()),
            Payload::EncoderInput(record) => (23, record.words()),
            Payload::SamplingMix(record) => (24, record.words()),
            Payload::Speculation(record) => (25, record.words()),
            Payload::GpuMemory(record) => (26, record.words()),
            Payload::GpuMemoryMore(record) => (27, record.words()),
            Payload::Unknown { kind, words } => (kind, words),
        };
        let head = u64::from(kind)
            | u64::from(self.label as u8) << 16
            | u64::from(self.flags) << 24
            | u64::from(self.name) << 32;
        [self.ticks, self.step, head, payload[0], payload[1], payload[2], payload[3]]
    }

    /// The record made of these words.
    #[expect(clippy::cast_possible_truncation, reason = "fields are cut out of a word")]
    pub fn from_words(words: &Words) -> Self {
        let [ticks, step, head, a, b, c, d] = *words;
        let payload = match head as u16 {
            1 => Payload::Span(Span {
                duration_ticks: a,
                value_a: b,
                value_b: c,
                context: low(d),
                overhead_ticks: high(d),
            }),
            2 => Payload::Schedule(Schedule {
                num_seqs: low(a),
                num_tokens: high(a),
                prefill_tokens: low(b),
                prefill_seqs: high(b),
                running: known(low(c)),
                waiting: known(high(c)),
                completed_prompt_tokens: known(low(d)),
                completed_prompts: known(high(d)),
            }),
            3 => Payload::Outputs(Outputs {
                timestamp_bits: a,
                client: low(b),
                num_outputs: high(b),
                new_tokens: c,
                finished: d,
            }),
            4 => Payload::Limits(Limits { max_num_seqs: a, max_num_tokens: b }),
            5 => Payload::ProcessExit(ProcessExit { pid: a, code: b.cast_signed(), signal: c }),
            6 => Payload::GpuStep(GpuStep {
                forward_ms: milliseconds(low(a)),
                sample_ms: milliseconds(high(a)),
                idle_before_ms: milliseconds(low(b)),
                draft_ms: milliseconds(high(b)),
                busy_ms: milliseconds(low(c)),
                padded_tokens: high(c),
                descriptor: low(d),
                read_after_us: high(d),
            }),
            7 => Payload::RequestQueued(RequestQueued::of([a, b, c, d])),
            8 => Payload::RequestText(RequestText::of([a, b, c, d])),
            9 => Payload::RequestAdmitted(RequestAdmitted::of([a, b, c, d])),
            10 => Payload::RequestPreempted(RequestPreempted::of([a, b, c, d])),
            11 => Payload::RequestFirstToken(RequestFirstToken::of([a, b, c, d])),
            12 => Payload::RequestFinished(RequestFinished::of([a, b, c, d])),
            13 => Payload::ClientRequest(ClientRequest::of([a, b, c, d])),
            14 => Payload::RequestStopped(RequestStopped::of([a, b, c, d])),
            15 => Payload::KvCache(KvCache::of([a, b, c, d])),
            16 => Payload::KvEviction(KvEviction::of([a, b, c, d])),
            17 => Payload::LayerTime(LayerTime::of([a, b, c, d])),
            18 => Payload::GpuClock(GpuClock::of([a, b, c, d])),
            19 => Payload::ExpertLoad(ExpertLoad::of([a, b, c, d])),
            20 => Payload::ExpertCounts(ExpertCounts::of([a, b, c, d])),
            22 => Payload::GpuCall(GpuCall::of([a, b, c, d])),
            23 => Payload::EncoderInput(EncoderInput::of([a, b, c, d])),
            24 => Payload::SamplingMix(SamplingMix::of([a, b, c, d])),
            25 => Payload::Speculation(Speculation::of([a, b, c, d])),
            26 => Payload::GpuMemory(GpuMemory::of([a, b, c, d])),
            27 => Payload::GpuMemoryMore(GpuMemoryMore::of([a, b, c, d])),
            kind => Payload::Unknown { kind, words: [a, b, c, d] },
        };
        Self {
            ticks,
            step,
            label: Label::from_u8((head >> 16) as u8),
            flags: (head >> 24) as u8,
            name: high(head),
            payload,
        }
    }
}

/// The bytes of `words`, in file order.
#[inline]
fn words_bytes(words: &Words) -> [u8; PAYLOAD_WORDS * 8] {
    let mut bytes = [0; PAYLOAD_WORDS * 8];
    for (chunk, word) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(words) {
        *chunk = word.to_le_bytes();
    }
    bytes
}

/// The committing word of a record in the slot with this number (counted from 0 in its segment).
#[inline]
pub fn commit_word(words: &Words, slot: u32) -> u64 {
    halves(low(xxh3_64(&words_bytes(words))), slot.wrapping_add(1))
}

/// What lies in a slot.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Slot {
    /// A committed record.
    Record(Record),
    /// Nothing was written here yet.
    Empty,
    /// Something that is neither: a write that was cut off, or damage.
    Damaged,
}

/// Reads the slot with this number (counted from 0 in its segment).
pub fn read_slot(bytes: &[u8; RECORD_BYTES], slot: u32) -> Slot {
    let mut words = [0; PAYLOAD_WORDS];
    let (chunks, _) = bytes.as_chunks::<8>();
    for (word, chunk) in words.iter_mut().zip(chunks) {
        *word = u64::from_le_bytes(*chunk);
    }
    let commit = u64::from_le_bytes(chunks[PAYLOAD_WORDS]);
    if commit == commit_word(&words, slot) {
        return Slot::Record(Record::from_words(&words));
    }
    if commit == 0 && words == [0; PAYLOAD_WORDS] { Slot::Empty } else { Slot::Damaged }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn slot_bytes(words: &Words, slot: u32) -> [u8; RECORD_BYTES] {
        let mut bytes = [0; RECORD_BYTES];
        bytes[..56].copy_from_slice(&words_bytes(words));
        bytes[56..].copy_from_slice(&commit_word(words, slot).to_le_bytes());
        bytes
    }

    fn words() -> impl Strategy<Value = Words> {
        // A known kind and label, so that the round trip keeps every bit.
        (any::<Words>(), 1u64..=3, 0u64..=2).prop_map(|(mut words, kind, label)| {
            words[2] = words[2] & 0xffff_ffff_ff00_0000 | kind | label << 16;
            words
        })
    }

    proptest! {
        #[test]
        fn a_committed_record_reads_back_as_written(words in words(), slot: u32) {
            let Slot::Record(record) = read_slot(&slot_bytes(&words, slot), slot) else {
                panic!("not read as a record");
            };
            prop_assert_eq!(record.to_words(), words);
        }

        #[test]
        fn every_kind_keeps_its_fields(words: Words, kind in 1u64..=30) {
            let mut words = words;
            words[2] = words[2] & 0xffff_ffff_0000_0000 | kind;
            let record = Record::from_words(&words);
            prop_assert_eq!(Record::from_words(&record.to_words()), record);
        }

        #[test]
        fn any_flipped_bit_is_noticed(words in words(), slot: u32, bit in 0usize..512) {
            let mut bytes = slot_bytes(&words, slot);
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert_eq!(read_slot(&bytes, slot), Slot::Damaged);
        }

        #[test]
        fn a_record_in_another_slot_is_no_record(words in words(), slot: u32, other: u32) {
            prop_assume!(slot != other);
            prop_assert_eq!(read_slot(&slot_bytes(&words, slot), other), Slot::Damaged);
        }

        #[test]
        fn any_bytes_are_read_without_panic(bytes in proptest::array::uniform32(any::<u16>()), slot: u32) {
            let mut slot_bytes = [0; RECORD_BYTES];
            for (to, from) in slot_bytes.chunks_mut(2).zip(bytes) {
                to.copy_from_slice(&from.to_le_bytes());
            }
            let _ = read_slot(&slot_bytes, slot);
        }
    }

    #[test]
    fn a_schedule_keeps_what_is_unknown() {
        let schedule = Schedule { num_seqs: 3, running: None, waiting: Some(0), ..Schedule::default() };
        let payload = Payload::Schedule(schedule);
        let record = Record { ticks: 1, step: 2, label: Label::Work, flags: 0, name: 0, payload };
        assert_eq!(record.to_words()[5], u64::from(u32::MAX));
        assert_eq!(Record::from_words(&record.to_words()), record);
    }

    #[test]
    fn gpu_times_keep_what_is_unknown() {
        let payload = Payload::GpuStep(GpuStep {
            forward_ms: Some(9.25),
            idle_before_ms: Some(0.0),
            busy_ms: Some(9.5),
            padded_tokens: 8,
            descriptor: 4,
            read_after_us: 11_000,
            ..GpuStep::default()
        });
        let record = Record { ticks: 1, step: 2, label: Label::Work, flags: 0, name: 0, payload };
        assert_eq!(Record::from_words(&record.to_words()), record);
    }

    #[test]
    fn an_untouched_slot_is_empty() {
        assert_eq!(read_slot(&[0; RECORD_BYTES], 3), Slot::Empty);
    }

    #[test]
    fn half_a_record_is_damage() {
        let mut bytes = [0; RECORD_BYTES];
        bytes[0] = 1;
        assert_eq!(read_slot(&bytes, 0), Slot::Damaged);
    }
}
