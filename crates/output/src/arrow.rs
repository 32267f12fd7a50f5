//! Columns in memory, as Arrow has them: for notebooks, and on the way to Parquet.

use std::sync::Arc;

use arrow_array::builder::{BooleanBuilder, Float64Builder, Int64Builder, StringBuilder, StringDictionaryBuilder};
use arrow_array::types::Int32Type;
use arrow_array::{ArrayRef, RecordBatch};
use arrow_schema::{ArrowError, DataType, Field, Schema, SchemaRef};

use crate::cells::{Cells, Column, Kind, Table};
use crate::text::visible;

/// Rows of a batch, as long as its texts are short.
const BATCH_ROWS: usize = 1 << 16;

/// Bytes of texts after which a batch is closed however few rows it has.
const BATCH_TEXT_BYTES: usize = 16 << 20;

/// The schema of a table with these columns. Every cell may be null: what is not known is.
pub(crate) fn schema(columns: &[Column]) -> SchemaRef {
    let field = |column: &Column| Field::new(column.name, data_type(column.kind), true);
    Arc::new(Schema::new(columns.iter().map(field).collect::<Vec<_>>()))
}

fn data_type(kind: Kind) -> DataType {
    match kind {
        Kind::Decimal => DataType::Float64,
        Kind::Whole => DataType::Int64,
        Kind::Flag => DataType::Boolean,
        Kind::Word => DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8)),
        Kind::Text => DataType::Utf8,
    }
}

enum Builder {
    Decimal(Float64Builder),
    Whole(Int64Builder),
    Flag(BooleanBuilder),
    Word(StringDictionaryBuilder<Int32Type>),
    Text(StringBuilder),
}

impl Builder {
    fn new(kind: Kind) -> Self {
        match kind {
            Kind::Decimal => Self::Decimal(Float64Builder::new()),
            Kind::Whole => Self::Whole(Int64Builder::new()),
            Kind::Flag => Self::Flag(BooleanBuilder::new()),
            Kind::Word => Self::Word(StringDictionaryBuilder::new()),
            Kind::Text => Self::Text(StringBuilder::new()),
        }
    }

    fn finish(&mut self) -> ArrayRef {
        match self {
            Self::Decimal(builder) => Arc::new(builder.finish()),
            Self::Whole(builder) => Arc::new(builder.finish()),
            Self::Flag(builder) => Arc::new(builder.finish()),
            // A word keeps its number from batch to batch: what is read first holds for what is read later.
            Self::Word(builder) => Arc::new(builder.finish_preserve_values()),
            Self::Text(builder) => Arc::new(builder.finish()),
        }
    }
}

/// The rows of a table, column by column, until they are taken away as a batch.
pub(crate) struct Columns {
    schema: SchemaRef,
    builders: Vec<Builder>,
    /// The column that gets the next cell.
    at: usize,
    rows: usize,
    text_bytes: usize,
}

impl Columns {
    pub(crate) fn new(columns: &[Column]) -> Self {
        let builders = columns.iter().map(|column| Builder::new(column.kind)).collect();
        Self { schema: schema(columns), builders, at: 0, rows: 0, text_bytes: 0 }
    }

    /// Appends a row; whether it is time for [`Columns::take`].
    #[inline]
    pub(crate) fn row<T: Table>(&mut self, row: &T::Row<'_>) -> bool {
        self.at = 0;
        T::cells(row, self);
        self.rows += 1;
        self.rows >= BATCH_ROWS || self.text_bytes >= BATCH_TEXT_BYTES
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rows == 0
    }

    pub(crate) fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    /// Takes the rows.
    ///
    /// # Errors
    /// Never for columns that [`table!`](crate::cells::table) described; Arrow checks it.
    pub(crate) fn take(&mut self) -> Result<RecordBatch, ArrowError> {
        self.rows = 0;
        self.text_bytes = 0;
        RecordBatch::try_new(self.schema(), self.builders.iter_mut().map(Builder::finish).collect())
    }

    /// The column whose turn it is.
    #[inline]
    fn next(&mut self) -> &mut Builder {
        let at = self.at;
        self.at += 1;
        &mut self.builders[at]
    }
}

/// A column's type and the way its cells are put come from the same word in the table's description.
const SAME_WORD: &str = "a column gets cells of its own type";

impl Cells for Columns {
    /// A number that is too large for a column of signed numbers cannot be said.
    #[inline]
    fn whole(&mut self, value: impl Into<Option<u64>>) {
        let value = value.into().and_then(|value| i64::try_from(value).ok());
        let Builder::Whole(builder) = self.next() else { unreachable!("{SAME_WORD}") };
        builder.append_option(value);
    }

