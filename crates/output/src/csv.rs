//! How a cell is written. Numbers go from integers to text directly: exact, and fast enough for tens of millions.

use crate::text::visible;

/// A line being made.
#[derive(Debug, Default)]
pub(crate) struct Line {
    bytes: Vec<u8>,
}

impl Line {
    /// Begins a line.
    #[inline]
    pub(crate) fn begin(&mut self) {
        self.bytes.clear();
    }

    /// Ends it; the line with its end.
    #[inline]
    pub(crate) fn end(&mut self) -> &[u8] {
        // Every cell put a comma behind itself.
        if let Some(last) = self.bytes.last_mut() {
            *last = b'\n';
        }
        &self.bytes
    }

    /// An unknown value.
    #[inline]
    pub(crate) fn empty(&mut self) {
        self.bytes.push(b',');
    }

    /// A whole number.
    #[inline]
    pub(crate) fn number(&mut self, value: u64) {
        self.digits(value, 1);
        self.bytes.push(b',');
    }

    /// A whole number that may be unknown.
    #[inline]
    pub(crate) fn maybe(&mut self, value: Option<u64>) {
        match value {
            Some(value) => self.number(value),
            None => self.empty(),
        }
    }

    /// `value` divided by ten to the power of `places`, with all its places.
    #[inline]
    pub(crate) fn decimal(&mut self, value: u64, places: u32) {
        let unit = 10u64.pow(places);
        self.digits(value / unit, 1);
        self.bytes.push(b'.');
        self.digits(value % unit, places as usize);
        self.bytes.push(b',');
    }

    /// Nanoseconds since the session's start, as seconds. The start is the first thing that is known of the session;
    /// what a clock puts a hair before it is put on it.
    #[inline]
    pub(crate) fn timestamp(&mut self, nanoseconds: i64) {
        self.decimal(u64::try_from(nanoseconds).unwrap_or(0), 9);
    }

    /// Nanoseconds, as milliseconds.
    #[inline]
    pub(crate) fn milliseconds(&mut self, nanoseconds: u64) {
        self.decimal(nanoseconds, 6);
    }

    /// Nanoseconds that may be unknown, as milliseconds.
    #[inline]
    pub(crate) fn maybe_milliseconds(&mut self, nanoseconds: Option<u64>) {
        match nanoseconds {
            Some(nanoseconds) => self.milliseconds(nanoseconds),
            None => self.empty(),
        }
    }

    /// A point in time that may be unknown.
    #[inline]
    pub(crate) fn maybe_timestamp(&mut self, nanoseconds: Option<i64>) {
        match nanoseconds {
            Some(nanoseconds) => self.timestamp(nanoseconds),
            None => self.empty(),
        }
    }

    /// Nanoseconds that may be unknown, as seconds.
    #[inline]
    pub(crate) fn maybe_seconds(&mut self, nanoseconds: Option<u64>) {
        match nanoseconds {
            Some(nanoseconds) => self.decimal(nanoseconds, 9),
            None => self.empty(),
        }
    }

    /// A whole number of either sign that may be unknown.
    #[inline]
    pub(crate) fn maybe_signed(&mut self, value: Option<i32>) {
        match value {
            Some(value) => {
                if value < 0 {
                    self.bytes.push(b'-');
                }
                self.number(u64::from(value.unsigned_abs()));
            }
            None => self.empty(),
        }
    }

    /// `part` of `whole` in percent with four places; unknown when there is no whole.
    pub(crate) fn percent(&mut self, part: u64, whole: u64) {
        self.quotient(u128::from(part) * 1_000_000, u128::from(whole), 4);
    }

    /// `dividend / divisor`, rounded, divided by ten to the power of `places`; unknown when it cannot be said.
    pub(crate) fn quotient(&mut self, dividend: u128, divisor: u128, places: u32) {
        match (dividend + divisor / 2).checked_div(divisor).map(u64::try_from) {
            Some(Ok(value)) => self.decimal(value, places),
            _ => self.empty(),
        }
    }

