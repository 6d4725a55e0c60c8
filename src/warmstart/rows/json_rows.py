"""JSON in: strict where Python's parser is lenient, one row a line or one document."""

from __future__ import annotations

import io
import json
import math
import re
from collections import Counter
from collections.abc import Iterator

from warmstart.errors import DataError, Where
from warmstart.rows.binary import read_capped
from warmstart.rows.limits import Limits
from warmstart.rows.lines import Line, decoded, not_in_encoding, read_lines
from warmstart.rows.row import Row
from warmstart.rows.source import Note, Raw
from warmstart.rows.squad import is_squad, squad_rows

_SPACE = " \t\r\n"
# A string (also an unclosed one: the parser will say so) or a bracket. The possessive parts keep it linear.
_BRACKETS = re.compile(r'"(?:[^"\\]++|\\.)*+"?|[\[\]{}]', re.DOTALL)


class _RefusedError(ValueError):
    """Valid for Python's parser, not for us. `args` are the code, what is wrong, the value and the next step."""


def read_jsonl(stream: io.BufferedReader, *, name: str, encoding: str | None, limits: Limits) -> Iterator[Raw]:
    """One JSON object a line. Blank lines are passed over; every other line is a row or an error."""
    count = 0
    for line in read_lines(stream, name=name, encoding=encoding, limits=limits):
        if isinstance(line, DataError):
            yield line
        elif line.text.strip(_SPACE):
            yield parse_line(line, name=name, row=count, limits=limits)
        else:
            continue
        count += 1


def parse_line(line: Line, *, name: str, row: int, limits: Limits) -> Raw:
    """One line of JSONL as a row, or as the error that it is."""
    text = line.text.rstrip(_SPACE)  # an error at the line's end is then on this line
    try:
        _check_depth(text, limits.max_depth)
        value = _DECODER.decode(text)
    except ValueError as error:
        return _as_error(error, text, name=name, line=line.number, offset=line.offset)
    return _as_row(value, Where(source=name, line=line.number, row=row), offset=line.offset)


def read_document(stream: io.BufferedReader, *, name: str, encoding: str | None, limits: Limits) -> Iterator[Raw]:
    """The rows of one JSON document: an array of objects, or an object in which exactly one key holds such an array.

    Where these are SQuAD's articles, each question is a row.
    Raises `DataError` "json-too-large" above `limits.max_document_bytes`, since a document has to be read whole.
    """
    stream, encoding, offset = decoded(stream, name=name, encoding=encoding)
    data = read_capped(stream, limits.max_document_bytes)
    if len(data) > limits.max_document_bytes:
        raise DataError(
            "json-too-large",
            f"a JSON document is read whole, and this one is larger than {limits.max_document_bytes} bytes",
            where=name,
            fix="write it as JSONL, one object a line: jq -c '.[]' FILE > FILE.jsonl",
        )
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise not_in_encoding(
            data, error, name=name, line=1 + data.count(b"\n", 0, error.start), offset=offset
        ) from None
    if text.lstrip(_SPACE).startswith("{"):
        yield from _rows_of_object(text, name, limits)
    elif text.strip(_SPACE):
        yield from _rows_of_array(text, name, limits)


def is_jsonl(first_line: str) -> bool:
    """Whether a text whose first line this is holds one object a line: the line alone is a whole object."""
    try:
        return isinstance(json.loads(first_line), dict)
    except (ValueError, RecursionError):
        return False


def _rows_of_object(text: str, name: str, limits: Limits) -> Iterator[Raw]:
    try:
        _check_depth(text, limits.max_depth + 2)
        value = _DECODER.decode(text)
    except ValueError as error:
        raise _as_error(error, text, name=name, line=1, offset=0) from None
    tables = [key for key, rows in value.items() if isinstance(rows, list) and rows and isinstance(rows[0], dict)]
    if len(tables) != 1:
        raise DataError(
            "json-not-rows",
            "the document is one object, not an array of rows",
            where=name,
            value=list(value)[:20],
            fix="write an array of objects, or JSONL with one object a line",
        )
    if is_squad(value[tables[0]]):
        yield Note(f"{name!r} is read as SQuAD JSON, one row a question")
        yield from squad_rows(value[tables[0]], name=name, key=tables[0])
        return
    for row, item in enumerate(value[tables[0]]):
        yield _as_row(item, Where(source=name, field=tables[0], row=row), offset=None)


