"""Parquet, Arrow and Arrow tables in, a bounded batch at a time. pyarrow is imported where it is needed (0.2 s)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from warmstart.errors import DataError, Where
from warmstart.rows.binary import ARROW
from warmstart.rows.limits import Limits
from warmstart.rows.row import Row
from warmstart.rows.source import Raw

_ARROW_END = b"\xff\xff\xff\xff\x00\x00\x00\x00"  # what a writer that finished leaves at the end of a stream


def read_parquet(data: Path | bytes, *, name: str, limits: Limits) -> Iterator[Raw]:
    """The rows of a Parquet file in batches of about `limits.max_batch_bytes`.

    Raises `DataError` "parquet-damaged" for a file cut short or lying about itself, "decompression-bomb" when its
    metadata announces more than `limits.max_ratio` bytes out of each stored one.
    """
    file = _open_parquet(data, name, limits)
    widest = _repeatable(data, file.schema, name, limits)
    row = 0
    for group in range(file.metadata.num_row_groups):
        facts = file.metadata.row_group(group)
        size = max(facts.total_byte_size // max(facts.num_rows, 1), 1) + widest(group)
        rows = max(1, min(4096, limits.max_batch_bytes // size))
        found = 0
        batches = file.iter_batches(batch_size=rows, row_groups=[group], use_threads=False)
        for batch in _guarded(batches, "parquet-damaged", "the Parquet data is damaged", name):
            yield from batch_rows(batch, name=name, first=row + found)
            found += batch.num_rows
        if found != facts.num_rows:
            raise _damaged(
                "parquet-damaged",
                "the Parquet file holds fewer rows than it says",
                name,
                f"{found} of {facts.num_rows} in row group {group}",
            )
        row += found


def parquet_class_names(data: Path | bytes, *, name: str, limits: Limits) -> Mapping[str, tuple[str, ...]]:
    """Column -> class names, where the file was written by `datasets` with ClassLabel columns."""
    return class_names(_open_parquet(data, name, limits).schema_arrow)


def read_arrow(data: Path | bytes, *, name: str, limits: Limits) -> Iterator[Raw]:
    """The rows of an Arrow file or stream, batch by batch; what `datasets` keeps in its cache is a stream.

    Raises `DataError` "arrow-damaged" for a file cut short or inconsistent within.
    """
    row = 0
    with _arrow_input(data) as source:
        for batch in _guarded(_arrow_batches(source, name, limits), "arrow-damaged", "the Arrow data is damaged", name):
            yield from batch_rows(batch, name=name, first=row)
            row += batch.num_rows


def arrow_class_names(data: Path | bytes, *, name: str, limits: Limits) -> Mapping[str, tuple[str, ...]]:
    """Column -> class names, where the file was written by `datasets` with ClassLabel columns."""
    with _arrow_input(data) as source:
        reader = _guard(lambda: _arrow_reader(source, name), "arrow-damaged", "the Arrow data is damaged", name)
        _check_schema(reader.schema, name, limits)
        return class_names(reader.schema)


def batch_rows(batch: Any, *, name: str, first: int) -> Iterator[Raw]:
    """The rows of one record batch; a value that is not UTF-8 is an error of its row."""
    try:
        values = batch.to_pylist()
    except UnicodeDecodeError:
        values = None
    for index in range(batch.num_rows):
        where = Where(source=name, row=first + index)
        if values is not None:
            yield Row(values[index], where)
            continue
        try:
            yield Row(batch.slice(index, 1).to_pylist()[0], where)
        except UnicodeDecodeError as error:
            yield DataError(
                "encoding-invalid",
                "a string is not UTF-8",
                where=where,
                value=error.object[:40],
                fix="write the column as UTF-8, or skip bad rows: on_error='skip'",
            )


def table_batches(table: Any, limits: Limits) -> Iterator[Any]:
    """The record batches of a `pyarrow.Table`, each of about `limits.max_batch_bytes` when decoded."""
    widest = sum(max(map(_widest, column.chunks), default=0) for column in table.columns)
    size = max(1, table.nbytes // max(1, table.num_rows) + widest)
    yield from table.to_batches(max_chunksize=max(1, min(4096, limits.max_batch_bytes // size)))


def _repeatable(data: Path | bytes, schema: Any, name: str, limits: Limits) -> Callable[[int], int]:
    """Bytes that one more row of a row group may cost: a dictionary may hold one large value for every row to repeat.

    It is looked at as a dictionary, before reading the rows multiplies it.
    """
    leaves = [schema.column(index) for index in range(len(schema))]
    strings = [leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY"]
    folded = _open_parquet(data, name, limits, dictionaries=strings)

    def widest(group: int) -> int:
        if not strings:
            return 0
        batches = folded.iter_batches(batch_size=1, row_groups=[group], columns=strings, use_threads=False)
        first = next(_guarded(batches, "parquet-damaged", "the Parquet data is damaged", name), None)
        return 0 if first is None else sum(map(_widest, first.columns))

    return widest


def _widest(array: Any) -> int:
    """Bytes of the longest string in the dictionaries of an array, in each of its rows."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = array.type
    if pa.types.is_dictionary(kind):
        sized = kind.value_type in (pa.string(), pa.binary(), pa.large_string(), pa.large_binary())
        return pc.max(pc.binary_length(array.dictionary)).as_py() or 0 if sized else 0
    if pa.types.is_struct(kind):
        return sum(_widest(array.field(i)) for i in range(kind.num_fields))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _widest(array.values) * max(1, len(array.values) // max(1, len(array)))
    return 0


def class_names(schema: Any) -> Mapping[str, tuple[str, ...]]:
    """The columns of ClassLabels, or of lists of them, by the note that `datasets` leaves in a schema's metadata."""
    try:
        note = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = note["info"]["features"]
        kinds = {column: kind.get("feature", kind) for column, kind in features.items()}
        labels = {column: kind["names"] for column, kind in kinds.items() if kind.get("_type") == "ClassLabel"}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}  # a note of another form: the ids stay ids
    return {column: tuple(map(str, names)) for column, names in labels.items() if isinstance(names, list)}


