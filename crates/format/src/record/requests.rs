//! Records of the lives of requests: kinds 7 to 14.

use super::{halves, high, low};

/// Bits of [`RequestText`]'s word 3 that are the number.
const TEXT_NUMBER: u64 = (1 << 48) - 1;

const fn id_word(id_bytes: u16, traits: u16) -> u32 {
    id_bytes as u32 | (traits as u32) << 16
}

fn text_words(bytes: &[u8; TEXT_BYTES]) -> [u64; 3] {
    let mut words = [0; 3];
    for (word, chunk) in words.iter_mut().zip(bytes.as_chunks::<8>().0) {
        *word = u64::from_le_bytes(*chunk);
    }
    words
}

fn text_bytes(words: [u64; 3]) -> [u8; TEXT_BYTES] {
    let mut bytes = [0; TEXT_BYTES];
    for (chunk, word) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(words) {
        *chunk = word.to_le_bytes();
    }
    bytes
}

/// A request entered the scheduler of an engine.
///
/// Payload: word 3 `number` · word 4 `arrival_bits` · word 5 `prompt_tokens`, `priority` · word 6 `client`, `id_bytes` (16 bits),
/// `traits` (16 bits). Its id follows in records of kind 8.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RequestQueued {
    /// Number of the request in this log, from 1: what all other records call it.
    pub number: u64,
    /// Bits of the `f64` in vLLM's `Request.arrival_time`: when the front end got it, seconds of `CLOCK_REALTIME`.
    pub arrival_bits: u64,
    /// Tokens of its prompt.
    pub prompt_tokens: u32,
    /// vLLM's priority: lower is earlier.
    pub priority: i32,
    /// vLLM's client index: the API server it came from.
    pub client: u32,
    /// Bytes of its id in the records of kind 8 that follow.
    pub id_bytes: u16,
    /// See [`request_traits`].
    pub traits: u16,
}

impl RequestQueued {
    pub(super) fn words(self) -> [u64; 4] {
        [
            self.number,
            self.arrival_bits,
            halves(self.prompt_tokens, self.priority.cast_unsigned()),
            halves(self.client, id_word(self.id_bytes, self.traits)),
        ]
    }

    #[expect(clippy::cast_possible_truncation, reason = "fields are cut out of a word")]
    pub(super) fn of([a, b, c, d]: [u64; 4]) -> Self {
        Self {
            number: a,
            arrival_bits: b,
            prompt_tokens: low(c),
            priority: high(c).cast_signed(),
            client: low(d),
            id_bytes: high(d) as u16,
            traits: (high(d) >> 16) as u16,
        }
    }
}

/// Bits of [`RequestQueued::traits`].
pub mod request_traits {
    /// A pooling request: it makes no tokens.
    pub const POOLING: u16 = 1;
    /// A streaming session: it may be continued with more input after it has stopped.
    pub const STREAMING: u16 = 1 << 1;
    /// Its id was longer than what is kept: cut, with a hash of all of it behind.
    pub const ID_CUT: u16 = 1 << 2;
    /// Its id is a hash of what the client or vLLM called it.
    pub const ID_HASHED: u16 = 1 << 3;
}

/// Bytes of text in a [`RequestText`].
pub const TEXT_BYTES: usize = 24;

/// A piece of the id of a request.
///
/// Payload: word 3 bits 0-47 `number`, 48-63 `part` · words 4-6 `bytes`, filled up with 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RequestText {
    /// Number of the [`RequestQueued`] or [`ClientRequest`] it belongs to.
    pub number: u64,
    /// Which piece, from 0.
    pub part: u16,
    /// UTF-8; a character may go on in the next piece.
    pub bytes: [u8; TEXT_BYTES],
}

impl RequestText {
    pub(super) fn words(self) -> [u64; 4] {
        let [a, b, c] = text_words(&self.bytes);
        [self.number & TEXT_NUMBER | u64::from(self.part) << 48, a, b, c]
    }

    pub(super) fn of([a, b, c, d]: [u64; 4]) -> Self {
        Self { number: a & TEXT_NUMBER, part: (a >> 48) as u16, bytes: text_bytes([b, c, d]) }
    }
}

/// The scheduler put a waiting request into a batch: for the first time, after a preemption, or with the next input of a
/// streaming session.
///
/// Payload: word 3 `number` · word 4 `computed_tokens`, `external_tokens` · word 5 `num_tokens`, `scheduled_tokens` · word 6 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RequestAdmitted {
    /// Number of the request.
    pub number: u64,
    /// Tokens that need not be computed: found in a cache, here or elsewhere.
    pub computed_tokens: u32,
    /// Those of them that a KV connector loads from elsewhere; `u32::MAX` = unknown.
    pub external_tokens: u32,
    /// Tokens that it has: prompt and what was generated before.
    pub num_tokens: u32,
    /// Tokens of it in this batch.
    pub scheduled_tokens: u32,
}

impl RequestAdmitted {
    pub(super) fn words(self) -> [u64; 4] {
        [
            self.number,
            halves(self.computed_tokens, self.external_tokens),
            halves(self.num_tokens, self.scheduled_tokens),
            0,
        ]
    }

