//! What is on a page, whatever it is about: sections of tables, charts and sentences. The page's script draws it.
//!
//! All text goes in here through [`Text`], which writes out what would not be seen; the script puts it on the page as text.

use serde::{Serialize, Serializer};

use crate::text::visible;

/// Text that does nothing, wherever it comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Text(String);

impl<T: AsRef<str>> From<T> for Text {
    fn from(text: T) -> Self {
        Self(visible(text.as_ref()).into_owned())
    }
}

impl Text {
    /// The text.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

/// Significant digits of a number on the page.
const DIGITS: i32 = 7;

/// A number as it is drawn: with [`DIGITS`] digits; what is none is `null`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Number(pub(crate) f64);

impl Serialize for Number {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let value = self.0;
        if !value.is_finite() {
            return serializer.serialize_none();
        }
        if value == 0.0 {
            return serializer.serialize_u64(0);
        }
        #[expect(clippy::cast_possible_truncation, reason = "a power of ten of a finite number")]
        let places = (DIGITS - 1 - value.abs().log10().floor() as i32).clamp(0, 9);
        let scale = 10_f64.powi(places);
        let rounded = if value.abs() < 1e15 { (value * scale).round() / scale } else { value };
        #[expect(clippy::cast_possible_truncation, reason = "it is whole and small")]
        if rounded.fract() == 0.0 && rounded.abs() < 1e15 {
            return serializer.serialize_i64(rounded as i64);
        }
        serializer.serialize_f64(rounded)
    }
}

/// A page.
#[derive(Debug, Serialize)]
pub(crate) struct Page {
    /// Name of the page.
    pub(crate) title: Text,
    /// What it is about, in a few words each.
    pub(crate) about: Vec<Text>,
    /// Something that has to be known before anything is read.
    pub(crate) warnings: Vec<Text>,
    /// The most important numbers.
    pub(crate) figures: Vec<Figure>,
    /// Beginning and end of the time that charts show at first, seconds.
    pub(crate) range: [Number; 2],
    /// In order.
    pub(crate) sections: Vec<Section>,
}

/// An important number.
#[derive(Debug, Serialize)]
pub(crate) struct Figure {
    pub(crate) label: Text,
    pub(crate) value: Text,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) note: Option<Text>,
}

/// A part of the page.
#[derive(Debug, Serialize)]
pub(crate) struct Section {
    pub(crate) id: &'static str,
    pub(crate) title: &'static str,
    /// What it answers, or what to know about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) lead: Option<Text>,
    pub(crate) blocks: Vec<Block>,
}

impl Section {
    pub(crate) fn new(id: &'static str, title: &'static str) -> Self {
        Self { id, title, lead: None, blocks: Vec::new() }
    }

    pub(crate) fn lead(mut self, lead: impl AsRef<str>) -> Self {
        self.lead = Some(lead.into());
        self
    }

    pub(crate) fn push(&mut self, block: impl Into<Block>) {
        self.blocks.push(block.into());
    }
}

/// Something in a section.
#[derive(Debug, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(crate) enum Block {
    Sentence { text: Text },
    Table(Table),
    Chart(Chart),
    Histogram(Histogram),
    HeatMap(HeatMap),
    Waterfall(Waterfall),
    Finding(Finding),
    Intervals(Intervals),
}

impl From<Table> for Block {
    fn from(table: Table) -> Self {
        Self::Table(table)
    }
}

impl From<Chart> for Block {
    fn from(chart: Chart) -> Self {
        Self::Chart(chart)
    }
}

impl From<Histogram> for Block {
    fn from(histogram: Histogram) -> Self {
        Self::Histogram(histogram)
    }
}

impl From<HeatMap> for Block {
    fn from(map: HeatMap) -> Self {
        Self::HeatMap(map)
    }
}

/// A table.
#[derive(Debug, Serialize)]
pub(crate) struct Table {
    pub(crate) title: Text,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) note: Option<Text>,
    pub(crate) columns: Vec<Column>,
    pub(crate) rows: Vec<Vec<Cell>>,
    /// Whether it is shown only when somebody asks for it.
    pub(crate) is_folded: bool,
}

impl Table {
    pub(crate) fn new(title: impl AsRef<str>, columns: Vec<Column>) -> Self {
        Self { title: title.into(), note: None, columns, rows: Vec::new(), is_folded: false }
    }

    pub(crate) fn note(mut self, note: impl AsRef<str>) -> Self {
        self.note = Some(note.into());
        self
    }

    pub(crate) fn folded(mut self) -> Self {
        self.is_folded = true;
        self
    }

    pub(crate) fn row(&mut self, cells: Vec<Cell>) {
        debug_assert_eq!(cells.len(), self.columns.len());
        self.rows.push(cells);
    }
}

/// A column of a table.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Column {
    pub(crate) name: Text,
    pub(crate) kind: ColumnKind,
    /// Digits behind the point.
    pub(crate) digits: u8,
}

#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ColumnKind {
    Text,
    Number,
    /// A share of 0 to 100, drawn as a bar in front of the number.
    Share,
}

pub(crate) fn text(name: &str) -> Column {
    Column { name: name.into(), kind: ColumnKind::Text, digits: 0 }
}

pub(crate) fn number(name: &str, digits: u8) -> Column {
    Column { name: name.into(), kind: ColumnKind::Number, digits }
}

pub(crate) fn share(name: &str) -> Column {
    Column { name: name.into(), kind: ColumnKind::Share, digits: 1 }
}

