"""From a path, or standard input, to its rows: what the bytes are and which reader takes them."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from warmstart.errors import DataError, Where
from warmstart.rows.binary import ARROW, BUFFER, GZIP, PARQUET, gunzip, prepend, read_capped, refuse_foreign
from warmstart.rows.columnar import arrow_class_names, parquet_class_names, read_arrow, read_parquet
from warmstart.rows.columns import plain
from warmstart.rows.conll import read_conll
from warmstart.rows.delimited import read_delimited
from warmstart.rows.json_rows import is_jsonl, read_document, read_jsonl
from warmstart.rows.limits import Limits
from warmstart.rows.lines import decoded, read_lines
from warmstart.rows.paths import KNOWN_SUFFIXES, format_of, resolve
from warmstart.rows.quoting import guess_delimiter, split_line
from warmstart.rows.row import Row
from warmstart.rows.source import Fingerprint, Raw, Source, check_unchanged, unreadable

_SNIFFED = 65536  # bytes of a first line that are looked at to tell a format


@dataclass(frozen=True, slots=True)
class _Form:
    """How a byte stream holds rows. `encoding` is what was pinned, `field` the one that a line of plain text fills."""

    name: str
    kind: str  # jsonl, json, delimited, conll, text
    field: str
    encoding: str | None
    limits: Limits
    delimiter: str = ""


def file_source(path: Path, texts: Sequence[str], *, encoding: str | None, limits: Limits) -> Source:
    """The rows of the file that a path means. `texts` names the task's text fields: plain text fills the first.

    Raises `DataError` for what `paths.resolve` cannot find, "file-unreadable", "format-…" for a file that is not what
    its name says, and, when it is read, "file-changed" and all that the formats raise.
    """
    found, said = resolve(path, limits)
    name = str(found)
    kind = format_of(found)
    try:
        fingerprint = Fingerprint.of(found)
    except OSError as error:
        raise unreadable(name, error) from None
    with _opened(found, name) as stream:
        zipped = stream.peek(2).startswith(GZIP) or found.suffix.lower() == ".gz"
        stream = gunzip(stream, name, limits) if zipped else stream
        head = stream.peek(64)[:64]
        refuse_foreign(head, name)
        _check_suffix(kind, head, found, name)
        if kind in ("parquet", "arrow"):
            data = _whole(stream, name, limits) if zipped else found
            return _columnar_source(data, kind, found, fingerprint, said, limits)
        form, more = _form(stream, kind, name, texts[0] if texts else "text", encoding, limits)

    def rows() -> Iterator[Raw]:
        with _opened(found, name) as stream:
            yield from _parse(gunzip(stream, name, limits) if zipped else stream, form)

    return Source(name, lambda: _watched(rows, found, name, fingerprint), said=(*said, *more))


def stdin_source(known: Sequence[str], texts: Sequence[str], *, encoding: str | None, limits: Limits) -> Source:
    """The rows on standard input, their format told by the first line: JSONL, JSON, TSV, CSV or plain text.

    `known` are the column names one of which a header must have to be taken for CSV rather than for a line of text.
    Raises `DataError` "format-not-streamable" for Parquet and Arrow, which need a file.
    """
    name = "stdin"
    binary: Any = sys.stdin.buffer  # a BufferedReader, unless a program or a test has put something else there
    stream: io.BufferedReader = binary if isinstance(binary, io.BufferedReader) else io.BufferedReader(binary)
    if stream.peek(2).startswith(GZIP):
        stream = gunzip(stream, name, limits)
    head = stream.peek(64)[:64]
    refuse_foreign(head, name)
    if head.startswith((PARQUET, ARROW)):
        raise DataError(
            "format-not-streamable",
            "Parquet and Arrow cannot be read from a pipe",
            where=name,
            value=head[:8],
            fix="give the path of the file",
        )
    stream, encoding, _ = decoded(stream, name=name, encoding=encoding)
    first = stream.readline(_SNIFFED)
    stream = prepend(first, stream)
    kind, delimiter = _sniff(first.decode(encoding, "replace"), {plain(column) for column in known})
    form = _Form(name, kind, texts[0] if texts else "text", encoding, limits, delimiter)
    shown = {"text": "plain text, one row a line", "jsonl": "JSONL", "json": "one JSON document"}
    said = f"stdin is read as {shown.get(kind) or f'delimited by {delimiter!r}'}"
    return Source(name, lambda: _parse(stream, form), once=True, said=(said,))


def _columnar_source(
    data: Path | bytes, kind: str, path: Path, fingerprint: Fingerprint, said: tuple[str, ...], limits: Limits
) -> Source:
    name = str(path)
    read, names = (read_parquet, parquet_class_names) if kind == "parquet" else (read_arrow, arrow_class_names)
    return Source(
        name,
        lambda: _watched(lambda: read(data, name=name, limits=limits), path, name, fingerprint),
        class_names=names(data, name=name, limits=limits),
        said=said,
    )


def _form(
    stream: io.BufferedReader, kind: str, name: str, field: str, encoding: str | None, limits: Limits
) -> tuple[_Form, list[str]]:
    """How a file holds its rows, and what of it was guessed by its first line."""
    if kind == "tsv":
        return _Form(name, "delimited", field, encoding, limits, "\t"), []
    if kind in ("jsonl", "conll", "text"):
        return _Form(name, kind, field, encoding, limits), []
    text, codec, _ = decoded(stream, name=name, encoding=encoding)
    first = text.readline(limits.max_line_bytes if kind == "json" else _SNIFFED).decode(codec, "replace")
    if kind == "json":
        if is_jsonl(first) and text.read(1):
            return _Form(name, "jsonl", field, encoding, limits), [f"{name!r} is read as JSONL, one object a line"]
        return _Form(name, "json", field, encoding, limits), []
    delimiter = guess_delimiter(first)
    said = [] if delimiter == "," else [f"{name!r} is delimited by {delimiter!r}"]
    return _Form(name, "delimited", field, encoding, limits, delimiter), said


def _sniff(first: str, known: set[str]) -> tuple[str, str]:
    """(kind, delimiter) of a stream by its first line."""
    start = first.lstrip()
    if start.startswith("["):
        return "json", ""
    if start.startswith("{"):
        # An object that does not end on its line is a document; a line too long to see whole is taken for a row.
        return ("jsonl" if is_jsonl(first) or not first.endswith("\n") else "json"), ""
    for delimiter in "\t,;":
        columns = {plain(column) for column in split_line(first, delimiter)}
        if len(columns) > 1 and columns & known:
            return "delimited", delimiter
    # One column only has no delimiter to go by, but may quote as CSV does: it is read as the same file would be.
    return ("delimited", ",") if {plain(column) for column in split_line(first, ",")} <= known else ("text", "")


def _parse(stream: io.BufferedReader, form: _Form) -> Iterator[Raw]:
    name, encoding, limits = form.name, form.encoding, form.limits
    if form.kind == "jsonl":
        return read_jsonl(stream, name=name, encoding=encoding, limits=limits)
    if form.kind == "json":
        return read_document(stream, name=name, encoding=encoding, limits=limits)
    if form.kind == "delimited":
        return read_delimited(stream, name=name, delimiter=form.delimiter, encoding=encoding, limits=limits)
    if form.kind == "conll":
        return read_conll(stream, name=name, encoding=encoding, limits=limits)
    return _plain_text(stream, form)


def _plain_text(stream: io.BufferedReader, form: _Form) -> Iterator[Raw]:
    """Every line is a row, a blank one too: predictions then line up with lines."""
    lines = read_lines(stream, name=form.name, encoding=form.encoding, limits=form.limits, blank=True)
    for row, line in enumerate(lines):
        if isinstance(line, DataError):
            yield line
        else:
            text = line.text.removesuffix("\n").removesuffix("\r")
            yield Row({form.field: text}, Where(source=form.name, line=line.number, row=row))


def _watched(rows: Callable[[], Iterator[Raw]], path: Path, name: str, fingerprint: Fingerprint) -> Iterator[Raw]:
    """The rows, with the file's fingerprint checked before the first and after the last."""
    check_unchanged(path, name, fingerprint)
    try:
        for raw in rows():
            if isinstance(raw, DataError):
                check_unchanged(path, name, fingerprint)  # explains damage better than the damage does
            yield raw
    except DataError:
        check_unchanged(path, name, fingerprint)
        raise
    check_unchanged(path, name, fingerprint)


