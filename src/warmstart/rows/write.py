"""`open_writer`: predictions out, beside the fields they were made from; a file appears whole or not at all."""

from __future__ import annotations

import contextlib
import fnmatch
import gzip
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal

from warmstart.durable import flush, let_go, make_held, remove_left
from warmstart.errors import UsageError, WarmstartError
from warmstart.rows.npy import NpySink
from warmstart.rows.paths import format_of
from warmstart.rows.sinks import CsvSink, JsonlSink, ParquetSink, Sink

Format = Literal["auto", "jsonl", "csv", "tsv", "parquet", "npy"]


class RowWriter:
    """Takes rows one by one. Use as a context manager: leaving it puts the file in its place, an exception removes it.

    `rows` counts what was written. Made by `open_writer`.
    """

    def __init__(
        self,
        sink: Sink,
        streams: list[IO[bytes]],
        *,
        part: Path | None,
        path: Path | None,
        columns: Mapping[str, str],
        lock: int | None = None,
    ) -> None:
        self.rows = 0
        self._sink = sink
        self._streams = streams  # innermost first: what the sink writes to, then what that writes to
        self._part = part
        self._lock = lock  # holds `part`
        self._path = path
        self._columns = columns
        self._open = True

    def write(self, prediction: Mapping[str, Any], row: Mapping[str, Any] | None = None) -> None:
        """Write one prediction, with the fields of its row before it if `row` is given.

        The row's fields go back to their original column names where the writer was given them. A prediction wins over
        a field of the same name, which is kept as `input_<name>`.

        Raises `DataError` "value-not-json", "write-new-column" (CSV, Parquet), "parquet-mixed-types", and
        `WarmstartError` "output-failed" where the disk does not take it.
        """
        with self._reported():
            self._sink.write(beside(prediction, row, self._columns) if row is not None else prediction)
            if self._path is None:
                self._streams[0].flush()  # who reads a pipe sees each row at once
        self.rows += 1

    def close(self) -> None:
        """Write what is held back, and put the file in its place: sync, rename, sync the folder."""
        if not self._open:
            return
        try:
            with self._reported():
                self._sink.finish()
                self._commit()
        finally:
            self.discard()

    def discard(self) -> None:
        """Remove what was written to a file; what went to standard output cannot be taken back."""
        if not self._open:
            return
        self._open = False
        if self._path is None:
            return
        self._sink.discard()
        for stream in self._streams:
            with contextlib.suppress(OSError, ValueError):
                stream.close()
        if self._part is not None:
            self._part.unlink(missing_ok=True)
        let_go(self._lock)

    def __enter__(self) -> RowWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()

    def _commit(self) -> None:
        for stream in self._streams[:-1]:
            stream.close()  # a gzip trailer
        self._streams[-1].flush()
        if self._part is None or self._path is None:
            return
        os.fsync(self._streams[-1].fileno())
        self._streams[-1].close()
        self._part.replace(self._path)
        flush(self._path.parent)

    @contextlib.contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            raise  # the reader of a pipe left: the command line ends quietly
        except OSError as error:
            raise _failed(self._path, error) from None


def open_writer(
    path: str | Path,
    *,
    format: Format = "auto",
    inputs: Iterable[str | Path] = (),
    columns: Mapping[str, str] | None = None,
    escape_formulas: bool = True,
) -> RowWriter:
    """A writer to a file, by its suffix `.jsonl .ndjson .csv .tsv .parquet` (but Parquet also `.gz`), or to "-",
    standard output, as JSONL unless `format` says otherwise.

    A file is written beside its place and renamed into it when all is on disk, so that the old one stays until then;
    a device or a pipe is written to directly. `inputs` are the paths or patterns that the rows come from: see
    `check_output`. `columns` is `RowStream.columns`, to give fields their original names back.

    Raises `UsageError` "format-unknown", "output-is-input", "output-in-input", "output-folder-missing",
    "output-is-folder"; `WarmstartError` "output-failed".

        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "out.jsonl"
        >>> with open_writer(path) as writer:
        ...     writer.write({"label": "positive"}, {"text": "good", "label": "pos"})
        >>> path.read_text()
        '{"text": "good", "input_label": "pos", "label": "positive"}\\n'
    """
    kind = _checked_format(path, format)
    back = dict(columns or {})
    if str(path) == "-":
        sys.stdout.flush()
        stream: IO[bytes] = sys.stdout.buffer
        return RowWriter(_sink(kind, stream, escape_formulas), [stream], part=None, path=None, columns=back)
    check_output(path, inputs)
    target = _checked_place(Path(path))
    # Beside its place, since a rename does not cross file systems. A device or a pipe is written to as it is.
    part, lock = None, None
    try:
        if target.is_file() or not target.exists():
            remove_left(target)
            part, lock = make_held(target, Path.touch)
        raw: IO[bytes] = (part or target).open("wb")
    except OSError as error:
        raise _failed(target, error) from None
    zipped = Path(path).suffix.lower() == ".gz"
    streams: list[Any] = [gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0), raw] if zipped else [raw]
    return RowWriter(_sink(kind, streams[0], escape_formulas), streams, part=part, path=target, columns=back, lock=lock)


