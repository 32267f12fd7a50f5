//! Parquet and Arrow say what CSV says: every cell of every table of the golden sessions.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use arrow_array::cast::AsArray;
use arrow_array::types::{Float64Type, Int32Type, Int64Type};
use arrow_array::{Array, RecordBatch};
use arrow_schema::{DataType, SchemaRef};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use profilemate_output::tables::{self, Formats};
use profilemate_session::Session;

const BOTH: Formats = Formats { csv: true, parquet: true, html: false };

fn golden() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../session/tests/golden/v1");
    let mut sessions: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    sessions.retain(|path| path.join("raw").is_dir());
    sessions.sort();
    assert!(sessions.len() >= 5);
    sessions
}

/// The rows of a CSV file, by the rules of RFC 4180, without the apostrophe before what a spreadsheet would run.
fn csv(path: &Path) -> Vec<Vec<String>> {
    let text = fs::read_to_string(path).unwrap();
    let cells = |line: &str| {
        let (mut cells, mut cell, mut is_quoted) = (Vec::new(), String::new(), false);
        let mut letters = line.chars().peekable();
        while let Some(letter) = letters.next() {
            match letter {
                '"' if is_quoted && letters.peek() == Some(&'"') => cell.extend(letters.next()),
                '"' => is_quoted = !is_quoted,
                ',' if !is_quoted => cells.push(std::mem::take(&mut cell)),
                other => cell.push(other),
            }
        }
        cells.push(cell);
        cells
    };
    text.lines().map(|line| cells(line).into_iter().map(|cell| plain(&cell)).collect()).collect()
}

fn plain(cell: &str) -> String {
    let runs = |rest: &str| rest.starts_with(['=', '+', '-', '@', '＝', '＋', '－', '＠']);
    cell.strip_prefix('\'').filter(|rest| runs(rest)).unwrap_or(cell).to_owned()
}

/// Whether a cell of a column is what the text in CSV says; nothing is compared by its text but texts.
fn is_same(column: &dyn Array, row: usize, text: &str) -> bool {
    if text.is_empty() || column.is_null(row) {
        return text.is_empty() && column.is_null(row);
    }
    match column.data_type() {
        DataType::Float64 => {
            let said = text.parse::<f64>().unwrap();
            column.as_primitive::<Float64Type>().value(row).total_cmp(&said).is_eq()
        }
        DataType::Int64 => column.as_primitive::<Int64Type>().value(row) == text.parse::<i64>().unwrap(),
        DataType::Boolean => column.as_boolean().value(row) == text.to_ascii_lowercase().parse::<bool>().unwrap(),
        DataType::Utf8 => column.as_string::<i32>().value(row) == text,
        DataType::Dictionary(..) => {
            let words = column.as_dictionary::<Int32Type>();
            words.values().as_string::<i32>().value(words.key(row).unwrap()) == text
        }
        other => panic!("no column of ours has the type {other}"),
    }
}

fn assert_same(what: &str, schema: &SchemaRef, batches: &[RecordBatch], rows: &[Vec<String>]) {
    let names: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
    assert_eq!(names, rows[0], "{what}");
    let mut rows = rows[1..].iter();
    for batch in batches {
        assert_eq!(batch.schema(), *schema, "{what}");
        for at in 0..batch.num_rows() {
            let row = rows.next().unwrap_or_else(|| panic!("{what} has more rows than CSV"));
            assert_eq!(row.len(), names.len(), "{what}");
            for ((name, text), column) in names.iter().zip(row).zip(batch.columns()) {
                assert!(is_same(column, at, text), "{what}, {name}: {text:?} in CSV");
            }
        }
    }
    assert_eq!(rows.count(), 0, "{what} has fewer rows than CSV");
}

fn parquet(path: &Path) -> (SchemaRef, Vec<RecordBatch>) {
    let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(path).unwrap()).unwrap();
    let schema = reader.schema().clone();
    (schema, reader.build().unwrap().map(Result::unwrap).collect())
}

