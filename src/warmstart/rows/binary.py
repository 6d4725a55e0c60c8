"""Bytes in: what a file really is by its first bytes, gzip with a cap, and re-coding to UTF-8 as it is read."""

from __future__ import annotations

import codecs
import io
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from warmstart.errors import DataError, Where
from warmstart.rows.limits import Limits

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

BUFFER = 1 << 18  # bytes of a file read at once
GZIP = b"\x1f\x8b"
PARQUET = b"PAR1"
ARROW = b"ARROW1"

_FOREIGN = (
    (
        b"\x28\xb5\x2f\xfd",
        "format-zstd",
        "a zstandard file, which nothing here reads",
        "decompress it first: zstd -d FILE",
    ),
    (b"\xfd7zXZ\x00", "format-xz", "an xz file, which nothing here reads", "decompress it first: xz -d FILE"),
    (b"BZh", "format-bzip2", "a bzip2 file, which nothing here reads", "decompress it first: bzip2 -d FILE"),
    (
        b"PK\x03\x04",
        "format-zip",
        "a zip archive (an .xlsx workbook is one too)",
        "unpack it, or save the sheet as CSV",
    ),
    (b"\xd0\xcf\x11\xe0", "format-xls", "an old Excel workbook", "save the sheet as CSV"),
    (b"%PDF", "format-pdf", "a PDF", "extract its text to a file of plain lines"),
    (b"\x80\x04\x95", "format-pickle", "a pickle, which could run code when read", "save the rows as JSONL or Parquet"),
    (b"\x80\x05\x95", "format-pickle", "a pickle, which could run code when read", "save the rows as JSONL or Parquet"),
    (b"SQLite format 3", "format-sqlite", "an SQLite database", "export the table as CSV"),
    (b"version https://git-lfs", "format-lfs-pointer", "a Git-LFS pointer, not the data itself", "run: git lfs pull"),
)


class Pulled(io.RawIOBase):
    """A raw byte stream over an iterator of chunks."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._left = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        while not self._left:
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._left = memoryview(chunk)
        target = memoryview(buffer).cast("B")
        count = min(len(target), len(self._left))
        target[:count] = self._left[:count]
        self._left = self._left[count:]
        return count


def pulled(chunks: Iterator[bytes]) -> io.BufferedReader:
    return io.BufferedReader(Pulled(chunks), BUFFER)


def prepend(head: bytes, stream: io.BufferedReader) -> io.BufferedReader:
    """The stream with bytes that were already taken from it put back in front."""

    def chunks() -> Iterator[bytes]:
        yield head
        while chunk := stream.read1(65536):  # read1: hand on what a pipe has, without waiting for more
            yield chunk

    return pulled(chunks())


def read_capped(stream: io.BufferedReader, limit: int) -> bytes:
    """All bytes of a stream, or somewhat more than `limit` of them. `read(limit)` would allocate the limit at once."""
    data = bytearray()
    while len(data) <= limit and (chunk := stream.read(BUFFER)):
        data += chunk
    return bytes(data)


def refuse_foreign(head: bytes, name: str) -> None:
    """Raises `DataError` "format-…" for bytes that are certainly no rows: archives, pickles, web pages."""
    for magic, code, what, fix in _FOREIGN:
        if head.startswith(magic):
            raise DataError(code, f"this is {what}", where=name, value=head[:8], fix=fix)
    if head.lstrip()[:14].lower().startswith((b"<!doctype html", b"<html")):
        raise DataError(
            "format-html",
            "this is a web page, not data: perhaps an error page saved in place of a download",
            where=name,
            value=head[:40],
            fix="download the file again, and look at it before reading it",
        )


def gunzip(stream: io.BufferedReader, name: str, limits: Limits) -> io.BufferedReader:
    """The decompressed bytes of one or several gzip members, in bounded memory.

    Reading raises `DataError` "gzip-truncated", "gzip-damaged", or "decompression-bomb" once more than
    `limits.max_ratio` bytes came out for each byte that went in.
    """
    return pulled(_gunzipped(stream, name, limits))


def _gunzipped(stream: io.BufferedReader, name: str, limits: Limits) -> Iterator[bytes]:
    taken = given = members = 0
    decoder = zlib.decompressobj(wbits=31)
    inside = False  # a member: the stream may end only between two
    data = b""
    while True:
        if not data:
            data = stream.read1(65536)
            taken += len(data)
        if members and not inside:
            data = data.lstrip(b"\0") if data else data  # zeros may pad a member
            if not data and stream.peek(1):
                continue
        if not data and not inside:
            break
        chunk = _inflate(decoder, data, name)  # also without data: what the decoder still holds back
        if not data and not chunk and not decoder.eof:
            break
        inside = True
        given += len(chunk)
        if given > limits.ratio_floor_bytes and given > limits.max_ratio * (taken - len(decoder.unconsumed_tail)):
            raise DataError(
                "decompression-bomb",
                f"more than {limits.max_ratio} bytes come out of each compressed byte",
                where=name,
                value=f"{given} bytes from {taken}",
                fix="if the file is honest, decompress it yourself and read the result, or raise Limits.max_ratio",
            )
        if chunk:
            yield chunk
        data = decoder.unconsumed_tail
        if decoder.eof:
            data, decoder, inside, members = decoder.unused_data, zlib.decompressobj(wbits=31), False, members + 1
    if inside or not members:
        raise DataError(
            "gzip-truncated",
            "the gzip file ends in the middle",
            where=name,
            value=f"{taken} bytes read",
            fix="copy or download the file again; test it with: gzip -t FILE",
        )


def _inflate(decoder: zlib._Decompress, data: bytes, name: str) -> bytes:
    try:
        return decoder.decompress(data, 1 << 20)
    except zlib.error as error:
        raise DataError(
            "gzip-damaged",
            "the gzip data is damaged",
            where=name,
            value=str(error),
            fix="copy or download the file again; test it with: gzip -t FILE",
        ) from None


def recode(stream: io.BufferedReader, encoding: str, name: str, *, start: int = 0) -> io.BufferedReader:
    """The stream as UTF-8. Reading raises `DataError` "encoding-invalid" at bytes that the encoding does not know.

    `start` is the stream's position in its file, in bytes.
    """
    return pulled(_recoded(stream, encoding, name, start))


def _recoded(stream: io.BufferedReader, encoding: str, name: str, offset: int) -> Iterator[bytes]:
    decoder = codecs.getincrementaldecoder(encoding)()
    line = 1
    while True:
        data = stream.read1(65536)
        held = len(decoder.getstate()[0])
        try:
            text = decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            line += error.object[: error.start].decode(encoding, "replace").count("\n")
            raise DataError(
                "encoding-invalid",
                f"these bytes are not {encoding}",
                where=Where(source=name, line=line, offset=offset - held + error.start),
                value=error.object[error.start : error.start + 8],
                fix="save the file as UTF-8, or pin the encoding it is in: encoding='cp1252'",
            ) from None
        offset += len(data)
        line += text.count("\n")
        if text:
            yield text.encode("utf-8", "surrogatepass")
        if not data:
            return