    #[inline]
    fn signed(&mut self, value: Option<i32>) {
        let Builder::Whole(builder) = self.next() else { unreachable!("{SAME_WORD}") };
        builder.append_option(value.map(i64::from));
    }

    /// Dividing two whole numbers gives the number that is nearest to the decimal, as reading its digits does.
    #[inline]
    fn decimal(&mut self, value: Option<u64>, places: u32) {
        let Builder::Decimal(builder) = self.next() else { unreachable!("{SAME_WORD}") };
        builder.append_option(value.map(|value| value as f64 / 10u64.pow(places) as f64));
    }

    fn rounded(&mut self, value: Option<f64>) {
        let Builder::Decimal(builder) = self.next() else { unreachable!("{SAME_WORD}") };
        builder.append_option(value.and_then(|value| format!("{value:.6}").parse().ok()));
    }

    #[inline]
    fn flag(&mut self, value: Option<bool>) {
        let Builder::Flag(builder) = self.next() else { unreachable!("{SAME_WORD}") };
        builder.append_option(value);
    }

    #[inline]
    fn word(&mut self, word: &str) {
        let Builder::Word(builder) = self.next() else { unreachable!("{SAME_WORD}") };
        builder.append_option(Some(word).filter(|word| !word.is_empty()));
    }

    #[inline]
    fn name(&mut self, text: &str) {
        self.word(&visible(text));
    }

    #[inline]
    fn text(&mut self, text: &str) {
        let text = visible(text);
        self.text_bytes += text.len();
        let Builder::Text(builder) = self.next() else { unreachable!("{SAME_WORD}") };
        builder.append_option(Some(&*text).filter(|text| !text.is_empty()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cells::table;
    use arrow_array::Array;
    use arrow_array::cast::AsArray;
    use arrow_array::types::{Float64Type, Int64Type};
    use proptest::prelude::*;

    mod described {
        use super::table;

        table! {
            /// One column of each type.
            Everything = "everything", of row: (u64, &'a str);
            whole: whole(row.0),
            decimal: seconds(row.0),
            text: text(row.1),
            word: name(row.1),
            flag: flag(Some(row.0 > 1)),
        }
    }
    use described::Everything;

    fn columns() -> Columns {
        Columns::new(Everything::COLUMNS)
    }

    #[test]
    fn what_cannot_be_said_is_null_and_what_would_not_be_seen_is_written_out() {
        let mut columns = columns();
        columns.row::<Everything>(&(u64::MAX, ""));
        columns.row::<Everything>(&(1, "=a\n\u{202e}"));
        let batch = columns.take().unwrap();
        assert!(batch.column(0).is_null(0) && batch.column(2).is_null(0) && batch.column(3).is_null(0));
        assert_eq!(batch.column(0).as_primitive::<Int64Type>().value(1), 1);
        assert_eq!(batch.column(2).as_string::<i32>().value(1), "=a\\n\\u{202e}");
        assert!(columns.is_empty());
    }

    #[test]
    fn a_batch_is_bounded_by_its_rows_and_by_its_texts_and_words_keep_their_numbers() {
        let mut columns = columns();
        let short = (1..=2 * BATCH_ROWS).find(|_| columns.row::<Everything>(&(1, "one"))).unwrap();
        assert_eq!(short, BATCH_ROWS);
        assert_eq!(columns.take().unwrap().num_rows(), short);
        let long = "x".repeat(1 << 20);
        assert_eq!((1..100).find(|_| columns.row::<Everything>(&(1, &long))).unwrap(), 16);
        let words = columns.take().unwrap().column(3).as_dictionary::<Int32Type>().clone();
        assert_eq!(words.values().as_string::<i32>().value(0), "one");
        assert_eq!(words.keys().value(0), 1);
    }

    proptest! {
        #[test]
        fn a_decimal_is_what_reading_its_digits_gives(nanoseconds in 0u64..1 << 53) {
            let mut columns = columns();
            columns.row::<Everything>(&(nanoseconds, "x"));
            let batch = columns.take().unwrap();
            let text = format!("{}.{:09}", nanoseconds / 1_000_000_000, nanoseconds % 1_000_000_000);
            let found = batch.column(1).as_primitive::<Float64Type>().value(0);
            prop_assert_eq!(found.to_bits(), text.parse::<f64>().unwrap().to_bits());
        }
    }
}
