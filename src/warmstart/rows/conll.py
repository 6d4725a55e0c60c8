"""CoNLL in: one token a line with its tag, sentences apart by blank lines."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator

from warmstart.errors import DataError, Where
from warmstart.rows.limits import Limits
from warmstart.rows.lines import Line, read_lines
from warmstart.rows.row import Row
from warmstart.rows.source import Note, Raw

_SPACE = re.compile("[ \t]+")
_TAG = re.compile(r"O|[BIOELUSM]-.+")
_DOCUMENT = "-DOCSTART-"


def read_conll(stream: io.BufferedReader, *, name: str, encoding: str | None, limits: Limits) -> Iterator[Raw]:
    """Rows of `tokens`, the first column, and `tags`, the last, one a sentence; what stands between is kept as
    `column_2`, `column_3`, … Without a second column there are no tags.

    Columns are separated by tabs if the line has one, otherwise by spaces. Passed over, which is said: -DOCSTART-
    lines, and lines before a sentence that begin with "# " and end in no tag, which are comments as in CoNLL-U.

    A sentence whose lines have unequal numbers of columns, or an empty token, is the error "conll-columns" at that
    line; one of more than `limits.max_line_bytes` is "line-too-long": is it a file without blank lines?
    """
    sentence = _Sentence(name, limits)
    told: set[str] = set()
    for line in read_lines(stream, name=name, encoding=encoding, limits=limits, blank=True):
        if isinstance(line, DataError):
            sentence.fault = sentence.fault or line
            continue
        text = line.text.rstrip("\r\n")
        if not text.strip(" \t"):
            yield from sentence.end()
            continue
        kind = _passed_over(text, first=not sentence.lines)
        if not kind:
            sentence.add(line, text)
        elif kind not in told:
            told.add(kind)
            yield Note(f"{name}:{line.number}: {kind} are passed over")
    yield from sentence.end()


def _passed_over(text: str, *, first: bool) -> str:
    """What kind of line this is, if it is none of a sentence."""
    if text.startswith(_DOCUMENT):
        return f"{_DOCUMENT} lines"
    if first and text.startswith("# ") and not _TAG.fullmatch(_columns(text)[-1]):
        return "lines that begin with '# ' and end in no tag"
    return ""


def _columns(text: str) -> list[str]:
    return text.split("\t") if "\t" in text else _SPACE.split(text.strip(" "))


class _Sentence:
    """The lines since the last blank one."""

    def __init__(self, name: str, limits: Limits) -> None:
        self.name, self.limits = name, limits
        self.row = 0
        self._reset()

    def _reset(self) -> None:
        self.lines: list[list[str]] = []
        self.first = 0
        self.size = 0
        self.fault: DataError | None = None

    def add(self, line: Line, text: str) -> None:
        columns = _columns(text)
        self.size += len(text)
        if not self.lines:
            self.first = line.number
        if self.size > self.limits.max_line_bytes:
            self.fault = self.fault or self._too_long()
            return
        if not columns[0].strip() or (self.lines and len(columns) != len(self.lines[0])):
            self.fault = self.fault or self._uneven(line, columns)
        self.lines.append(columns)

    def end(self) -> Iterator[Row | DataError]:
        """The sentence as a row or as its error; nothing between two blank lines."""
        if self.lines or self.fault:
            if self.fault:
                yield self.fault
            else:
                tokens, *others = (list(column) for column in zip(*self.lines, strict=True))
                fields = {"tokens": tokens} | {f"column_{i}": column for i, column in enumerate(others[:-1], start=2)}
                if others:
                    fields["tags"] = others[-1]
                yield Row(fields, Where(source=self.name, line=self.first, row=self.row))
            self.row += 1
        self._reset()

    def _uneven(self, line: Line, columns: list[str]) -> DataError:
        wanted = len(self.lines[0]) if self.lines else len(columns)
        what = f"the line has {len(columns)} columns, its sentence {wanted}"
        return DataError(
            "conll-columns",
            what if columns[0].strip() else "the line has no token",
            where=Where(source=self.name, line=line.number, row=self.row, offset=line.offset),
            value="\t".join(columns)[:200],
            fix="write a token and its tag on every line, and a blank line after each sentence",
        )

    def _too_long(self) -> DataError:
        return DataError(
            "line-too-long",
            f"the sentence is longer than {self.limits.max_line_bytes} bytes",
            where=Where(source=self.name, line=self.first, row=self.row),
            value=f"{len(self.lines)} lines",
            fix="put a blank line after each sentence; if that is so, raise Limits.max_line_bytes",
        )
