"""CSV and TSV in: RFC 4180 with exact line numbers, no field size limit, and an error where a guess would be needed."""

from __future__ import annotations

import io
import re
from collections import Counter, deque
from collections.abc import Iterator

from warmstart.errors import DataError, Where
from warmstart.rows.limits import Limits
from warmstart.rows.lines import Line, read_lines
from warmstart.rows.quoting import feed
from warmstart.rows.row import Row
from warmstart.rows.source import Note, Raw
from warmstart.rows.tabbed import tab_records

_LONE_CR = re.compile(r"(?<=\r)(?!\n)")
_MAX_RECOVERIES = 16  # a quote that never closes is searched for to the end of the file: not once per line


def read_delimited(
    stream: io.BufferedReader, *, name: str, delimiter: str, encoding: str | None, limits: Limits
) -> Iterator[Raw]:
    """Rows of strings under the names of the header. Blank lines are passed over.

    A field that starts with a double quote ends at the next single one; "" within it is a quote. A record ends at \\n,
    \\r\\n or a lone \\r. A record with more or fewer fields than the header is an error of its row, as is a quote that
    is never closed: it is reported at the line that opened it, and reading goes on at the line after. With tabs quotes
    may be text: see `tab_records`.

    Raises `DataError` "csv-header" for a header that names a column twice or has too many.
    """
    lines = _physical(read_lines(stream, name=name, encoding=encoding, limits=limits))
    header: list[str] | None = None
    row = 0
    records = tab_records(lines, name, limits) if delimiter == "\t" else _records(lines, delimiter, name, limits)
    for item in records:
        if isinstance(item, Note):
            yield item
            continue
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
        parts = feed(line.text, delimiter, fields, None)
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
            before, parts = parts, feed(following.text, delimiter, fields, parts)
            opener = opener if parts is before else following
        else:
            yield (line, fields) if parts is None else _stray(held, parts, name)


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
