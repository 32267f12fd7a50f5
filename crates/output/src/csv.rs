//! A table in CSV that is being written, and how a cell is. Numbers go from integers to text directly: exact, and fast enough for tens of millions.

use crate::Error;
use crate::cells::{Cells, Column, Table};
use crate::replace::NewFile;
use crate::text::visible;

/// What the name of a file ends with.
pub(crate) const EXTENSION: &str = "csv";

/// A table that is being written.
pub(crate) struct CsvTable {
    file: NewFile,
    line: Line,
}

impl CsvTable {
    /// Begins a table in a new file, with the names of the columns.
    pub(crate) fn new(mut file: NewFile, columns: &[Column]) -> Result<Self, Error> {
        let names: Vec<&str> = columns.iter().map(|column| column.name).collect();
        file.append(names.join(",").as_bytes())?;
        file.append(b"\n")?;
        Ok(Self { file, line: Line::default() })
    }

    /// Writes a row.
    #[inline]
    pub(crate) fn row<T: Table>(&mut self, row: &T::Row<'_>) -> Result<(), Error> {
        self.line.begin();
        T::cells(row, &mut self.line);
        self.file.append(self.line.end())
    }

    /// The file, which still has its other name.
    pub(crate) fn into_file(self) -> NewFile {
        self.file
    }
}

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
    fn empty(&mut self) {
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

impl Cells for Line {
    #[inline]
    fn whole(&mut self, value: impl Into<Option<u64>>) {
        if let Some(value) = value.into() {
            self.digits(value, 1);
        }
        self.bytes.push(b',');
    }

    #[inline]
    fn signed(&mut self, value: Option<i32>) {
        if value.is_some_and(i32::is_negative) {
            self.bytes.push(b'-');
        }
        self.whole(value.map(|value| u64::from(value.unsigned_abs())));
    }

    #[inline]
    fn decimal(&mut self, value: Option<u64>, places: u32) {
        if let Some(value) = value {
            let unit = 10u64.pow(places);
            self.digits(value / unit, 1);
            self.bytes.push(b'.');
            self.digits(value % unit, places as usize);
        }
        self.bytes.push(b',');
    }

    fn rounded(&mut self, value: Option<f64>) {
        match value {
            Some(value) => self.word(&format!("{value:.6}")),
            None => self.empty(),
        }
    }

    /// As the first generation wrote them: Python's words.
    #[inline]
    fn flag(&mut self, value: Option<bool>) {
        self.word(match value {
            Some(true) => "True",
            Some(false) => "False",
            None => "",
        });
    }

    #[inline]
    fn word(&mut self, word: &str) {
        self.bytes.extend_from_slice(word.as_bytes());
        self.bytes.push(b',');
    }

    #[inline]
    fn name(&mut self, text: &str) {
        self.text(text);
    }

    /// With nothing in it that is not seen, quoted where CSV needs it, and with an apostrophe before what a spreadsheet
    /// would run.
    #[inline]
    fn text(&mut self, text: &str) {
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
            line.whole(0);
            line.whole(u64::MAX);
            line.whole(None);
            line.timestamp(-5);
            line.timestamp(1_000_000_001);
            line.milliseconds(1_234_567);
            line.percent((1, 3));
            line.percent((1, 0));
            line.quotient(Some((5_000, 3, 3)));
            line.quotient(None);
            line.signed(Some(-7));
            line.rounded(Some(1.5));
        });
        assert_eq!(text, "0,18446744073709551615,,0.000000000,1.000000001,1.234567,33.3333,,1.667,,-7,1.500000\n");
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
            let text = line(|line| line.decimal(Some(value), places));
            let (whole, fraction) = text.trim_end().split_once('.').unwrap();
            prop_assert_eq!(fraction.len(), places as usize);
            prop_assert_eq!(whole.parse::<u64>().unwrap(), value / 10u64.pow(places));
            prop_assert_eq!(fraction.parse::<u64>().unwrap(), value % 10u64.pow(places));
        }
    }
}
