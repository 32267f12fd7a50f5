//! Counting on the CPU what a router chose.

use crate::counters::Counters;
use core::ffi::c_void;
use profilemate_format::record::{WEIGHT_BINS, pair_index};

/// What a cell of a matrix is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Element {
    /// A signed number of 16 bits.
    I16,
    /// A signed number of 32 bits.
    I32,
    /// A signed number of 64 bits.
    I64,
    /// A floating-point number of 32 bits.
    F32,
}

/// A matrix in somebody else's memory; strides in cells.
#[derive(Debug, Clone, Copy)]
pub struct Matrix {
    /// Its first cell.
    pub data: *const c_void,
    /// Rows: tokens, with padding.
    pub rows: usize,
    /// Columns: the experts that were chosen for a token.
    pub columns: usize,
    /// From a row to the next.
    pub row_stride: usize,
    /// From a column to the next.
    pub column_stride: usize,
    /// What its cells are.
    pub element: Element,
}

impl Matrix {
    fn cell(&self, row: usize, column: usize) -> usize {
        row * self.row_stride + column * self.column_stride
    }

    /// # Safety
    /// The cell is in memory that may be read; see [`count_chosen`].
    unsafe fn whole(&self, row: usize, column: usize) -> i64 {
        let at = self.cell(row, column);
        // SAFETY: by the caller's promise; read without asking for alignment.
        unsafe {
            match self.element {
                Element::I16 => self.data.cast::<i16>().add(at).read_unaligned().into(),
                Element::I32 => self.data.cast::<i32>().add(at).read_unaligned().into(),
                Element::I64 => self.data.cast::<i64>().add(at).read_unaligned(),
                Element::F32 => -1,
            }
        }
    }
}

/// Which rows of a matrix are tokens of this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tokens {
    /// First row of this process: behind those of others where a batch is put together from several.
    pub first_row: usize,
    /// Which of the process's tokens that row is: not the first where several share a batch.
    pub first_token: usize,
    /// Tokens of the process in this step, without padding.
    pub valid: usize,
}

impl Tokens {
    /// The rows that count, of so many.
    fn rows(self, rows: usize) -> std::ops::Range<usize> {
        let count = self.valid.saturating_sub(self.first_token);
        let begin = self.first_row.min(rows);
        begin..begin.saturating_add(count).min(rows)
    }
}

/// Adds what a router chose to the counters of the layer in this place. What is no expert (-1 where a token is sent to fewer) is
/// passed over.
///
/// # Safety
/// Every cell of `chosen` is memory that may be read, and is not written meanwhile.
pub unsafe fn count_chosen(words: &mut [u64], counters: &Counters, place: usize, chosen: &Matrix, tokens: Tokens) {
    let Some(at) = counters.tokens(place) else { return };
    let rows = tokens.rows(chosen.rows);
    let Some(seen) = words.get_mut(at) else { return };
    *seen = seen.wrapping_add(rows.len() as u64);
    let activations = counters.activations(place);
    let (experts, pairs) = (activations.len(), counters.pairs(place));
    // SAFETY: rows and columns are those of the matrix.
    let expert = |row, column| unsafe { usize::try_from(chosen.whole(row, column)) }.ok().filter(|e| *e < experts);
    for row in rows {
        for column in 0..chosen.columns {
            let Some(one) = expert(row, column) else { continue };
            words[activations.start + one] = words[activations.start + one].wrapping_add(1);
            if pairs.is_empty() {
                continue;
            }
            for before in 0..column {
                if let Some(other) = expert(row, before).filter(|other| *other != one) {
                    let pair = pairs.start + pair_index(experts, one.min(other), one.max(other));
                    words[pair] = words[pair].wrapping_add(1);
                }
            }
        }
    }
}

/// Bin of a routing weight. What is less than 0, or no number, is in none.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "it is at least 0, and what is large saturates"
)]
fn bin(weight: f32) -> Option<usize> {
    // As the device does it: one product in single precision.
    (weight >= 0.0).then(|| ((weight * (WEIGHT_BINS - 1) as f32) as usize).min(WEIGHT_BINS - 1))
}

