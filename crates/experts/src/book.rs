//! What came on since the counters were read, as records.

use crate::counters::Counters;
use profilemate_format::record::{Counted, ExpertLoad, Payload, expert_counting, pack_counts};

/// Words after which a step has done its part: several tens of microseconds.
const WORDS_OF_A_TURN: usize = 1 << 13;

/// Keeps what was read before, and hands out differences layer by layer: a few in each step, so that no step pays for all.
#[derive(Debug)]
pub struct Book {
    counters: Counters,
    /// What records have said so far.
    written: Vec<u64>,
    /// Next layer of the reading to be written.
    next: usize,
    /// When it was read, ticks.
    read_at: u64,
    /// When each layer was read for what was written of it, ticks.
    written_at: Vec<u64>,
    differences: Vec<u64>,
}

impl Book {
    /// A book of counters that are all 0 now.
    pub fn new(counters: Counters, now: u64) -> Self {
        let (words, layers) = (counters.words(), counters.len());
        Self {
            counters,
            written: vec![0; words],
            next: layers,
            read_at: now,
            written_at: vec![now; layers],
            differences: Vec::new(),
        }
    }

    /// The counters it is of.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Whether everything that was read is written.
    pub fn is_done(&self) -> bool {
        self.next == self.counters.len()
    }

    /// When the counters were read last, ticks.
    pub fn read_at(&self) -> u64 {
        self.read_at
    }

    /// All counters were read now. What was not written of the reading before is in this one as well.
    pub fn read(&mut self, now: u64) {
        (self.next, self.read_at) = (0, now);
    }

    /// Writes some layers of the reading, of which `word` says each: `put` gets the ticks and the payload of each record.
    pub fn write_some(&mut self, word: impl Fn(usize) -> u64, mut put: impl FnMut(u64, Payload)) {
        let mut words = 0;
        while !self.is_done() && words < WORDS_OF_A_TURN {
            words += self.write_layer(self.next, &word, &mut put);
            self.next += 1;
        }
    }

    /// Writes the rest of the reading.
    pub fn write_all(&mut self, word: impl Fn(usize) -> u64, mut put: impl FnMut(u64, Payload)) {
        while !self.is_done() {
            self.write_some(&word, &mut put);
        }
    }

    fn write_layer(
        &mut self,
        place: usize,
        word: &impl Fn(usize) -> u64,
        put: &mut impl FnMut(u64, Payload),
    ) -> usize {
        let (Some(layer), Some(begin)) = (self.counters.layer(place), self.counters.tokens(place)) else {
            return 1;
        };
        let end = self.counters.weights(place).end;
        let pairs = self.counters.pairs(place);
        let activations = self.counters.activations(place);
        self.differences.clear();
        let Self { differences, written, .. } = self;
        differences.extend((begin..end).zip(&mut written[begin..end]).map(|(at, written)| {
            let now = word(at);
            now.wrapping_sub(std::mem::replace(written, now))
        }));
        let at = self.read_at;
        let interval_ticks = at.saturating_sub(std::mem::replace(&mut self.written_at[place], at));
        let tokens = self.differences[0];
        if tokens == 0 {
            return end - begin;
        }
        let of = |words: std::ops::Range<usize>| &self.differences[words.start - begin..words.end - begin];
        let counting = if pairs.is_empty() { 0 } else { expert_counting::COSELECTION }
            | if self.counters.has_weights() { expert_counting::WEIGHTS } else { 0 };
        let load = ExpertLoad {
            layer: layer.index,
            experts: layer.experts,
            top_k: layer.top_k,
            counting,
            interval_ticks,
            tokens,
            activations: of(activations.clone()).iter().fold(0, |sum: u64, count| sum.wrapping_add(*count)),
        };
        put(at, Payload::ExpertLoad(load));
        for (counted, words) in [
            (Counted::Activations, activations),
            (Counted::Pairs, pairs),
            (Counted::Weights, self.counters.weights(place)),
        ] {
            pack_counts(layer.index, counted, of(words), |counts| put(at, Payload::ExpertCounts(counts)));
        }
        end - begin
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Layer;

    fn book(experts: u16, layers: u16) -> Book {
        let layers: Vec<Layer> = (0..layers).map(|index| Layer { index: 2 * index, experts, top_k: 2 }).collect();
        Book::new(Counters::new(&layers, true, false).unwrap(), 100)
    }

    fn loads(book: &mut Book, words: &[u64], turns: usize) -> Vec<(u64, ExpertLoad)> {
        let mut loads = Vec::new();
        for _ in 0..turns {
            book.write_some(
                |at| words[at],
                |at, payload| {
                    if let Payload::ExpertLoad(load) = payload {
                        loads.push((at, load));
                    }
                },
            );
        }
        loads
    }

    #[test]
    fn differences_between_readings_are_written_and_idle_layers_are_not() {
        let mut book = book(3, 2);
        assert!(book.is_done());
        let mut words = vec![0; book.counters().words()];
        let (tokens, expert) = (book.counters().tokens(1).unwrap(), book.counters().activations(1).start);
        (words[tokens], words[expert], words[expert + 2]) = (5, 4, 6);
        book.read(130);
        let first = loads(&mut book, &words, 1);
        let load = ExpertLoad {
            layer: 2,
            experts: 3,
            top_k: 2,
            counting: expert_counting::COSELECTION,
            interval_ticks: 30,
            tokens: 5,
            activations: 10,
        };
        assert_eq!(first, [(130, load)]);
        assert!(book.is_done());
        (words[tokens], words[expert]) = (6, 6);
        book.read(150);
        let load = ExpertLoad { interval_ticks: 20, tokens: 1, activations: 2, ..load };
        assert_eq!(loads(&mut book, &words, 1), [(150, load)]);
        book.read(170);
        assert_eq!(loads(&mut book, &words, 1), []);
    }

    #[test]
    fn a_large_reading_takes_several_turns() {
        let mut book = book(128, 4);
        let words = book.counters().words();
        book.read(200);
        assert_eq!(loads(&mut book, &vec![1; words], 1).len(), 1);
        assert!(!book.is_done());
        // A newer reading has all that was not written.
        book.read(300);
        let rest = loads(&mut book, &vec![3; words], 4);
        let seen: Vec<_> = rest.iter().map(|(_, load)| (load.layer, load.tokens, load.interval_ticks)).collect();
        assert_eq!(seen, [(0, 2, 100), (2, 3, 200), (4, 3, 200), (6, 3, 200)]);
        assert!(book.is_done());
    }
}
