"""`read` and `texts`: anything that holds rows, as rows with the names a task knows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Literal

from warmstart.errors import DataError, UsageError
from warmstart.rows.columns import check_pins
from warmstart.rows.files import file_source, stdin_source
from warmstart.rows.limits import DEFAULT_LIMITS, Limits
from warmstart.rows.memory import object_source
from warmstart.rows.row import Field, Row
from warmstart.rows.source import Raw
from warmstart.rows.stream import RowStream


def read(
    data: object,
    *,
    fields: tuple[Field, ...],
    columns: Mapping[str, str] | None = None,
    targets: bool = False,
    on_error: Literal["fail", "skip"] = "fail",
    encoding: str | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> RowStream:
    """The rows of `data`, with the field names of a task.

    Args:
        data: a path (`.jsonl .ndjson .json .csv .tsv .conll .parquet .arrow .feather .txt`, each also `.gz`; "-" is
            standard input), a `datasets.Dataset`, a pandas or polars frame, a `pyarrow.Table`, or an iterable of
            strings, dicts, `Row`s and (text, text_pair) tuples. A string is always a path here.
        fields: what the task reads; their aliases are the column names recognised without a pin.
        columns: field -> column, for what is not to be guessed.
        targets: whether the target fields are needed too: yes to train and to evaluate. Without, they are not matched.
        on_error: raise at the first bad row, or pass it over, counted in `RowStream.skipped`.
        encoding: of a text file that is neither UTF-8 nor has a byte order mark.
        limits: what is too large; see `Limits`.

    A row keeps its other columns untouched. A column whose name a field has taken is kept as `input_<name>`. Values
    are those of the format: strings in CSV. Integer ids of a `datasets` ClassLabel become their names.

    Raises `UsageError` "field-unknown", "encoding-unknown" or "on-error-unknown"; `DataError` at once for what cannot
    be opened or lacks a column, and while iterating for what is found on the way.

        >>> from warmstart.rows import Field, read
        >>> stream = read([{"review": "good"}], fields=(Field("text", ("review",)),))
        >>> list(stream), stream.columns
        ([{'text': 'good'}], {'text': 'review'})
    """
    if on_error not in ("fail", "skip"):
        raise UsageError("on-error-unknown", "on_error is 'fail' or 'skip'", value=on_error, fix="give one of the two")
    pins = dict(columns or {})
    check_pins(fields, pins)
    inputs = [field for field in fields if not field.target]
    names = [field.name for field in inputs]
    if isinstance(data, str | Path) and str(data) == "-":
        known = [name for field in inputs for name in (field.name, *field.aliases)] + list(pins.values())
        source = stdin_source(known, names, encoding=encoding, limits=limits)
    elif isinstance(data, str | Path):
        source = file_source(Path(data), names, encoding=encoding, limits=limits)
    elif encoding is not None:
        raise UsageError(
            "encoding-unused", "an encoding is for files; this is in memory", value=encoding, fix="leave encoding out"
        )
    else:
        source = object_source(data, names, limits)
    return RowStream(source, fields=fields, pins=pins, targets=targets, skip=on_error == "skip", limits=limits)


def texts(data: object, *, names: tuple[str, ...] = ("text", "text_pair")) -> Iterator[Row]:
    """The rows of a call such as `pipe(...)`, where a string is a text and not a path.

    `data` is one item or an iterable of items; an item is a string, a dict of fields, a `Row`, or a (text, text_pair)
    tuple. `names` are the fields that a bare string and a pair fill. Lazy: an iterator is read as rows are taken.

    Raises `DataError` "row-not-object" for an item of another kind, with its position, and "data-not-rows" where
    `data` is none.

        >>> from warmstart.rows import texts
        >>> list(texts(["a", ("b", "c")]))
        [{'text': 'a'}, {'text': 'b', 'text_pair': 'c'}]
    """
    if isinstance(data, str | Mapping) or _is_pair(data):
        data = [data]
    return _items(object_source(data, names, DEFAULT_LIMITS).open())


def _is_pair(data: object) -> bool:
    return isinstance(data, tuple) and len(data) == 2 and all(isinstance(part, str) for part in data)


def _items(rows: Iterable[Raw]) -> Iterator[Row]:
    for row in rows:
        if isinstance(row, DataError):
            raise row
        if isinstance(row, Row):
            yield row