@contextmanager
def _opened(path: Path, name: str) -> Iterator[io.BufferedReader]:
    try:
        reader: io.BufferedReader = io.BufferedReader(io.FileIO(path), BUFFER)
        with reader:
            yield reader
    except OSError as error:
        raise unreadable(name, error) from None


def _whole(stream: io.BufferedReader, name: str, limits: Limits) -> bytes:
    data = read_capped(stream, limits.max_document_bytes)
    if len(data) > limits.max_document_bytes:
        raise DataError(
            "gzip-too-large",
            f"a gzipped columnar file is unpacked whole, and this has over {limits.max_document_bytes} bytes",
            where=name,
            fix="unpack it first: gzip -d FILE",
        )
    return data


def _check_suffix(kind: str, head: bytes, path: Path, name: str) -> None:
    if not kind:
        raise DataError(
            "format-unknown",
            "the file's suffix names no format that is read here",
            where=name,
            value=path.suffix or path.name,
            fix=f"rename it; read are {KNOWN_SUFFIXES}, each also with .gz; or pipe it in: - reads standard input",
        )
    true = "parquet" if head.startswith(PARQUET) else "arrow" if head.startswith(ARROW) else ""
    if true and true != kind:
        raise DataError(
            "format-mismatch",
            f"the file is {true}, its name says {kind}",
            where=name,
            value=head[:8],
            fix=f"rename it to end in .{true}",
        )
