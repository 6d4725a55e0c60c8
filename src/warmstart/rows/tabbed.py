"""Records of tab-separated files, where a quote may be text or may be quoting, and no rule says which."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from warmstart.errors import DataError
from warmstart.rows.limits import Limits
from warmstart.rows.lines import Line
from warmstart.rows.quoting import closing, feed
from warmstart.rows.source import Note

_LINES = 200  # of one quoted field: it is looked for again from every line that opens one


def tab_records(
    source: Iterator[Line | DataError], name: str, limits: Limits
) -> Iterator[tuple[Line, list[str]] | DataError | Note]:
    """The records of a TSV: first line and fields.

    By IANA's definition TSV has no quoting; spreadsheets and data frames quote as in CSV; and people write messages
    that begin with a quote. So quoting counts where it works out: the quote closes right before a tab or the line's
    end, the record has the header's number of fields, and the quote does not run over a line that is a whole record by
    itself. Anywhere else quotes are text, which is said once.
    """
    again: deque[Line | DataError] = deque()
    width = 0
    told = False
    while (line := again.popleft() if again else next(source, None)) is not None:
        if isinstance(line, DataError):
            yield line
            continue
        if not line.text.strip("\r\n"):
            continue
        fields = None
        if '"' in line.text:
            fields = _quoted(line, source, again, width, limits)
            if fields is None and not told:
                told = True
                yield Note(f"{name}:{line.number}: a quote that does not enclose a field is read as text")
        if fields is None:
            fields = _end(line.text).split("\t")
        width = width or len(fields)
        yield line, fields


def _quoted(
    line: Line, source: Iterator[Line | DataError], again: deque[Line | DataError], width: int, limits: Limits
) -> list[str] | None:
    """The fields if quoting works out. If not, None, and every line that was looked at is back in `again`."""
    fields: list[str] = []
    parts = feed(line.text, "\t", fields, None)
    ahead: list[Line | DataError] = []
    size = len(line.text)
    while isinstance(parts, list) and width > 1 and len(ahead) < _LINES:
        following = again.popleft() if again else next(source, None)
        if following is None:
            break
        ahead.append(following)
        if isinstance(following, DataError) or _is_record(following.text, width):
            break
        size += len(following.text)
        if size > limits.max_line_bytes:
            break
        parts = feed(following.text, "\t", fields, parts)
    if parts is None and width in (0, len(fields)):
        return fields
    again.extendleft(reversed(ahead))
    return None


def _is_record(text: str, width: int) -> bool:
    """Whether a line on which a quote is open is a whole record by itself: the quote would run over one of its tabs."""
    return text.count("\t") + 1 == width and "\t" in text[: closing(text)]


def _end(text: str) -> str:
    return text.removesuffix("\n").removesuffix("\r")
