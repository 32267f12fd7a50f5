//! A table in Parquet that is being written: row group by row group, so that no more than one is in memory.

use std::path::PathBuf;

use arrow_array::RecordBatch;
use parquet::arrow::ArrowWriter;
use parquet::basic::Compression;
use parquet::errors::ParquetError;
use parquet::file::properties::{EnabledStatistics, WriterProperties, WriterVersion};
use parquet::schema::types::ColumnPath;

use crate::Error;
use crate::arrow::Columns;
use crate::cells::{Column, Kind, Table};
use crate::replace::NewFile;

/// What the name of a file ends with.
pub(crate) const EXTENSION: &str = "parquet";

/// Rows of a group. A few megabytes, as every table has a group in the making.
const GROUP_ROWS: usize = 1 << 17;

/// A table that is being written.
pub(crate) struct ParquetTable {
    path: PathBuf,
    columns: Columns,
    writer: ArrowWriter<NewFile>,
}

/// What every reader reads: the first version of pages, Snappy, and dictionaries where values come back.
fn properties(columns: &[Column]) -> WriterProperties {
    let mut properties = WriterProperties::builder()
        .set_writer_version(WriterVersion::PARQUET_1_0)
        .set_compression(Compression::SNAPPY)
        .set_max_row_group_row_count(Some(GROUP_ROWS))
        .set_statistics_enabled(EnabledStatistics::Chunk)
        .set_created_by(concat!("ProfileMate ", env!("CARGO_PKG_VERSION")).to_owned());
    for column in columns {
        // Times and ids hardly come back.
        if matches!(column.kind, Kind::Decimal | Kind::Text) {
            properties = properties.set_column_dictionary_enabled(ColumnPath::from(column.name), false);
        }
    }
    properties.build()
}

impl ParquetTable {
    /// Begins a table in a new file.
    pub(crate) fn new(file: NewFile, columns: &[Column]) -> Result<Self, Error> {
        let path = file.path().to_path_buf();
        let cells = Columns::new(columns);
        let writer = ArrowWriter::try_new(file, cells.schema(), Some(properties(columns)))
            .map_err(|error| failed(&path, error))?;
        Ok(Self { path, columns: cells, writer })
    }

    /// Writes a row.
    #[inline]
    pub(crate) fn row<T: Table>(&mut self, row: &T::Row<'_>) -> Result<(), Error> {
        if self.columns.row::<T>(row) { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), Error> {
        let batch: RecordBatch = self.columns.take().map_err(|error| failed(&self.path, error.into()))?;
        self.writer.write(&batch).map_err(|error| failed(&self.path, error))
    }

    /// Ends the table; the file still has its other name.
    pub(crate) fn into_file(mut self) -> Result<NewFile, Error> {
        if !self.columns.is_empty() {
            self.flush()?;
        }
        self.writer.into_inner().map_err(|error| failed(&self.path, error))
    }
}

/// What the system said, where it did.
fn failed(path: &std::path::Path, error: ParquetError) -> Error {
    let cause = match error {
        ParquetError::External(cause) => {
            cause.downcast::<std::io::Error>().map_or_else(std::io::Error::other, |cause| *cause)
        }
        other => std::io::Error::other(other),
    };
    Error::Write { path: path.to_path_buf(), cause }
}
