"""CSV and TSV in: RFC 4180 with exact line numbers, no field size limit, and an error where a guess would be needed."""

from __future__ import annotations

import io
import re
from collections import Counter, deque
from collections.abc import Iterator

from warmstart.errors import DataError, Where
from warmstart.rows.limits import Limits
from warmstart.rows.lines import Line, read_lines
from warmstart.rows.row import Row
from warmstart.rows.source import Raw

# Why not the csv module: its field size limit is one setting for the whole process, a stray quote swallows the rest of
# the file, and it does not say on which line a record starts.

_QUOTED = re.compile(r'[^"]*+(?:""[^"]*+)*+')
_LONE_CR = re.compile(r"(?<=\r)(?!\n)")
_MAX_RECOVERIES = 16  # a quote that never closes is searched for to the end of the file: not once per line


def read_delimited(
    stream: io.BufferedReader, *, name: str, delimiter: str, encoding: str | None, limits: Limits
) -> Iterator[Raw]:
    """Rows of strings under the names of the header. Blank lines are passed over.

    A field that starts with a double quote ends at the next single one; "" within it is a quote. A record ends at \\n,
    \\r\\n or a lone \\r. A record with more or fewer fields than the header is an error of its row, as is a quote that
    is never closed: it is reported at the line that opened it, and reading goes on at the line after.

    Raises `DataError` "csv-header" for a header that names a column twice or has too many.
    """
    lines = _physical(read_lines(stream, name=name, encoding=encoding, limits=limits))
    header: list[str] | None = None
    row = 0
    for item in _records(lines, delimiter, name, limits):
        if isinstance(item, DataError):
            if header is None:
                raise item  # without a header no row can be named
            yield item
        elif header is None:
            header = _checked_header(item[1], name, item[0].number, limits)
            continue
        elif len(item[1]) != len(header):
            yield _ragged(item[0], item[1], header, delimiter, name)
        else:
            yield Row(dict(zip(header, item[1], strict=True)), Where(source=name, line=item[0].number, row=row))
        row += 1


def guess_delimiter(header: str) -> str:
    """The delimiter of a .csv file by its first line: a comma, or what stands there in its place."""
    return "," if "," in header else max(",;\t|", key=header.count)


def split_line(text: str, delimiter: str) -> list[str]:
    """The fields of one line that holds a whole record, such as a header."""
    fields: list[str] = []
    _feed(text, delimiter, fields, None)
    return fields


def _records(
    source: Iterator[Line | DataError], delimiter: str, name: str, limits: Limits
) -> Iterator[tuple[Line, list[str]] | DataError]:
    again: deque[Line] = deque()  # lines to be read anew after a quote that was never closed
    recoveries = 0
    while (line := again.popleft() if again else next(source, None)) is not None:
        if isinstance(line, DataError):
            yield line
            continue
        if not line.text.strip("\r\n"):
            continue
        held, size, fields = [line], len(line.text), list[str]()
        opener = line
        parts = _feed(line.text, delimiter, fields, None)
        while isinstance(parts, list):
            following = again.popleft() if again else next(source, None)
            if isinstance(following, DataError):
                yield following  # the record goes with the line that could not be read
                break
            if following is None or (size := size + len(following.text)) > limits.max_line_bytes:
                recoveries += 1
                again.extendleft(reversed([*held[1:], following] if following else held[1:]))
                error = _unclosed(opener, name)
                if recoveries > _MAX_RECOVERIES:
                    raise error
                yield error
                break
            held.append(following)
            before, parts = parts, _feed(following.text, delimiter, fields, parts)
            opener = opener if parts is before else following
        else:
            yield (line, fields) if parts is None else _stray(held, parts, name)


def _feed(text: str, delimiter: str, fields: list[str], parts: list[str] | None) -> list[str] | int | None:
    """Append the fields of one line. None: the record is whole; a list: the pieces of a field still open; an int: the
    position of a character that may not follow a closing quote."""
    end = len(text) - 1 if text.endswith("\n") else len(text)
    if text.endswith("\r", 0, end):
        end -= 1
    at = 0
    while True:
        if parts is not None:
            quoted = _QUOTED.match(text, at)
            assert quoted is not None  # it matches the empty string
            parts.append(quoted[0].replace('""', '"'))
            if quoted.end() == len(text):
                return parts
            fields.append("".join(parts))
            parts, at = None, quoted.end() + 1
        elif text.startswith('"', at):
            parts, at = [], at + 1
            continue
        else:
            stop = text.find(delimiter, at)
            stop = end if stop < 0 else stop
            fields.append(text[at:stop])
            at = stop
        if at >= end:
            return None
        if not text.startswith(delimiter, at):
            return at
        at += 1


def _physical(lines: Iterator[Line | DataError]) -> Iterator[Line | DataError]:
    """Lines as an editor shows them: a lone \\r ends one too, as it ends a record."""
    extra = 0
    for line in lines:
        if isinstance(line, DataError):
            yield line
            continue
        pieces = _LONE_CR.split(line.text) if "\r" in line.text else [line.text]
        offset = line.offset
        for piece in filter(None, pieces):
            yield Line(line.number + extra, offset, piece)
            offset += len(piece.encode("utf-8", "surrogatepass"))
            extra += 1
        extra -= 1


def _checked_header(header: list[str], name: str, line: int, limits: Limits) -> list[str]:
    where = Where(source=name, line=line)
    if len(header) > limits.max_columns:
        raise DataError(
            "csv-header",
            f"the header has more than {limits.max_columns} columns",
            where=where,
            value=f"{len(header)} columns",
            fix="check that the first line is the header",
        )
    header = [column.strip() for column in header]
    twice = [column for column, count in Counter(header).items() if count > 1]
    if twice:
        raise DataError(
            "csv-header",
            "the header names a column twice",
            where=where,
            value=twice[0],
            fix="rename or remove one of the two columns; the first line must be the header",
        )
    return header


def _ragged(line: Line, fields: list[str], header: list[str], delimiter: str, name: str) -> DataError:
    return DataError(
        "csv-ragged",
        f"the record has {len(fields)} fields, the header {len(header)}",
        where=Where(source=name, line=line.number, offset=line.offset),
        value=delimiter.join(fields)[:200],
        fix=f'put fields that contain {delimiter!r} in double quotes, or skip bad rows: on_error="skip"',
    )


def _unclosed(line: Line, name: str) -> DataError:
    return DataError(
        "csv-unclosed-quote",
        "a quoted field starts on this line and is never closed",
        where=Where(source=name, line=line.number, offset=line.offset),
        value=line.text[:80],
        fix='close the quote; a quote that is text is written twice in a quoted field: "say ""hi"""',
    )


def _stray(held: list[Line], at: int, name: str) -> DataError:
    line = held[-1]
    return DataError(
        "csv-stray-quote",
        "a quoted field is closed, and text follows instead of the next field",
        where=Where(source=name, line=held[0].number, offset=line.offset + len(line.text[:at].encode())),
        value=line.text[max(0, at - 20) : at + 20],
        fix='a quote that is text is written twice in a quoted field: "say ""hi"""',
    )