    pub(super) fn of([a, b, c, _]: [u64; 4]) -> Self {
        Self {
            number: a,
            computed_tokens: low(b),
            external_tokens: high(b),
            num_tokens: low(c),
            scheduled_tokens: high(c),
        }
    }
}

/// The scheduler took a running request's blocks away. The record's name says why, in our words; 0 = not known.
///
/// Payload: word 3 `number` · word 4 `computed_tokens`, `output_tokens` · word 5 `beneficiary` · word 6 `blocks_freed`, 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RequestPreempted {
    /// Number of the request.
    pub number: u64,
    /// Tokens of it that were computed: work thrown away, but for what the prefix cache keeps.
    pub computed_tokens: u32,
    /// Tokens that it had generated.
    pub output_tokens: u32,
    /// Number of the request that needed the blocks, which may be the same; 0 = none or not known.
    pub beneficiary: u64,
    /// Blocks that became free; `u32::MAX` = unknown.
    pub blocks_freed: u32,
}

impl RequestPreempted {
    pub(super) fn words(self) -> [u64; 4] {
        [
            self.number,
            halves(self.computed_tokens, self.output_tokens),
            self.beneficiary,
            halves(self.blocks_freed, 0),
        ]
    }

    pub(super) fn of([a, b, c, d]: [u64; 4]) -> Self {
        Self { number: a, computed_tokens: low(b), output_tokens: high(b), beneficiary: c, blocks_freed: low(d) }
    }
}

/// The scheduler took the first token of a request from the model's output.
///
/// Payload: word 3 `number` · word 4 `output_tokens`, `client` · words 5 and 6 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RequestFirstToken {
    /// Number of the request.
    pub number: u64,
    /// Tokens that it has now: more than one with speculative decoding.
    pub output_tokens: u32,
    /// vLLM's client index.
    pub client: u32,
}

impl RequestFirstToken {
    pub(super) fn words(self) -> [u64; 4] {
        [self.number, halves(self.output_tokens, self.client), 0, 0]
    }

    pub(super) fn of([a, b, _, _]: [u64; 4]) -> Self {
        Self { number: a, output_tokens: low(b), client: high(b) }
    }
}

/// A request left the scheduler. The record's name is vLLM's `RequestStatus`, its step 0 if no output of a step ended it.
///
/// Payload: word 3 `number` · word 4 `prompt_tokens`, `output_tokens` · word 5 `preemptions`, `client` · word 6
/// `computed_tokens`, 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RequestFinished {
    /// Number of the request.
    pub number: u64,
    /// Tokens of its prompt; a streaming session's prompt grows.
    pub prompt_tokens: u32,
    /// Tokens that it generated.
    pub output_tokens: u32,
    /// How often vLLM says that it was preempted; `u32::MAX` = this version does not say.
    pub preemptions: u32,
    /// vLLM's client index.
    pub client: u32,
    /// Tokens of it that were computed.
    pub computed_tokens: u32,
}

impl RequestFinished {
    pub(super) fn words(self) -> [u64; 4] {
        [
            self.number,
            halves(self.prompt_tokens, self.output_tokens),
            halves(self.preemptions, self.client),
            halves(self.computed_tokens, 0),
        ]
    }

    pub(super) fn of([a, b, c, d]: [u64; 4]) -> Self {
        Self {
            number: a,
            prompt_tokens: low(b),
            output_tokens: high(b),
            preemptions: low(c),
            client: high(c),
            computed_tokens: low(d),
        }
    }
}

/// A front end gave a request to the engine under an id of vLLM's own: this is what the client called it.
///
/// Payload: word 3 `number` · word 4 `engine_id_hash` · word 5 `index`, `id_bytes` (16 bits), `traits` (16 bits) · word 6 0.
/// The client's id follows in records of kind 8.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ClientRequest {
    /// Number of this record in its log, from the same count as requests.
    pub number: u64,
    /// XXH3-64 (seed 0) of the engine's id, as it stands in the log of the engine.
    pub engine_id_hash: u64,
    /// Which of the samples of one client request it is (parallel sampling), from 0.
    pub index: u32,
    /// Bytes of its id in the records of kind 8 that follow.
    pub id_bytes: u16,
    /// See [`request_traits`].
    pub traits: u16,
}

impl ClientRequest {
    pub(super) fn words(self) -> [u64; 4] {
        [self.number, self.engine_id_hash, halves(self.index, id_word(self.id_bytes, self.traits)), 0]
    }

    #[expect(clippy::cast_possible_truncation, reason = "fields are cut out of a word")]
    pub(super) fn of([a, b, c, _]: [u64; 4]) -> Self {
        Self {
            number: a,
            engine_id_hash: b,
            index: low(c),
            id_bytes: high(c) as u16,
            traits: (high(c) >> 16) as u16,
        }
    }
}

/// A front end found that a request is over (a stop string), and tells the engine to abort it.
///
/// Payload: word 3 `engine_id_hash` · words 4-6 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RequestStopped {
    /// As in [`ClientRequest`].
    pub engine_id_hash: u64,
}

impl RequestStopped {
    pub(super) fn words(self) -> [u64; 4] {
        [self.engine_id_hash, 0, 0, 0]
    }

    pub(super) fn of([a, _, _, _]: [u64; 4]) -> Self {
        Self { engine_id_hash: a }
    }
}