/// Where the files of a table are: those of the experts have a folder of their own.
fn place(folder: &Path, name: &str) -> PathBuf {
    if name.starts_with("moe_") { folder.join("moe_expert_tracking").join(name) } else { folder.join(name) }
}

/// The tables in a folder, by the names of the files of one format.
fn tables_in(folder: &Path, extension: &str) -> BTreeSet<String> {
    let experts = fs::read_dir(folder.join("moe_expert_tracking")).into_iter().flatten();
    fs::read_dir(folder)
        .unwrap()
        .chain(experts)
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|found| found == extension))
        .map(|path| path.file_stem().unwrap().to_string_lossy().into_owned())
        .collect()
}

#[test]
fn every_cell_of_every_golden_session_is_the_same_in_every_format() {
    let (mut seen, mut rows_seen, mut types_seen) = (BTreeSet::new(), 0, BTreeSet::new());
    for session in golden() {
        let folder = tempfile::tempdir().unwrap();
        let session = Session::open(&session).unwrap();
        tables::write_as(&session, folder.path(), BOTH).unwrap();
        let names = tables::names(&session);
        let found: BTreeSet<String> = names.iter().map(|name| (*name).to_owned()).collect();
        assert_eq!(tables_in(folder.path(), "csv"), found);
        assert_eq!(tables_in(folder.path(), "parquet"), found);
        let (_, in_memory) = tables::read(&session, &names).unwrap();
        assert_eq!(in_memory.len(), names.len());
        for (name, table) in in_memory {
            let rows = csv(&place(folder.path(), &format!("{name}.csv")));
            assert_same(&format!("{name} in memory"), &table.schema, &table.batches, &rows);
            assert_eq!(table.rows(), rows.len() - 1);
            let (schema, batches) = parquet(&place(folder.path(), &format!("{name}.parquet")));
            assert_eq!(schema.fields(), table.schema.fields(), "{name}");
            assert_same(&format!("{name}.parquet"), &schema, &batches, &rows);
            rows_seen += rows.len() - 1;
            types_seen.extend(schema.fields().iter().map(|field| field.data_type().to_string()));
            seen.insert(name);
        }
    }
    assert_eq!((seen.len(), types_seen.len()), (19, 5), "{seen:?} {types_seen:?}");
    assert!(rows_seen > 1000, "{rows_seen}");
}

#[test]
fn parquet_alone_leaves_csv_as_it_is_and_is_the_same_every_time() {
    let folder = tempfile::tempdir().unwrap();
    let session = Session::open(golden().first().unwrap()).unwrap();
    let parquet_alone = Formats { csv: false, parquet: true, html: false };
    fs::write(folder.path().join("batch_utilization.csv"), "old").unwrap();
    tables::write_as(&session, folder.path(), parquet_alone).unwrap();
    assert_eq!(fs::read_to_string(folder.path().join("batch_utilization.csv")).unwrap(), "old");
    assert_eq!(tables_in(folder.path(), "csv").len(), 1);
    assert!(folder.path().join("metadata.json").exists());
    let contents = || -> Vec<Vec<u8>> {
        tables_in(folder.path(), "parquet")
            .iter()
            .map(|name| fs::read(folder.path().join(format!("{name}.parquet"))).unwrap())
            .collect()
    };
    let first = contents();
    tables::write_as(&session, folder.path(), parquet_alone).unwrap();
    assert_eq!(contents(), first);
}

#[test]
fn a_table_that_nobody_asked_for_is_not_gathered() {
    let session = Session::open(golden().first().unwrap()).unwrap();
    let (answers, found) = tables::read(&session, &["batch_utilization", "no such table"]).unwrap();
    assert_eq!(found.into_keys().collect::<Vec<_>>(), ["batch_utilization"]);
    assert!(answers.batch.unwrap().total_samples > 0);
}