def _rows_of_array(text: str, name: str, limits: Limits) -> Iterator[Raw]:
    at, row, line, counted = _after_space(text, 0), 0, 1, 0
    try:
        _check_depth(text, limits.max_depth + 1)
        if not text.startswith("[", at):
            raise _RefusedError(
                "json-not-rows",
                "the document is neither an array nor an object",
                text[at : at + 40],
                "write an array of objects, or JSONL with one object a line",
            )
        at = _after_space(text, at + 1)
        while not text.startswith("]", at) or row:
            line, counted = line + text.count("\n", counted, at), at
            value, at = _DECODER.raw_decode(text, at)
            yield _as_row(value, Where(source=name, line=line, row=row), offset=None)
            row += 1
            at = _after_space(text, at)
            if text.startswith("]", at):
                break
            if not text.startswith(",", at):
                raise json.JSONDecodeError("Expecting ',' or ']'", text, at)
            at = _after_space(text, at + 1)
        if text[at + 1 :].strip(_SPACE):
            raise json.JSONDecodeError("Extra data", text, at + 1)
    except ValueError as error:
        first = line if isinstance(error, _RefusedError) else 1  # the parser counts from the start of the text
        raise _as_error(error, text, name=name, line=first, offset=0) from None


def _after_space(text: str, at: int) -> int:
    while at < len(text) and text[at] in _SPACE:
        at += 1
    return at


def _as_row(value: object, where: Where, *, offset: int | None) -> Raw:
    if isinstance(value, dict):
        return Row(value, where)
    place = Where(source=where.source, line=where.line, row=where.row, offset=offset)
    fix = 'write an object with named fields, such as {"text": "…", "label": "…"}'
    return DataError("row-not-object", "a row must be a JSON object", where=place, value=value, fix=fix)


def _as_error(error: ValueError, text: str, *, name: str, line: int, offset: int) -> DataError:
    value: object
    if isinstance(error, _RefusedError):
        code, what, value, fix = error.args
    elif isinstance(error, json.JSONDecodeError):
        code, what, fix = (
            "json-invalid",
            f"this is not JSON: {error.msg}",
            "correct the line, or skip bad rows: on_error='skip'",
        )
        value = text[max(0, error.pos - 20) : error.pos + 20]
        line += text.count("\n", 0, error.pos)
        offset += len(text[: error.pos].encode("utf-8", "surrogatepass"))
    else:  # int() refuses thousands of digits
        code, what, value, fix = "json-number", "a number is too long", str(error), "write it as a string"
    return DataError(code, what, where=Where(source=name, line=line, offset=offset), value=value, fix=fix)


def _check_depth(text: str, limit: int) -> None:
    if text.count("[") + text.count("{") <= limit:
        return
    depth = 0
    for token in _BRACKETS.finditer(text):
        if token[0] in "[{":
            depth += 1
            if depth > limit:
                raise _RefusedError(
                    "json-too-deep", f"values are nested more than {limit} deep", text[:40], "flatten the row"
                )
        elif token[0] in "]}":
            depth -= 1


def _no_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise _RefusedError("json-duplicate-key", "a key stands twice in one object", twice, "keep one of the two")
    return fields


def _no_constant(name: str) -> float:
    raise _RefusedError("json-number", "this is not a JSON number", name, "write null where there is no number")


def _finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise _RefusedError("json-number", "the number is too large for a float", digits, "write it as a string")
    return number


_DECODER = json.JSONDecoder(object_pairs_hook=_no_duplicates, parse_constant=_no_constant, parse_float=_finite)
