//! Records of the load of experts in mixture-of-experts layers: kinds 19 and 20.

use super::{halves, high, low};

/// Bits of a record that values are packed into.
pub const PACKED_BITS: u32 = 192;

/// Bins of a histogram of routing weights: each is 1/100 wide, and the last one has what is 1 or more.
pub const WEIGHT_BINS: usize = 101;

/// What one mixture-of-experts layer routed since it was read before. The counts follow in records of kind 20; the record's ticks are those of
/// the reading.
///
/// Payload: word 3 layer (bits 0-15), experts (16-31), top-k (32-47), what is counted (48-63) · word 4 ticks since the reading
/// before · word 5 tokens · word 6 sum of the activations that follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ExpertLoad {
    /// Index of the layer in the model.
    pub layer: u16,
    /// Its routed experts.
    pub experts: u16,
    /// How many of them a token is sent to.
    pub top_k: u16,
    /// See [`expert_counting`].
    pub counting: u16,
    /// Since the reading before, ticks.
    pub interval_ticks: u64,
    /// Tokens that were routed, without padding.
    pub tokens: u64,
    /// Sum of the activations that follow: a reader knows by it whether all of them are there.
    pub activations: u64,
}

/// Bits of [`ExpertLoad::counting`].
pub mod expert_counting {
    /// Pairs of experts that a token was sent to are counted.
    pub const COSELECTION: u16 = 1;
    /// Routing weights are counted.
    pub const WEIGHTS: u16 = 2;
}

/// What an [`ExpertCounts`] record counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Counted {
    /// By expert: how often it was chosen.
    Activations,
    /// By unordered pair of experts, see [`pair_index`]: for how many tokens both were chosen.
    Pairs,
    /// By bin of the routing weight, see [`WEIGHT_BINS`].
    Weights,
    /// Something that this build does not know.
    Other(u8),
}

impl Counted {
    fn number(self) -> u8 {
        match self {
            Self::Activations => 0,
            Self::Pairs => 1,
            Self::Weights => 2,
            Self::Other(number) => number,
        }
    }

    fn of(number: u8) -> Self {
        match number {
            0 => Self::Activations,
            1 => Self::Pairs,
            2 => Self::Weights,
            number => Self::Other(number),
        }
    }
}

/// Place of the pair of experts `low < high` of `experts` in the order (0, 1), (0, 2), …, (1, 2), …
pub fn pair_index(experts: usize, low: usize, high: usize) -> usize {
    low * (2 * experts - low - 1) / 2 + high - low - 1
}

/// How many pairs there are.
pub fn pairs(experts: usize) -> usize {
    experts * experts.saturating_sub(1) / 2
}

/// Several counts of a layer, to be added to those before. What no record mentions is 0.
///
/// Payload: word 3 layer (bits 0-15), what is counted (16-23), bits of each count (24-31), index of the first (32-63) · words 4-6
/// the counts, one behind the other from the lowest bit on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExpertCounts {
    /// Index of the layer in the model.
    pub layer: u16,
    /// What is counted.
    pub counted: Counted,
    /// Bits of each count, 1 to 64 in a sound record.
    pub bits: u8,
    /// Index of the first.
    pub first: u32,
    /// The counts, packed.
    pub packed: [u64; 3],
}

impl ExpertCounts {
    /// The counts with their indices, in order. There are as many as fit; those behind the last one are 0.
    pub fn counts(&self) -> impl Iterator<Item = (u32, u64)> {
        let bits = u32::from(self.bits);
        let fit = if (1..=64).contains(&bits) { PACKED_BITS / bits } else { 0 };
        (0..fit).map(move |at| (self.first.saturating_add(at), self.at(at * bits, bits)))
    }

    fn at(&self, bit: u32, bits: u32) -> u64 {
        let (word, shift) = ((bit / 64) as usize, bit % 64);
        let mut value = self.packed[word] >> shift;
        if shift + bits > 64 {
            value |= self.packed[word + 1] << (64 - shift);
        }
        value & (u64::MAX >> (64 - bits))
    }

    pub(super) fn words(self) -> [u64; 4] {
        let head = u64::from(self.layer)
            | u64::from(self.counted.number()) << 16
            | u64::from(self.bits) << 24
            | u64::from(self.first) << 32;
        [head, self.packed[0], self.packed[1], self.packed[2]]
    }