/// A cell; `null` = not known.
#[derive(Debug, Clone, Serialize)]
#[serde(untagged)]
pub(crate) enum Cell {
    Text(Text),
    Number(Number),
    Unknown(()),
}

impl From<Option<f64>> for Cell {
    fn from(value: Option<f64>) -> Self {
        value.map_or(Self::Unknown(()), |value| Self::Number(Number(value)))
    }
}

impl From<f64> for Cell {
    fn from(value: f64) -> Self {
        Self::Number(Number(value))
    }
}

impl From<u64> for Cell {
    fn from(value: u64) -> Self {
        Self::Number(Number(value as f64))
    }
}

impl From<Option<u64>> for Cell {
    fn from(value: Option<u64>) -> Self {
        value.map(|value| value as f64).into()
    }
}

impl From<Option<u32>> for Cell {
    fn from(value: Option<u32>) -> Self {
        value.map(f64::from).into()
    }
}

impl From<&str> for Cell {
    fn from(value: &str) -> Self {
        Self::Text(value.into())
    }
}

impl From<String> for Cell {
    fn from(value: String) -> Self {
        Self::Text(value.into())
    }
}

/// How series are drawn.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Style {
    /// From point to point.
    Line,
    /// A value holds until the next.
    Steps,
    /// Points alone, each series with a shape of its own.
    Points,
}

/// Series over the time of the run.
#[derive(Debug, Serialize)]
pub(crate) struct Chart {
    pub(crate) title: Text,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) note: Option<Text>,
    pub(crate) unit: &'static str,
    pub(crate) style: Style,
    pub(crate) names: Vec<Text>,
    /// Seconds since the session's start, ascending.
    pub(crate) x: Vec<Number>,
    /// For each name a value for each x.
    pub(crate) y: Vec<Vec<Number>>,
    /// Where not every point is there: the means of all of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) means: Option<Means>,
    /// How long a value of [`Style::Steps`] holds, seconds: the last one ends somewhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) length: Option<Number>,
    /// Greatest value that there can be, such as 100 %.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) most: Option<Number>,
    /// Digits behind the point.
    pub(crate) digits: u8,
}

/// Means over equal times, as many series as the chart has.
#[derive(Debug, Serialize)]
pub(crate) struct Means {
    /// The middle of each, seconds.
    pub(crate) x: Vec<Number>,
    pub(crate) y: Vec<Vec<Number>>,
}

/// How often which duration was seen.
#[derive(Debug, Serialize)]
pub(crate) struct Histogram {
    pub(crate) title: Text,
    pub(crate) unit: &'static str,
    /// One more than counts.
    pub(crate) edges: Vec<Number>,
    pub(crate) counts: Vec<u64>,
    /// Values that are worth a mark, by name: exact, not of the histogram.
    pub(crate) marks: Vec<(Text, Number)>,
}

/// One number for each pair of two things, such as layers and experts: the darker, the more.
#[derive(Debug, Serialize)]
pub(crate) struct HeatMap {
    pub(crate) title: Text,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) note: Option<Text>,
    pub(crate) unit: &'static str,
    /// What one column is, and what one row.
    pub(crate) across: &'static str,
    pub(crate) down: &'static str,
    pub(crate) columns: Vec<Text>,
    pub(crate) rows: Vec<Text>,
    /// For each row a value for each column.
    pub(crate) values: Vec<Vec<Number>>,
    /// Digits behind the point.
    pub(crate) digits: u8,
}

/// Requests, one under the other, over the time of the run.
#[derive(Debug, Serialize)]
pub(crate) struct Waterfall {
    pub(crate) title: Text,
    pub(crate) note: Text,
    pub(crate) requests: Vec<Request>,
}

/// A request of the waterfall; times in seconds since the session's start.
#[derive(Debug, Serialize)]
pub(crate) struct Request {
    pub(crate) id: Text,
    pub(crate) arrived: Number,
    pub(crate) queued: Number,
    pub(crate) started: Number,
    pub(crate) preempted: Number,
    pub(crate) resumed: Number,
    pub(crate) first_token: Number,
    pub(crate) left_engine: Number,
    pub(crate) finished: Number,
    /// Beside the bar and in the table.
    pub(crate) reason: Text,
    pub(crate) preemptions: Number,
    pub(crate) prompt_tokens: Number,
    pub(crate) output_tokens: Number,
}

/// Changes with their intervals, around no change.
#[derive(Debug, Serialize)]
pub(crate) struct Intervals {
    pub(crate) title: Text,
    pub(crate) note: Text,
    /// What they are: `worse`, `better`, …
    pub(crate) word: &'static str,
    pub(crate) rows: Vec<Interval>,
}

/// A change with its interval, percent or percentage points.
#[derive(Debug, Serialize)]
pub(crate) struct Interval {
    pub(crate) name: Text,
    pub(crate) change: Number,
    pub(crate) low: Number,
    pub(crate) high: Number,
    /// In words.
    pub(crate) shown: Text,
}

/// Something to change, or good to know.
#[derive(Debug, Serialize)]
pub(crate) struct Finding {
    pub(crate) severity: &'static str,
    pub(crate) title: Text,
    pub(crate) confidence: Text,
    pub(crate) changes: Vec<Text>,
    pub(crate) expect: Text,
    pub(crate) evidence: Vec<(Text, Number, Text)>,
    pub(crate) proof: Vec<Text>,
}
