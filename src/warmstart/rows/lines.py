"""Lines of text with their place: only \\n ends a line, whatever else Unicode calls a separator."""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterator
from typing import NamedTuple

from warmstart.errors import DataError, UsageError, Where
from warmstart.rows.binary import recode
from warmstart.rows.limits import Limits

# The longer marks first: UTF-32's begins with UTF-16's.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


class Line(NamedTuple):
    """`text` keeps its line end; `number` counts from 1, `offset` in (decompressed) bytes from 0."""

    number: int
    offset: int
    text: str


def read_lines(
    stream: io.BufferedReader, *, name: str, encoding: str | None, limits: Limits, blank: bool = False
) -> Iterator[Line | DataError]:
    """The lines of a byte stream; a line that is too long or not in the encoding comes as its error.

    UTF-8, or by its byte order mark UTF-16 or UTF-32, or the pinned `encoding`. A lone \\r, U+2028 and NUL are text.
    An over-long line is passed over in bounded memory. Runs of empty lines are counted but, without `blank`, not given.
    """
    stream, encoding, offset = decoded(stream, name=name, encoding=encoding)
    number = 0
    while data := stream.readline(limits.max_line_bytes + 1):
        number += 1
        start, offset = offset, offset + len(data)
        if data == b"\n" and not blank:
            run = _skip_empty(stream)
            number, offset = number + run, offset + run
            continue
        if len(data) > limits.max_line_bytes and not data.endswith(b"\n"):
            offset += _skip_line(stream)
            yield _too_long(name, number, start, offset - start, limits)
            continue
        try:
            line = Line(number, start, data.decode(encoding))
        except UnicodeDecodeError as error:
            yield not_in_encoding(data, error, name=name, line=number, offset=start)
            continue
        yield line


def decoded(stream: io.BufferedReader, *, name: str, encoding: str | None) -> tuple[io.BufferedReader, str, int]:
    """(stream, encoding, offset): the stream after its mark, in an encoding whose \\n is the byte \\n.

    Raises `UsageError` "encoding-unknown" for a pinned name that no codec has.
    """
    head = stream.peek(4)
    mark, marked = next(((mark, kind) for mark, kind in _MARKS if head.startswith(mark)), (b"", None))
    # A pinned "utf-16" or "utf-8-sig" reads its own mark; "utf-16-le" and "utf-8" would keep it as a character.
    if encoding is not None and _codec(encoding) != marked:
        mark = b""
    chosen = encoding or marked or "utf-8"
    if chosen == "utf-8":
        _check_no_wide_text(head[:256], name)
    stream.read(len(mark))
    if "\n".encode(chosen) != b"\n":
        return recode(stream, chosen, name, start=len(mark)), "utf-8", len(mark)
    return stream, chosen, len(mark)


def not_in_encoding(data: bytes, error: UnicodeDecodeError, *, name: str, line: int, offset: int) -> DataError:
    """The error of a line whose bytes are not in its encoding, at the offending byte."""
    return DataError(
        "encoding-invalid",
        f"these bytes are not {error.encoding}",
        where=Where(source=name, line=line, offset=offset + error.start),
        value=data[max(0, error.start - 8) : error.start + 8],
        fix="save the file as UTF-8, or pin the encoding it is in, perhaps: encoding='cp1252'",
    )


def _check_no_wide_text(head: bytes, name: str) -> None:
    # Latin text in UTF-16 is valid UTF-8 with a NUL at every other byte: it would pass, and be read as garbage.
    if head.count(0) * 3 <= len(head):
        return
    likely = "utf-16-le" if head[1:2] == b"\0" else "utf-16-be"
    raise DataError(
        "encoding-invalid",
        "this looks like UTF-16 without a byte order mark",
        where=Where(source=name, line=1, offset=head.index(0)),
        value=head[:8],
        fix=f"pin the encoding: encoding='{likely}', or save the file as UTF-8",
    )


def _codec(encoding: str) -> str:
    """The codec's one name; raises where there is none, or none for text."""
    try:
        "\n".encode(encoding)
        return codecs.lookup(encoding).name
    except LookupError:
        raise UsageError(
            "encoding-unknown",
            "no such text encoding",
            value=encoding,
            fix="use a name such as 'utf-8', 'utf-16', 'latin-1', 'cp1252', 'shift_jis' or 'gb18030'",
        ) from None


def _skip_line(stream: io.BufferedReader) -> int:
    skipped = 0
    while held := stream.peek(1):
        end = held.find(b"\n")
        skipped += len(stream.read(len(held) if end < 0 else end + 1))
        if end >= 0:
            break
    return skipped


def _skip_empty(stream: io.BufferedReader) -> int:
    """Pass over line feeds. A small gzip can hold millions of them: one by one they would take minutes."""
    skipped = 0
    while held := stream.peek(1):
        run = len(held) - len(held.lstrip(b"\n"))
        stream.read(run)
        skipped += run
        if run < len(held):
            break
    return skipped


def _too_long(name: str, line: int, offset: int, length: int, limits: Limits) -> DataError:
    return DataError(
        "line-too-long",
        f"the line is longer than {limits.max_line_bytes} bytes",
        where=Where(source=name, line=line, offset=offset),
        value=f"{length} bytes",
        fix="check that rows end with a line feed; if they do, raise Limits.max_line_bytes",
    )
