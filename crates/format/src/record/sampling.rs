//! Records of sampling: kinds 24 and 25.

use super::{halves, high, low};

/// Number of counts in a [`SamplingMix`].
const COUNTS: usize = 14;

/// What the sequences of a batch ask of the sampler, written by the worker before it samples. Each count is of sequences;
/// `None` = not known.
///
/// Payload: fourteen `u16` in the order of the fields, lowest bits of a word first; `u16::MAX` = unknown · the upper half of
/// word 6 `most_logprobs`, `u32::MAX` = unknown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SamplingMix {
    /// Sequences in the batch.
    pub sequences: Option<u16>,
    /// Those that take the most likely token.
    pub greedy: Option<u16>,
    /// Those that choose among the k most likely.
    pub top_k: Option<u16>,
    /// Those that choose among the most likely that add up to p.
    pub top_p: Option<u16>,
    /// Those that leave out what is much less likely than the most likely.
    pub min_p: Option<u16>,
    /// Those with a presence, frequency or repetition penalty.
    pub penalties: Option<u16>,
    /// Those that want log probabilities of what they generate.
    pub logprobs: Option<u16>,
    /// Those whose prompt's log probabilities are computed.
    pub prompt_logprobs: Option<u16>,
    /// Those that a grammar restricts.
    pub structured_output: Option<u16>,
    /// Those with a logit bias.
    pub logit_bias: Option<u16>,
    /// Those with bad words.
    pub bad_words: Option<u16>,
    /// Those with a list of allowed tokens.
    pub allowed_token_ids: Option<u16>,
    /// Those that may not end yet.
    pub min_tokens: Option<u16>,
    /// Those with a random generator of their own.
    pub seeded: Option<u16>,
    /// Most log probabilities that one of them wants for a token.
    pub most_logprobs: Option<u32>,
}

impl SamplingMix {
    /// The counts, in the order of the fields.
    pub fn counts(&self) -> [Option<u16>; COUNTS] {
        [
            self.sequences,
            self.greedy,
            self.top_k,
            self.top_p,
            self.min_p,
            self.penalties,
            self.logprobs,
            self.prompt_logprobs,
            self.structured_output,
            self.logit_bias,
            self.bad_words,
            self.allowed_token_ids,
            self.min_tokens,
            self.seeded,
        ]
    }

    pub(super) fn words(self) -> [u64; 4] {
        let mut words = [0; 4];
        for (place, count) in self.counts().into_iter().enumerate() {
            words[place / 4] |= u64::from(count.unwrap_or(u16::MAX)) << (16 * (place % 4));
        }
        words[3] |= u64::from(super::or_unknown(self.most_logprobs)) << 32;
        words
    }

    #[expect(clippy::cast_possible_truncation, reason = "counts are cut out of a word")]
    pub(super) fn of(words: [u64; 4]) -> Self {
        let count = |place: usize| {
            let count = (words[place / 4] >> (16 * (place % 4))) as u16;
            Some(count).filter(|count| *count != u16::MAX)
        };
        Self {
            sequences: count(0),
            greedy: count(1),
            top_k: count(2),
            top_p: count(3),
            min_p: count(4),
            penalties: count(5),
            logprobs: count(6),
            prompt_logprobs: count(7),
            structured_output: count(8),
            logit_bias: count(9),
            bad_words: count(10),
            allowed_token_ids: count(11),
            min_tokens: count(12),
            seeded: count(13),
            most_logprobs: super::known(high(words[3])),
        }
    }
}

/// What became of the drafts of a step (speculative decoding), written by the engine core when it takes the results.
///
/// Payload: word 3 `draft_tokens`, `accepted_tokens` · word 4 `drafts`, 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Speculation {
    /// Drafted tokens that the step looked at.
    pub draft_tokens: u32,
    /// Those that were right.
    pub accepted_tokens: u32,
    /// Sequences that had some.
    pub drafts: u32,
}

impl Speculation {
    pub(super) fn words(self) -> [u64; 4] {
        [halves(self.draft_tokens, self.accepted_tokens), halves(self.drafts, 0), 0, 0]
    }

    pub(super) fn of([a, b, _, _]: [u64; 4]) -> Self {
        Self { draft_tokens: low(a), accepted_tokens: high(a), drafts: low(b) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mix_keeps_what_is_unknown() {
        let mix = SamplingMix {
            sequences: Some(256),
            greedy: Some(0),
            seeded: Some(u16::MAX - 1),
            most_logprobs: Some(128_256),
            ..SamplingMix::default()
        };
        assert_eq!(SamplingMix::of(mix.words()), mix);
        assert_eq!(mix.words()[0], 0xffff_ffff_0000_0100);
    }
}