    /// A word of ours.
    #[inline]
    pub(crate) fn word(&mut self, word: &str) {
        self.bytes.extend_from_slice(word.as_bytes());
        self.bytes.push(b',');
    }

    /// A text from outside: with nothing in it that is not seen, quoted where CSV needs it, and with an apostrophe before what a spreadsheet would run.
    #[inline]
    pub(crate) fn text(&mut self, text: &str) {
        let text = &*visible(text);
        // The wide forms are signs of formulas in some languages of spreadsheets.
        let runs = text.starts_with(['=', '+', '-', '@', '＝', '＋', '－', '＠']);
        if text.bytes().any(|byte| matches!(byte, b',' | b'"')) {
            self.bytes.push(b'"');
            if runs {
                self.bytes.push(b'\'');
            }
            for byte in text.bytes() {
                if byte == b'"' {
                    self.bytes.push(b'"');
                }
                self.bytes.push(byte);
            }
            self.bytes.push(b'"');
        } else {
            if runs {
                self.bytes.push(b'\'');
            }
            self.bytes.extend_from_slice(text.as_bytes());
        }
        self.bytes.push(b',');
    }

    /// At least `places` digits, two at a time: dividing is what costs.
    #[inline]
    fn digits(&mut self, mut value: u64, places: usize) {
        let mut digits = [b'0'; 20];
        let mut at = digits.len();
        while value >= 10 {
            let pair = 2 * usize::try_from(value % 100).unwrap_or(0);
            at -= 2;
            digits[at..at + 2].copy_from_slice(&PAIRS[pair..pair + 2]);
            value /= 100;
        }
        if value > 0 {
            at -= 1;
            digits[at] = PAIRS[2 * usize::try_from(value).unwrap_or(0) + 1];
        }
        self.bytes.extend_from_slice(&digits[at.min(digits.len() - places)..]);
    }
}

/// The numbers from 00 to 99.
const PAIRS: [u8; 200] = {
    let mut pairs = [b'0'; 200];
    let mut number = 0u8;
    while number < 100 {
        pairs[2 * number as usize] = b'0' + number / 10;
        pairs[2 * number as usize + 1] = b'0' + number % 10;
        number += 1;
    }
    pairs
};

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn line(fill: impl FnOnce(&mut Line)) -> String {
        let mut line = Line::default();
        line.begin();
        fill(&mut line);
        String::from_utf8(line.end().to_vec()).unwrap()
    }

    #[test]
    fn numbers() {
        let text = line(|line| {
            line.number(0);
            line.number(u64::MAX);
            line.maybe(None);
            line.timestamp(-5);
            line.timestamp(1_000_000_001);
            line.milliseconds(1_234_567);
            line.percent(1, 3);
            line.percent(1, 0);
            line.quotient(5_000, 3, 3);
        });
        assert_eq!(text, "0,18446744073709551615,,0.000000000,1.000000001,1.234567,33.3333,,1.667\n");
    }

    #[test]
    fn texts_from_outside_are_quoted_and_do_not_run() {
        for (text, cell) in [
            ("plain", "plain"),
            ("a,b", "\"a,b\""),
            ("say \"x\"", "\"say \"\"x\"\"\""),
            ("=cmd()", "'=cmd()"),
            ("@a,b", "\"'@a,b\""),
            ("two\nlines\0", "two\\nlines\\u{0}"),
            ("\t=cmd()", "\\t=cmd()"),
            ("＝cmd()", "'＝cmd()"),
        ] {
            assert_eq!(line(|line| line.text(text)), format!("{cell}\n"));
        }
    }

    proptest! {
        #[test]
        fn decimals_read_back(value: u64, places in 1u32..=9) {
            let text = line(|line| line.decimal(value, places));
            let (whole, fraction) = text.trim_end().split_once('.').unwrap();
            prop_assert_eq!(fraction.len(), places as usize);
            prop_assert_eq!(whole.parse::<u64>().unwrap(), value / 10u64.pow(places));
            prop_assert_eq!(fraction.parse::<u64>().unwrap(), value % 10u64.pow(places));
        }
    }
}
