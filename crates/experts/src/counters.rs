//! How the counters lie in memory: 64-bit words, layer behind layer. Device code relies on it
//! (`crates/cuda/src/device/count_experts.cu`).
//!
//! ```text
//! of a layer:  tokens · activations by expert · pairs of experts · bins of routing weights
//! ```
//! The last two are there only if somebody asked for them.

use profilemate_format::record::{WEIGHT_BINS, pairs};
use std::fmt;
use std::ops::Range;

/// Most words of all counters together: 16 MiB, as device code has memory.
pub const MOST_WORDS: usize = 2 << 20;

/// A layer whose experts are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layer {
    /// Its index in the model.
    pub index: u16,
    /// Its routed experts.
    pub experts: u16,
    /// How many of them a token is sent to.
    pub top_k: u16,
}

/// The counters would take too much memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooMany {
    /// Bytes that they would take.
    pub bytes: usize,
}

impl fmt::Display for TooMany {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let most = (MOST_WORDS * 8) >> 20;
        write!(f, "counters of {} MiB are more than {most} MiB; moe_layers chooses fewer layers", self.bytes >> 20)
    }
}

impl std::error::Error for TooMany {}

/// Where the counters of each layer are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counters {
    layers: Vec<(Layer, usize)>,
    words: usize,
    coselection: bool,
    weights: bool,
}

impl Counters {
    /// Counters for these layers; with pairs of experts and routing weights, or without.
    ///
    /// # Errors
    /// When they would take more than [`MOST_WORDS`].
    pub fn new(layers: &[Layer], coselection: bool, weights: bool) -> Result<Self, TooMany> {
        let mut places = Vec::with_capacity(layers.len());
        let mut words = 0;
        for layer in layers {
            places.push((*layer, words));
            let experts = usize::from(layer.experts);
            words += 1 + experts + if coselection { pairs(experts) } else { 0 };
            words += if weights { WEIGHT_BINS } else { 0 };
        }
        if words > MOST_WORDS {
            return Err(TooMany { bytes: words * 8 });
        }
        Ok(Self { layers: places, words, coselection, weights })
    }

    /// Words of all layers.
    pub fn words(&self) -> usize {
        self.words
    }

    /// How many layers there are.
    pub fn len(&self) -> usize {
        self.layers.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.layers.is_empty()
    }

    /// Whether pairs of experts are counted.
    pub fn has_coselection(&self) -> bool {
        self.coselection
    }

    /// Whether routing weights are counted.
    pub fn has_weights(&self) -> bool {
        self.weights
    }

    /// The layer in this place; `None` = there is none.
    pub fn layer(&self, place: usize) -> Option<Layer> {
        self.layers.get(place).map(|(layer, _)| *layer)
    }

    /// Word that counts tokens of the layer in this place; its activations follow.
    pub fn tokens(&self, place: usize) -> Option<usize> {
        self.layers.get(place).map(|(_, at)| *at)
    }

    /// Words of its activations, by expert.
    pub fn activations(&self, place: usize) -> Range<usize> {
        let Some((layer, at)) = self.layers.get(place) else { return 0..0 };
        at + 1..at + 1 + usize::from(layer.experts)
    }

    /// Words of its pairs of experts; empty if they are not counted.
    pub fn pairs(&self, place: usize) -> Range<usize> {
        let begin = self.activations(place).end;
        let many = self.layer(place).map_or(0, |layer| pairs(layer.experts.into()));
        begin..begin + if self.coselection { many } else { 0 }
    }

    /// Words of its bins of routing weights; empty if they are not counted.
    pub fn weights(&self, place: usize) -> Range<usize> {
        let begin = self.pairs(place).end;
        begin..begin + if self.weights && place < self.len() { WEIGHT_BINS } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYERS: [Layer; 2] =
        [Layer { index: 1, experts: 8, top_k: 2 }, Layer { index: 3, experts: 4, top_k: 1 }];

    #[test]
    fn layers_follow_one_another_without_a_gap() {
        for (coselection, weights) in [(false, false), (true, false), (false, true), (true, true)] {
            let counters = Counters::new(&LAYERS, coselection, weights).unwrap();
            let mut at = 0;
            for place in 0..2 {
                assert_eq!(counters.tokens(place), Some(at));
                for words in [counters.activations(place), counters.pairs(place), counters.weights(place)] {
                    assert!(words.is_empty() || words.start == at.max(counters.tokens(place).unwrap() + 1));
                    at = words.end;
                }
            }
            assert_eq!(counters.words(), at);
        }
        let plain = Counters::new(&LAYERS, false, false).unwrap();
        assert_eq!((plain.words(), plain.pairs(0).len(), plain.weights(1).len()), (14, 0, 0));
        assert_eq!((plain.tokens(2), plain.activations(2)), (None, 0..0));
    }

    #[test]
    fn more_than_the_bound_is_an_error_that_says_what_to_do() {
        let layers: Vec<Layer> = (0..100).map(|index| Layer { index, experts: 512, top_k: 8 }).collect();
        let error = Counters::new(&layers, true, false).unwrap_err().to_string();
        assert_eq!(error, "counters of 100 MiB are more than 16 MiB; moe_layers chooses fewer layers");
        assert!(Counters::new(&layers, false, true).is_ok());
    }
}