def check_output(path: str | Path, inputs: Iterable[str | Path]) -> None:
    """Refuse to write over what is being read. `inputs` are files, folders or glob patterns; "-" is passed over.

    Raises `UsageError` "output-is-input" for the same file, by whatever name or link, and "output-in-input" for a file
    that an input folder or pattern would take in.
    """
    target = _resolved(Path(path))
    for given in inputs:
        if str(given) == "-":
            continue
        entry = Path(given).absolute()
        if _same_file(entry, target):
            raise UsageError(
                "output-is-input",
                "the output is the input: it would be gone before it was read",
                where=str(path),
                value=str(given),
                fix="write to another file",
            )
        inside = entry.is_dir() and _same_file(entry, target.parent)
        if inside or (not entry.exists() and _matches(target, _resolved_pattern(entry))):
            raise UsageError(
                "output-in-input",
                "the output lies where the input is read from: it would be read as rows",
                where=str(path),
                value=str(given),
                fix="write to another folder",
            )


def beside(prediction: Mapping[str, Any], row: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """A prediction after its row's fields; fields whose name it takes, or another of them has, as `input_<name>`."""
    merged: dict[str, Any] = {}
    for name, value in row.items():
        key = columns.get(name, name)
        while key in prediction or key in merged:
            key = f"input_{key}"
        merged[key] = value
    return {**merged, **prediction}


def _checked_format(path: str | Path, format: Format) -> str:
    if str(path) == "-":
        if format in ("parquet", "npy"):
            raise UsageError(
                "format-not-streamable", f"{format} cannot be written to a pipe", fix="give a file to write to"
            )
        return "jsonl" if format == "auto" else format
    by_name = "npy" if Path(path).suffix.lower() == ".npy" else format_of(Path(path))
    kind = by_name if format == "auto" else format
    zipped = Path(path).suffix.lower() == ".gz"
    if kind not in ("jsonl", "csv", "tsv", "parquet", "npy") or (zipped and kind in ("parquet", "npy")):
        raise UsageError(
            "format-unknown",
            "rows cannot be written in the format of this name",
            where=str(path),
            value=Path(path).suffix or Path(path).name,
            fix="end the name in .jsonl, .csv, .tsv (each also with .gz), .parquet, or .npy for embeddings",
        )
    return kind


def _checked_place(path: Path) -> Path:
    """The path through its symlinks, as writing to it would go."""
    target = _resolved(path)
    if target.is_dir():
        raise UsageError(
            "output-is-folder", "this is a folder", where=str(path), fix=f"name a file in it: {path}/out.jsonl"
        )
    if not target.parent.is_dir():
        raise UsageError(
            "output-folder-missing",
            "the folder to write to does not exist",
            where=str(target.parent),
            fix=f"create it: mkdir -p {target.parent}",
        )
    return target


def _resolved(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError, ValueError) as error:  # a symlink loop, a NUL in the name
        raise WarmstartError(
            "output-failed",
            "the output's path leads nowhere",
            where=str(path),
            value=str(error),
            fix="name a file in a folder that exists",
        ) from None


def _sink(kind: str, stream: IO[bytes], escape_formulas: bool) -> Sink:
    if kind == "jsonl":
        return JsonlSink(stream)
    if kind == "parquet":
        return ParquetSink(stream)
    if kind == "npy":
        return NpySink(stream)
    return CsvSink(stream, "\t" if kind == "tsv" else ",", escape_formulas=escape_formulas)


def _same_file(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False


def _matches(path: Path, pattern: str) -> bool:
    """As a shell's glob: * stays within a folder, ** does not."""
    return fnmatch.fnmatchcase(str(path), pattern) if "**" in pattern else path.match(pattern)


def _resolved_pattern(entry: Path) -> str:
    """The pattern with the symlinks of its plain leading folders resolved, as the output's are."""
    plain = [part for part in entry.parents if not any(mark in str(part) for mark in "*?[")]
    return str(plain[0].resolve() / entry.relative_to(plain[0])) if plain else str(entry)


def _failed(path: Path | None, error: OSError) -> WarmstartError:
    return WarmstartError(
        "output-failed",
        "the output could not be written",
        where=str(path or "stdout"),
        value=error.strerror or str(error),
        fix="check free space and permissions",
    )
