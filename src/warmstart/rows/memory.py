"""Rows that are already in memory: lists, iterables, data frames, datasets, Arrow tables."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

from warmstart.errors import DataError, UsageError, Where
from warmstart.rows.columnar import batch_rows, check_table, class_names, table_batches
from warmstart.rows.limits import Limits
from warmstart.rows.row import Row
from warmstart.rows.source import Raw, Source

# A foreign object can only exist if its library is loaded: looking it up in sys.modules imports nothing.


def object_source(data: object, texts: Sequence[str], limits: Limits) -> Source:
    """The source for anything that is not a path. `texts` names the fields that a bare string or a pair fills.

    Raises `DataError` "data-not-rows" for an object that holds no rows, and says what to give instead.
    """
    for known in (_datasets_source, _pandas_source, _polars_source, _arrow_source):
        source = known(data, limits)
        if source is not None:
            return source
    if isinstance(data, Row | Mapping):
        raise _not_rows(
            data,
            "a mapping is one row, or a table of columns, not a collection of rows",
            "put it in a list: [row]; for a dict of columns: pandas.DataFrame(data)",
        )
    if isinstance(data, bytes | bytearray | memoryview) or not isinstance(data, Iterable):
        raise _not_rows(
            data,
            "this is neither a path nor a collection of rows",
            "give a path, a list of strings or dicts, a data frame or a dataset",
        )
    return Source(
        name=type(data).__name__,
        open=lambda: (item_row(item, index, texts) for index, item in enumerate(data)),
        once=isinstance(data, Iterator),
    )


def item_row(item: object, index: int, texts: Sequence[str]) -> Raw:
    """One item of a collection as a row: a string, a mapping, or a pair of strings."""
    where = Where(row=index)
    if isinstance(item, Row):
        return item if item.where != Where() else Row(item, where)
    if isinstance(item, Mapping):
        if all(isinstance(key, str) for key in item):
            return Row(item, where)
        return _bad_item(item, where, "a row's field names must be strings")
    if isinstance(item, str):
        return Row({texts[0]: str(item)}, where) if texts else _bad_item(item, where, "this task has no text field")
    if isinstance(item, tuple) and len(item) == 2 and all(isinstance(part, str) for part in item):
        if len(texts) > 1:
            return Row(dict(zip(texts, item, strict=False)), where)
        return _bad_item(item, where, "this task reads one text, not a pair")
    return _bad_item(item, where, "this is not a row")


def _bad_item(item: object, where: Where, what: str) -> DataError:
    fix = 'give a string, a dict such as {"text": "…"}, or for pairs a tuple (text, text_pair)'
    return DataError("row-not-object", what, where=where, value=item, fix=fix)


def _not_rows(data: object, what: str, fix: str) -> DataError:
    return DataError("data-not-rows", what, where=type(data).__name__, value=data, fix=fix)


def _loaded(name: str) -> ModuleType | None:
    return sys.modules.get(name)


def _datasets_source(data: object, limits: Limits) -> Source | None:
    if (datasets := _loaded("datasets")) is None:
        return None
    if isinstance(data, datasets.DatasetDict | datasets.IterableDatasetDict):
        raise UsageError(
            "split-not-chosen",
            "this holds several splits",
            value=sorted(data),
            fix=f"choose one: data[{min(data, default='train')!r}]",
        )
    if not isinstance(data, datasets.Dataset | datasets.IterableDataset):
        return None
    lists = (datasets.List, datasets.LargeList)
    kinds = {
        column: kind.feature if isinstance(kind, lists) else kind for column, kind in (data.features or {}).items()
    }
    names = {column: tuple(kind.names) for column, kind in kinds.items() if isinstance(kind, datasets.ClassLabel)}

    def rows() -> Iterator[Raw]:
        for index, example in enumerate(data):
            yield Row(example, Where(source="dataset", row=index))

    return Source(name="dataset", open=rows, class_names=names)


def _pandas_source(data: object, limits: Limits) -> Source | None:
    if (pandas := _loaded("pandas")) is None or not isinstance(data, pandas.DataFrame):
        return None
    frame: Any = data
    columns = _unique([str(column) for column in frame.columns], "pandas frame")

    def rows() -> Iterator[Raw]:
        for index, values in enumerate(frame.itertuples(index=False, name=None)):
            # pandas writes a missing value as NaN, NaT or NA; to us it is None.
            clean = (None if value is pandas.NA or value is pandas.NaT or _is_nan(value) else value for value in values)
            yield Row(dict(zip(columns, clean, strict=True)), Where(source="pandas frame", row=index))

    return Source(name="pandas frame", open=rows)


def _is_nan(value: object) -> bool:
    return isinstance(value, float) and value != value


def _polars_source(data: object, limits: Limits) -> Source | None:
    if (polars := _loaded("polars")) is None:
        return None
    if isinstance(data, polars.LazyFrame):
        raise _not_rows("LazyFrame", "a lazy frame has no rows yet", "collect it first: frame.collect()")
    if not isinstance(data, polars.DataFrame):
        return None
    frame: Any = data

    def rows() -> Iterator[Raw]:
        for index, values in enumerate(frame.iter_rows(named=True)):
            yield Row(values, Where(source="polars frame", row=index))

    return Source(name="polars frame", open=rows)


def _arrow_source(data: object, limits: Limits) -> Source | None:
    if (arrow := _loaded("pyarrow")) is None:
        return None
    if isinstance(data, arrow.RecordBatch):
        data = arrow.Table.from_batches([data])
    name = "Arrow table"
    if isinstance(data, arrow.Table):
        table: Any = data
        check_table(table.schema, name, limits)
        return Source(
            name, _batches_of(lambda: table_batches(table, limits), name), class_names=class_names(table.schema)
        )
    if isinstance(data, arrow.RecordBatchReader):
        reader: Any = data
        check_table(reader.schema, name, limits)
        return Source(name, _batches_of(lambda: iter(reader), name), once=True, class_names=class_names(reader.schema))
    return None


def _batches_of(batches: Callable[[], Iterator[Any]], name: str) -> Callable[[], Iterator[Raw]]:
    def rows() -> Iterator[Raw]:
        first = 0
        for batch in batches():
            yield from batch_rows(batch, name=name, first=first)
            first += batch.num_rows

    return rows


def _unique(columns: list[str], name: str) -> list[str]:
    if len(set(columns)) < len(columns):
        twice = next(column for column in columns if columns.count(column) > 1)
        raise DataError(
            "column-duplicate",
            "two columns have the same name",
            where=name,
            value=twice,
            fix="rename or drop one of them",
        )
    return columns
