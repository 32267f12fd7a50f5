"""A table as a pandas `DataFrame`, with nothing but pandas: it takes Arrow itself only where pyarrow is installed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._session import Table


def data_frame(table: Table) -> Any:
    """Types do not depend on what the cells hold: `float64`, `Int64`, `boolean`, `category`, and text as `object`."""
    import numpy
    import pandas

    columns: dict[str, Any] = {}
    for name, kind, values, missing, words in table._raw_columns():
        mask = None if missing is None else numpy.frombuffer(missing, dtype=bool).copy()
        if kind == "float64":
            columns[name] = numpy.frombuffer(values, dtype="float64").copy()
        elif kind == "int64":
            columns[name] = pandas.arrays.IntegerArray(numpy.frombuffer(values, dtype="int64").copy(), mask)
        elif kind == "bool":
            columns[name] = pandas.arrays.BooleanArray(numpy.frombuffer(values, dtype=bool).copy(), mask)
        elif kind == "words":
            codes = numpy.frombuffer(values, dtype="int32")
            columns[name] = pandas.Categorical.from_codes(codes, categories=pandas.Index(words, dtype=object))
        else:
            columns[name] = pandas.Series(values, dtype=object)
    return pandas.DataFrame(columns)