def check_table(schema: Any, name: str, limits: Limits) -> None:
    """Raises as reading a file of this schema would: "column-duplicate", "schema-too-deep", "columns-too-many"."""
    _check_schema(schema, name, limits)


def _open_parquet(data: Path | bytes, name: str, limits: Limits, *, dictionaries: Sequence[str] = ()) -> Any:
    """The file, its metadata checked. Columns of `dictionaries` come as the dictionaries in which they are stored."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    source = pa.BufferReader(data) if isinstance(data, bytes) else str(data)
    # The caps are on what Thrift may allocate for the footer; the sizes below are checked before any page is read.
    file = _guard(
        lambda: pq.ParquetFile(
            source,
            read_dictionary=list(dictionaries),
            thrift_string_size_limit=limits.max_document_bytes,
            thrift_container_size_limit=10_000_000,
        ),
        "parquet-damaged",
        "this is not a whole Parquet file",
        name,
    )
    _check_schema(file.schema_arrow, name, limits)
    stored = len(data) if isinstance(data, bytes) else data.stat().st_size
    for group in range(file.metadata.num_row_groups):
        facts = file.metadata.row_group(group)
        size = facts.total_byte_size
        if facts.num_rows < 0 or size < 0:
            raise _damaged("parquet-damaged", "the Parquet file announces a negative size", name, f"row group {group}")
        if size > limits.ratio_floor_bytes and size > limits.max_ratio * stored:
            raise DataError(
                "decompression-bomb",
                f"the file announces more than {limits.max_ratio} bytes for each byte that it has",
                where=name,
                value=f"{size} bytes in row group {group}, {stored} in the file",
                fix="if the file is honest, rewrite it with smaller row groups, or raise Limits.max_ratio",
            )
    return file


def _arrow_input(data: Path | bytes) -> Any:
    import pyarrow as pa

    return pa.BufferReader(data) if isinstance(data, bytes) else pa.memory_map(str(data))


def _arrow_reader(source: Any, name: str) -> Any:
    import pyarrow as pa

    if source.read_at(len(ARROW), 0) == ARROW:
        return pa.ipc.open_file(source)
    size = source.size()
    if size < len(_ARROW_END) or source.read_at(len(_ARROW_END), size - len(_ARROW_END)) != _ARROW_END:
        raise _damaged("arrow-damaged", "the Arrow stream has no end mark: it was cut short, or is not Arrow", name)
    return pa.ipc.open_stream(source)


def _arrow_batches(source: Any, name: str, limits: Limits) -> Iterator[Any]:
    import pyarrow as pa

    reader = _arrow_reader(source, name)
    _check_schema(reader.schema, name, limits)
    batches = (
        (reader.get_batch(index) for index in range(reader.num_record_batches))
        if isinstance(reader, pa.ipc.RecordBatchFileReader)
        else reader
    )
    for batch in batches:
        batch.validate(full=True)  # offsets out of range would otherwise be followed
        yield from table_batches(batch_table(batch), limits)


def batch_table(batch: Any) -> Any:
    """A record batch as a table, without a copy."""
    import pyarrow as pa

    return pa.Table.from_batches([batch])


def _check_schema(schema: Any, name: str, limits: Limits) -> None:
    if len(schema.names) > limits.max_columns:
        raise DataError(
            "columns-too-many",
            f"there are more than {limits.max_columns} columns",
            where=name,
            value=len(schema.names),
            fix="select the columns that are needed",
        )
    if len(set(schema.names)) < len(schema.names):
        twice = next(column for column in schema.names if schema.names.count(column) > 1)
        raise DataError(
            "column-duplicate",
            "two columns have the same name",
            where=name,
            value=twice,
            fix="rename or drop one of them",
        )
    for column in schema:
        if _depth(column.type, limits.max_depth) > limits.max_depth:
            raise DataError(
                "schema-too-deep",
                f"a column's type is nested more than {limits.max_depth} deep",
                where=Where(source=name, field=column.name),
                fix="flatten the column",
            )


def _depth(kind: Any, limit: int) -> int:
    """How deep a type is nested; one more than `limit` where it is deeper still."""
    depth, level = 0, [kind]
    while level and depth <= limit:
        level = [inner.field(i).type for inner in level for i in range(inner.num_fields)]
        depth += 1
    return depth


def _guard(call: Callable[[], Any], code: str, what: str, name: str) -> Any:
    import pyarrow as pa

    try:
        return call()
    except DataError:
        raise
    # Arrow reports damage by its own tree, and by OSError, ValueError and MemoryError where it noticed late.
    except (pa.ArrowException, OSError, ValueError, MemoryError, OverflowError) as error:
        raise _damaged(code, what, name, str(error)[:200]) from None


def _guarded(items: Iterator[Any], code: str, what: str, name: str) -> Iterator[Any]:
    while (item := _guard(lambda: next(items, None), code, what, name)) is not None:
        yield item


def _damaged(code: str, what: str, name: str, value: str | None = None) -> DataError:
    return DataError(code, what, where=name, value=value, fix="copy or write the file again, and check its size")
