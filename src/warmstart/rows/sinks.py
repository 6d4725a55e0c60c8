"""Rows out: one class a format, each taking dicts of fields and writing bytes."""

from __future__ import annotations

import contextlib
import datetime
import json
import logging
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import IO, Any, Protocol

from warmstart.errors import DataError
from warmstart.rows.targets import plain_value

_log = logging.getLogger("warmstart")
_ROWS = 4096  # of one Parquet row group
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")
_SURROGATE = re.compile("[\ud800-\udfff]")
_FORMULA = "=+-@\t\r\n＝＋－＠"


class Sink(Protocol):
    """What a format needs to be written."""

    def write(self, fields: Mapping[str, Any]) -> None:
        """Take one row."""

    def finish(self) -> None:
        """Write what is still held back. The stream stays open."""

    def discard(self) -> None:
        """Let go of the stream, which will be closed; what was written is not wanted."""


class JsonlSink:
    """One JSON object a line. NaN and infinities are refused, since they are not JSON."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream

    def write(self, fields: Mapping[str, Any]) -> None:
        try:
            line = json_text(fields).encode()
        except UnicodeEncodeError:  # a lone surrogate: \udXXX can stand in JSON, but not in UTF-8
            line = json_text(fields, ascii_only=True).encode()
        self._stream.write(line + b"\n")

    def finish(self) -> None:
        pass

    def discard(self) -> None:
        pass


class CsvSink:
    """CSV or TSV under a header of the first row's fields; lists and dicts as JSON text, None as nothing.

    A string that a spreadsheet would run as a formula (it begins with = + - @ or a control character, and is no plain
    number) is written with a ' before it, and counted in `escaped`: reading it back gives the '.
    """

    def __init__(self, stream: IO[bytes], delimiter: str, *, escape_formulas: bool) -> None:
        self.escaped = 0
        self._stream = stream
        self._delimiter = delimiter
        self._escape_formulas = escape_formulas
        self._special = re.compile(f'["\r\n{re.escape(delimiter)}]')
        self._columns: dict[str, None] = {}

    def write(self, fields: Mapping[str, Any]) -> None:
        if not self._columns:
            self._columns = dict.fromkeys(fields)
            self._line([self._cell(column) for column in self._columns])
        check_columns(fields, self._columns)
        self._line([self._cell(fields.get(column)) for column in self._columns])

    def finish(self) -> None:
        if self.escaped:
            _log.warning(
                "%d values that a spreadsheet would run as a formula were written with a ' before them", self.escaped
            )

    def discard(self) -> None:
        pass

    def _line(self, cells: list[str]) -> None:
        text = self._delimiter.join(cells) if cells != [""] else '""'  # a blank line would be no row
        self._stream.write(_SURROGATE.sub("\ufffd", text).encode() + b"\n")

    def _cell(self, value: object) -> str:
        value = plain_value(value)
        if isinstance(value, str):
            text = value
            if self._escape_formulas and text.startswith(tuple(_FORMULA)) and not _NUMBER.fullmatch(text):
                self.escaped += 1
                text = f"'{text}"
        elif value is None:
            text = ""
        else:
            text = json_text(value)
            text = json.loads(text) if text.startswith('"') else text  # a date, which JSON would quote
        return '"' + text.replace('"', '""') + '"' if self._special.search(text) else text


class ParquetSink:
    """Parquet, typed by the first rows; pyarrow's inference, with text for columns that are empty so far."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._held: list[Mapping[str, Any]] = []
        self._columns: dict[str, None] = {}
        self._schema: Any = None
        self._writer: Any = None

    def write(self, fields: Mapping[str, Any]) -> None:
        if self._schema is None:
            self._columns |= dict.fromkeys(fields)
        check_columns(fields, self._columns)
        self._held.append({name: _storable(value) for name, value in fields.items()})
        if len(self._held) >= _ROWS:
            self._flush()

    def finish(self) -> None:
        if self._held or self._writer is None:
            self._flush()
        self._writer.close()

    def discard(self) -> None:
        if self._writer is not None:  # or it would write a footer when it is collected
            with contextlib.suppress(Exception):
                self._writer.close()

    def _flush(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            if self._schema is None:
                self._schema = pa.schema([(name, _kind(pa, name, self._held)) for name in self._columns])
                self._writer = pq.ParquetWriter(self._stream, self._schema)
            columns = [_column(pa, [row.get(kind.name) for row in self._held], kind.type) for kind in self._schema]
            self._writer.write_table(pa.Table.from_arrays(columns, schema=self._schema))
        except (pa.ArrowException, OverflowError, ValueError, TypeError) as error:
            raise DataError(
                "parquet-mixed-types",
                "a Parquet column holds values of one type",
                value=str(error)[:200],
                fix="write JSONL, which holds any values: give a path that ends in .jsonl",
            ) from None
        self._held = []


def json_text(value: object, *, ascii_only: bool = False) -> str:
    """A value as JSON on one line; dates in ISO 8601, decimals as strings.

    Raises `DataError` "value-not-json" for NaN, infinities, bytes and other things that JSON has no form for.
    """
    try:
        return json.dumps(value, ensure_ascii=ascii_only, allow_nan=False, default=_as_json)
    except (TypeError, ValueError, RecursionError) as error:
        raise DataError(
            "value-not-json",
            "this value has no form in JSON",
            value=str(error)[:200],
            fix="leave the field out, or turn it into text or a number first",
        ) from None


def check_columns(fields: Mapping[str, Any], columns: Mapping[str, None]) -> None:
    """Raises `DataError` "write-new-column" for a field that the header, already written, does not have."""
    new = next((name for name in fields if name not in columns), None)
    if new is not None:
        raise DataError(
            "write-new-column",
            "a later row has a field that the first rows do not have",
            value=new,
            fix="write JSONL, where rows may differ: give a path that ends in .jsonl",
        )


def _as_json(value: object) -> object:
    plain = plain_value(value)
    if plain is not value:
        return plain
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, Decimal):
        return str(value)
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} is not JSON")


def _storable(value: object) -> object:
    value = plain_value(value)
    return _SURROGATE.sub("\ufffd", value) if isinstance(value, str) else value


def _kind(pa: Any, name: str, rows: list[Mapping[str, Any]]) -> Any:
    """The Arrow type of a column, by its values so far."""
    kind = pa.array([row.get(name) for row in rows]).type
    if pa.types.is_null(kind):
        return pa.string()
    return pa.list_(pa.string()) if pa.types.is_list(kind) and pa.types.is_null(kind.value_type) else kind


def _column(pa: Any, values: list[Any], kind: Any) -> Any:
    """Values as a column of a type settled before; a given type alone would make 0.5 an integer 0."""
    found = pa.array(values)
    empty = pa.types.is_null(found.type) or (pa.types.is_list(found.type) and pa.types.is_null(found.type.value_type))
    if empty:
        return pa.array(values, type=kind)
    if found.type != kind and not (pa.types.is_integer(found.type) and pa.types.is_floating(kind)):
        raise TypeError(f"the column is of type {kind}, a later value of type {found.type}")
    return found.cast(kind)