    #[expect(clippy::cast_possible_truncation, reason = "fields are cut out of a word")]
    pub(super) fn of([head, a, b, c]: [u64; 4]) -> Self {
        Self {
            layer: head as u16,
            counted: Counted::of((head >> 16) as u8),
            bits: (head >> 24) as u8,
            first: high(head),
            packed: [a, b, c],
        }
    }
}

impl ExpertLoad {
    pub(super) fn words(self) -> [u64; 4] {
        let shape = halves(
            u32::from(self.layer) | u32::from(self.experts) << 16,
            u32::from(self.top_k) | u32::from(self.counting) << 16,
        );
        [shape, self.interval_ticks, self.tokens, self.activations]
    }

    #[expect(clippy::cast_possible_truncation, reason = "fields are cut out of a word")]
    pub(super) fn of([shape, interval_ticks, tokens, activations]: [u64; 4]) -> Self {
        Self {
            layer: low(shape) as u16,
            experts: (low(shape) >> 16) as u16,
            top_k: high(shape) as u16,
            counting: (high(shape) >> 16) as u16,
            interval_ticks,
            tokens,
            activations,
        }
    }
}

/// Packs counts of a layer into as few records as their sizes allow; what is 0 between two of them may be left out. `put` gets
/// each record.
pub fn pack_counts(layer: u16, counted: Counted, counts: &[u64], mut put: impl FnMut(ExpertCounts)) {
    let mut first = 0;
    while let Some(zeros) = counts[first..].iter().position(|count| *count != 0) {
        first += zeros;
        // As many as fit with as many bits as the greatest of them needs, and none of the zeros behind the last.
        let (mut bits, mut taken, mut last) = (1, 0, 0);
        for (at, count) in counts[first..].iter().enumerate() {
            let needs = bits.max(u64::BITS - count.leading_zeros());
            if needs as usize * (at + 1) > PACKED_BITS as usize {
                break;
            }
            (bits, taken) = (needs, at + 1);
            if *count != 0 {
                last = at + 1;
            }
        }
        let mut packed = [0; 3];
        for (at, count) in counts[first..first + last].iter().enumerate() {
            let bit = at * bits as usize;
            let (word, shift) = (bit / 64, bit % 64);
            packed[word] |= count << shift;
            if shift + bits as usize > 64 {
                packed[word + 1] |= count >> (64 - shift);
            }
        }
        let bits_field = u8::try_from(bits).unwrap_or(64);
        let first_field = u32::try_from(first).unwrap_or(u32::MAX);
        put(ExpertCounts { layer, counted, bits: bits_field, first: first_field, packed });
        first += taken;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn round_trip(counts: &[u64]) -> (Vec<u64>, usize) {
        let (mut read, mut records) = (vec![0; counts.len()], 0);
        pack_counts(7, Counted::Pairs, counts, |record| {
            records += 1;
            let record = ExpertCounts::of(record.words());
            assert_eq!((record.layer, record.counted), (7, Counted::Pairs));
            for (index, count) in record.counts() {
                match read.get_mut(index as usize) {
                    Some(place) => *place += count,
                    None => assert_eq!(count, 0),
                }
            }
        });
        (read, records)
    }

    proptest! {
        #[test]
        fn packed_counts_read_back(counts in proptest::collection::vec(
            prop_oneof![Just(0), 0..3u64, 0..5_000u64, any::<u32>().prop_map(u64::from), any::<u64>()], 0..300)) {
            let (read, records) = round_trip(&counts);
            prop_assert_eq!(&read, &counts);
            prop_assert!(records <= counts.iter().filter(|count| **count != 0).count());
        }

        #[test]
        fn any_record_of_counts_is_read_without_panic(words: [u64; 4]) {
            prop_assert!(ExpertCounts::of(words).counts().count() <= 192);
        }
    }

    #[test]
    fn a_usual_layer_takes_a_dozen_records() {
        // 128 experts, around 6000 each: 13 bits.
        let counts: Vec<u64> = (0..128).map(|expert| 5_000 + 17 * expert).collect();
        assert_eq!(round_trip(&counts), (counts, 10));
        assert_eq!(round_trip(&[0; 128]).1, 0);
    }

    #[test]
    fn every_pair_has_a_place_of_its_own() {
        let experts = 7;
        let all: Vec<usize> = (0..experts)
            .flat_map(|low| (low + 1..experts).map(move |high| pair_index(experts, low, high)))
            .collect();
        assert_eq!(all, (0..pairs(experts)).collect::<Vec<_>>());
        assert_eq!((pairs(0), pairs(1)), (0, 0));
    }
}