/// Adds routing weights to the counters of the layer in this place.
///
/// # Safety
/// As for [`count_chosen`].
pub unsafe fn count_weights(
    words: &mut [u64],
    counters: &Counters,
    place: usize,
    weights: &Matrix,
    tokens: Tokens,
) {
    let bins = counters.weights(place);
    if bins.is_empty() || weights.element != Element::F32 || words.len() < bins.end {
        return;
    }
    for row in tokens.rows(weights.rows) {
        for column in 0..weights.columns {
            // SAFETY: by the caller's promise; rows and columns are those of the matrix.
            let weight = unsafe { weights.data.cast::<f32>().add(weights.cell(row, column)).read_unaligned() };
            if let Some(bin) = bin(weight) {
                words[bins.start + bin] = words[bins.start + bin].wrapping_add(1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Layer;
    use proptest::prelude::*;

    const EXPERTS: u16 = 6;

    fn counters() -> Counters {
        let layers = [Layer { index: 0, experts: 3, top_k: 1 }, Layer { index: 4, experts: EXPERTS, top_k: 3 }];
        Counters::new(&layers, true, true).unwrap()
    }

    fn matrix<T>(data: &[T], columns: usize, element: Element) -> Matrix {
        Matrix {
            data: data.as_ptr().cast(),
            rows: data.len() / columns,
            columns,
            row_stride: columns,
            column_stride: 1,
            element,
        }
    }

    proptest! {
        #[test]
        fn every_row_within_the_tokens_counts_once(
            chosen in proptest::collection::vec(proptest::sample::subsequence((0..EXPERTS.into()).collect::<Vec<i64>>(), 3), 0..40),
            first_row in 0usize..10, first_token in 0usize..10, valid in 0usize..50,
        ) {
            let counters = counters();
            let flat: Vec<i64> = chosen.iter().flatten().copied().collect();
            let narrow: Vec<i32> = flat.iter().map(|id| i32::try_from(*id).unwrap()).collect();
            let tokens = Tokens { first_row, first_token, valid };
            let mut words = vec![0; counters.words()];
            let mut same = words.clone();
            // SAFETY: the matrices are the vectors above.
            unsafe {
                count_chosen(&mut words, &counters, 1, &matrix(&flat, 3, Element::I64), tokens);
                count_chosen(&mut same, &counters, 1, &matrix(&narrow, 3, Element::I32), tokens);
            }
            prop_assert_eq!(&words, &same);
            let counted: Vec<_> = chosen.iter().enumerate()
                .filter(|(row, _)| *row >= first_row && row - first_row + first_token < valid)
                .map(|(_, row)| row)
                .collect();
            prop_assert_eq!(words[counters.tokens(1).unwrap()], counted.len() as u64);
            for (expert, word) in (0i64..).zip(counters.activations(1)) {
                let times = counted.iter().filter(|row| row.contains(&expert)).count();
                prop_assert_eq!(words[word], times as u64);
            }
            let mut pairs = counters.pairs(1);
            for low in 0..i64::from(EXPERTS) {
                for high in low + 1..i64::from(EXPERTS) {
                    let times = counted.iter().filter(|row| row.contains(&low) && row.contains(&high)).count();
                    prop_assert_eq!(words[pairs.next().unwrap()], times as u64);
                }
            }
            prop_assert!(words[..counters.tokens(1).unwrap()].iter().all(|word| *word == 0), "another layer");
        }
    }

    #[test]
    fn what_is_no_expert_is_passed_over_and_strides_are_followed() {
        let counters = counters();
        let mut words = vec![0; counters.words()];
        // Column by column, as a transposed view lies.
        let data: [i64; 6] = [5, -1, 0, 6, 1 << 40, i64::MIN];
        let view =
            Matrix { rows: 2, columns: 3, row_stride: 1, column_stride: 2, ..matrix(&data, 3, Element::I64) };
        // SAFETY: the matrix is the array above.
        unsafe { count_chosen(&mut words, &counters, 1, &view, Tokens { valid: 9, ..Tokens::default() }) };
        // Rows: 5, 0, 2^40 and -1, 6, -2^63.
        assert_eq!(words[counters.activations(1)], [1, 0, 0, 0, 0, 1]);
        assert_eq!(words[counters.tokens(1).unwrap()], 2);
        assert_eq!(words[counters.pairs(1)].iter().sum::<u64>(), 1);
    }

    #[test]
    fn weights_are_binned_in_hundredths_and_the_last_bin_is_open() {
        let counters = counters();
        let mut words = vec![0; counters.words()];
        let weights = [0.0_f32, 0.005, 0.01, 0.999, 1.0, 2.5, f32::INFINITY, f32::NAN, -0.5];
        // SAFETY: the matrix is the array above.
        unsafe {
            let tokens = Tokens { valid: 9, ..Tokens::default() };
            count_weights(&mut words, &counters, 1, &matrix(&weights, 1, Element::F32), tokens);
            count_weights(&mut words, &counters, 7, &matrix(&weights, 1, Element::F32), tokens);
        }
        let bins = &words[counters.weights(1)];
        assert_eq!((bins[0], bins[1], bins[99], bins[100]), (2, 1, 1, 3));
        assert_eq!(bins.iter().sum::<u64>(), 7);
    }
}
