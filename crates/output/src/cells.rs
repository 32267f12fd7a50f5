//! What a table is, whatever it is written as: its columns, each with a name, a type and where its value comes from.
//!
//! A table is described once, with [`table!`]. [`Cells`] is what its values are put into: a line of CSV (`csv`), or columns
//! of Arrow (`arrow`), which are also what Parquet is made from. A row becomes cells without anything in between.

/// What the cells of a column hold. Every one of them may be unknown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A number with places behind the point.
    Decimal,
    /// A whole number.
    Whole,
    /// Yes or no.
    Flag,
    /// One of few words.
    Word,
    /// A text of its own.
    Text,
}

/// A column: its name and what its cells hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Column {
    /// The name, as in the first row of the CSV file.
    pub(crate) name: &'static str,
    /// The type.
    pub(crate) kind: Kind,
}

/// The column that each way to put a cell makes: [`table!`] uses the one word for both.
macro_rules! columns_of {
    ($($cell:ident: $kind:ident),* $(,)?) => {
        impl Column {
            $(pub(crate) const fn $cell(name: &'static str) -> Self {
                Self { name, kind: Kind::$kind }
            })*
        }
    };
}

columns_of! {
    whole: Whole,
    signed: Whole,
    timestamp: Decimal,
    seconds: Decimal,
    milliseconds: Decimal,
    percent: Decimal,
    quotient: Decimal,
    rounded: Decimal,
    flag: Flag,
    word: Word,
    name: Word,
    text: Text,
}

/// Where the cells of a row go, from the first column to the last. `None`, and an empty text, is unknown.
pub(crate) trait Cells {
    /// A whole number.
    fn whole(&mut self, value: impl Into<Option<u64>>);

    /// A whole number of either sign.
    fn signed(&mut self, value: Option<i32>);

    /// `value` divided by ten to the power of `places`.
    fn decimal(&mut self, value: Option<u64>, places: u32);

    /// A number, rounded to six places.
    fn rounded(&mut self, value: Option<f64>);

    /// Yes or no.
    fn flag(&mut self, value: Option<bool>);

    /// A word of ours.
    fn word(&mut self, word: &str);

    /// A text from outside that many rows have.
    fn name(&mut self, text: &str);

    /// A text from outside.
    fn text(&mut self, text: &str);

    /// Nanoseconds since the session's start, as seconds. The start is the first thing that is known of the session;
    /// what a clock puts a hair before it is put on it.
    #[inline]
    fn timestamp(&mut self, nanoseconds: impl Into<Option<i64>>) {
        self.decimal(nanoseconds.into().map(|nanoseconds| u64::try_from(nanoseconds).unwrap_or(0)), 9);
    }

    /// Nanoseconds, as seconds.
    #[inline]
    fn seconds(&mut self, nanoseconds: impl Into<Option<u64>>) {
        self.decimal(nanoseconds.into(), 9);
    }

    /// Nanoseconds, as milliseconds.
    #[inline]
    fn milliseconds(&mut self, nanoseconds: impl Into<Option<u64>>) {
        self.decimal(nanoseconds.into(), 6);
    }

    /// The first of the two in percent of the second, with four places; unknown when there is no whole.
    #[inline]
    fn percent(&mut self, (part, whole): (u64, u64)) {
        self.quotient(Some((u128::from(part) * 1_000_000, u128::from(whole), 4)));
    }

    /// Dividend by divisor, rounded, divided by ten to the power of places; unknown when it cannot be said.
    #[inline]
    fn quotient(&mut self, of: Option<(u128, u128, u32)>) {
        let (dividend, divisor, places) = of.unwrap_or_default();
        let value = (dividend + divisor / 2).checked_div(divisor).and_then(|value| u64::try_from(value).ok());
        self.decimal(value, places);
    }
}

/// A table, described by [`table!`].
pub(crate) trait Table {
    /// What a row is made from.
    type Row<'a>;
    /// The name, without what says the format.
    const NAME: &'static str;
    /// The folder in the session's that it is in; empty = the session's own.
    const FOLDER: &'static str;
    /// The columns, in order.
    const COLUMNS: &'static [Column];
    /// Puts the cells of a row, in the order of the columns.
    fn cells(row: &Self::Row<'_>, cells: &mut impl Cells);
}

/// Describes a table: a name, what a row is made from, what is prepared once for a row, and for each column its name, its
/// type (a way to put a cell) and its value.
macro_rules! table {
    (
        $(#[$attribute:meta])*
        $table:ident = $name:literal $(in $folder:literal)?, of $row:ident: $of:ty
        $(, with { $($prepare:stmt;)* })?;
        $($column:ident: $cell:ident($value:expr)),* $(,)?
    ) => {
        $(#[$attribute])*
        pub(super) struct $table;

        impl $crate::cells::Table for $table {
            type Row<'a> = $of;
            const NAME: &'static str = $name;
            const FOLDER: &'static str = concat!($($folder)?);
            const COLUMNS: &'static [$crate::cells::Column] =
                &[$($crate::cells::Column::$cell(stringify!($column))),*];

            #[inline]
            fn cells($row: &Self::Row<'_>, cells: &mut impl $crate::cells::Cells) {
                $($($prepare)*)?
                $(cells.$cell($value);)*
            }
        }
    };
}
pub(crate) use table;
