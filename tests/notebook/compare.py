"""Run with one library alone: whether it gets from every table of a session what the CSV file says.

python compare.py LIBRARY SESSION FOLDER_WITH_CSV
"""

from __future__ import annotations

import csv
import importlib.util
import sys
from pathlib import Path
from typing import Any

import profilemate

LIBRARIES = {"pandas", "polars", "pyarrow", "duckdb"}


def rows_of(library: str, the_table: profilemate.Table) -> list[list[Any]]:
    if library == "pandas":
        import pandas

        frame = the_table.to_pandas()
        return [
            [None if pandas.isna(cell) else cell for cell in row]
            for row in frame.astype(object).itertuples(index=False, name=None)
        ]
    if library == "polars":
        import polars

        return [list(row) for row in polars.DataFrame(the_table).iter_rows()]
    if library == "pyarrow":
        import pyarrow

        read = pyarrow.table(the_table)
        return [list(row.values()) for row in read.to_pylist()]
    import duckdb

    # DuckDB finds the table by the variable's name.
    return [list(row) for row in duckdb.sql("select * from the_table").fetchall()]


def says(cell: Any, text: str) -> bool:
    if cell is None or text == "":
        return cell is None and text == ""
    if isinstance(cell, float):
        return cell == float(text)
    runs = ("=", "+", "-", "@", "＝", "＋", "－", "＠")  # noqa: RUF001
    return str(cell) in (text, text[1:] if text[0] == "'" and text[1:].startswith(runs) else text)


def main(library: str, session_folder: str, folder: str) -> None:
    others = {other for other in LIBRARIES - {library} if importlib.util.find_spec(other)}
    assert not others, others
    session = profilemate.open_session(session_folder)
    tables = {path.stem for path in Path(folder).glob("*.csv")}
    assert set(session.tables) == tables, (session.tables, tables)
    cells = 0
    for name in session:
        table = session[name]
        with (Path(folder) / f"{name}.csv").open(newline="", encoding="utf-8") as file:
            columns, *wanted = csv.reader(file)
        found = rows_of(library, table)
        assert table.columns == columns
        assert len(found) == len(wanted) == len(table), name
        for row, texts in zip(found, wanted, strict=True):
            for column, cell, text in zip(columns, row, texts, strict=True):
                assert says(cell, text), (name, column, cell, text)
                cells += 1
    print(f"{len(tables)} tables, {cells} cells")


if __name__ == "__main__":
    main(*sys.argv[1:])
