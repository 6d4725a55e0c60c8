"""The fault catalogue, D46 to D49: compression bombs, files that change, output over input, folders without end."""

from __future__ import annotations

import gzip
import json
import os
import time
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import pytest

from warmstart.errors import DataError, UsageError
from warmstart.rows import Field, Limits, check_output, open_writer, read

FIELDS = (Field("text", text=True),)
MIB = 2**20


def refusal(path: Path, **options: Any) -> DataError:
    start = time.process_time()
    tracemalloc.start()
    try:
        with pytest.raises(DataError) as caught:
            for _ in read(path, fields=FIELDS, **options):
                pass
        assert tracemalloc.get_traced_memory()[1] < 64 * MIB
    finally:
        tracemalloc.stop()
    assert time.process_time() - start < 3
    return caught.value


def line(text: str) -> bytes:
    return json.dumps({"text": text}).encode() + b"\n"


# D46: compression


def bomb(size: int, filling: bytes) -> bytes:
    packer = zlib.compressobj(9, wbits=31)
    parts = [packer.compress(filling * (MIB // len(filling))) for _ in range(size // MIB)]
    return b"".join([packer.compress(line("first")), *parts, packer.flush()])


@pytest.mark.parametrize(
    ("form", "filling"),
    [
        *((form, filling) for form in ("jsonl", "csv", "json", "txt") for filling in (b" ", b"a" * 65535 + b"\n")),
        *((form, b"\n") for form in ("jsonl", "csv", "json")),  # in plain text an empty line is a row
    ],
)
def test_d46_gzip_bomb_is_stopped(tmp_path: Path, form: str, filling: bytes) -> None:
    path = tmp_path / f"a.{form}.gz"
    path.write_bytes(bomb(64 * MIB, filling))
    assert path.stat().st_size < MIB
    error = refusal(path, on_error="skip", limits=Limits(ratio_floor_bytes=2 * MIB))
    assert (error.code, error.where.source) == ("decompression-bomb", str(path))


@pytest.mark.parametrize("form", ["jsonl", "txt"])
def test_d46_concatenated_members_and_padding_are_one_file(tmp_path: Path, form: str) -> None:
    path = tmp_path / f"a.{form}.gz"
    first, second = (line("a"), line("b")) if form == "jsonl" else (b"a\n", b"b\n")
    path.write_bytes(gzip.compress(first) + gzip.compress(b"") + gzip.compress(second) + b"\0" * 100)
    assert list(read(path, fields=FIELDS)) == [{"text": "a"}, {"text": "b"}]


@pytest.mark.parametrize("cut", [0, 1, 9, 10, 30, -9, -8, -1])
def test_d46_truncated_gzip_is_an_error_not_a_short_file(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b"".join(line(f"text {n}") for n in range(100)))[:cut])
    assert refusal(path).code == "gzip-truncated"


def test_d46_damaged_gzip_is_an_error(tmp_path: Path) -> None:
    whole = gzip.compress(b"".join(line(f"text {n}") for n in range(100)))
    path = tmp_path / "a.jsonl.gz"
    for data in (whole[:-8] + b"\0" * 8, whole + b"garbage", b"not gzip at all"):
        path.write_bytes(data)
        assert refusal(path).code == "gzip-damaged"


def test_d46_gzip_is_known_by_its_bytes_not_its_name(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(gzip.compress(line("a") * 60_000))
    assert len(list(read(path, fields=FIELDS))) == 60_000


@pytest.mark.parametrize(
    ("magic", "code"),
    [
        (b"\x28\xb5\x2f\xfd\x24\x00\xff\xff\xff\xff", "format-zstd"),
        (b"\xfd7zXZ\x00", "format-xz"),
        (b"BZh91AY", "format-bzip2"),
        (b"PK\x03\x04", "format-zip"),
        (b"\x80\x04\x95", "format-pickle"),
        (b"version https://git-lfs.github.com/spec/v1", "format-lfs-pointer"),
        (b"<!DOCTYPE html><html>", "format-html"),
    ],
)
@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.jsonl.zst", "a.parquet"])
def test_d46_foreign_formats_are_named_and_never_opened(tmp_path: Path, magic: bytes, code: str, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(magic + b"\0" * 100)
    error = refusal(path)
    assert error.code == code
    assert error.fix


# D47: the file changes


def body(count: int) -> bytes:
    return b"".join(line(f"text {n:06}") for n in range(count))


@pytest.mark.parametrize("change", ["grow", "shrink", "replace", "rewrite", "remove"])
@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_d47_change_while_reading_stops_the_pass(tmp_path: Path, change: str, form: str) -> None:
    path = tmp_path / f"a.{form}"
    data = body(20_000) if form == "jsonl" else b"text\n" + b"some text\n" * 40_000
    path.write_bytes(data)  # larger than what is read ahead
    rows = iter(read(path, fields=FIELDS))
    next(rows)
    if change == "grow":
        with path.open("ab") as stream:
            stream.write(data[-20:])
    elif change == "shrink":
        os.truncate(path, len(data) // 2 + 3)
    elif change == "replace":
        other = tmp_path / "other"
        other.write_bytes(data)
        other.replace(path)
    elif change == "rewrite":
        path.write_bytes(data)
        os.utime(path, ns=(1, 1))
    else:
        path.unlink()
    with pytest.raises(DataError) as caught:
        list(rows)
    assert (caught.value.code, caught.value.where.source) == ("file-changed", str(path))


def test_d47_change_between_two_passes_stops_the_second(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(body(10))
    stream = read(path, fields=FIELDS)
    assert len(list(stream)) == len(list(stream)) == 10
    path.write_bytes(body(11))
    with pytest.raises(DataError) as caught:
        next(iter(stream))
    assert caught.value.code == "file-changed"
    assert len(list(read(path, fields=FIELDS))) == 11


# D48: output over input


def test_d48_output_is_never_the_input(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(body(3))
    soft, hard = tmp_path / "soft.jsonl", tmp_path / "hard.jsonl"
    soft.symlink_to(path)
    hard.hardlink_to(path)
    for output in (path, tmp_path / "x" / ".." / "a.jsonl", soft, hard):
        with pytest.raises(UsageError) as caught:
            open_writer(output, inputs=[path])
        assert (caught.value.code, caught.value.where.source) == ("output-is-input", str(output))
    assert path.read_bytes() == body(3)


def test_d48_output_is_never_inside_the_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for given in (tmp_path, tmp_path / "*.jsonl", "*.jsonl", "./out.*", "[a-z]*.jsonl", tmp_path.parent / "**/*.jsonl"):
        with pytest.raises(UsageError) as caught:
            open_writer("out.jsonl", inputs=[given])
        assert caught.value.code == "output-in-input"
    assert list(tmp_path.iterdir()) == []


def test_d48_healthy_twin_writes_beside(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(body(3))
    inputs = [path, tmp_path / "*.csv", tmp_path / "other", tmp_path.parent / "*.jsonl", "-"]
    check_output(tmp_path / "out.jsonl", inputs)
    with open_writer(tmp_path / "out.jsonl", inputs=inputs) as writer:
        for row in read(path, fields=FIELDS):
            writer.write({"label": "x"}, row)
    assert len(list(read(tmp_path / "out.jsonl", fields=FIELDS))) == 3


# D49: folders


def test_d49_folder_with_very_many_files_is_left_after_the_limit(tmp_path: Path) -> None:
    for n in range(300):
        (tmp_path / f"{n}.jsonl").touch()
    error = refusal(tmp_path, limits=Limits(max_directory_entries=200))
    assert (error.code, error.where.source) == ("folder-too-large", str(tmp_path))
    assert "200" in error.what
    assert refusal(tmp_path).code == "folder-ambiguous"


def test_d49_symlink_loops_are_typed_errors(tmp_path: Path) -> None:
    loop = tmp_path / "loop.jsonl"
    loop.symlink_to(loop)
    assert refusal(loop).code == "file-unreadable"
    (tmp_path / "folder").symlink_to(tmp_path)
    (tmp_path / "a.jsonl").write_bytes(body(2))
    stream = read(tmp_path / "folder" / "folder", fields=FIELDS)  # no folder in it is entered
    assert len(list(stream)) == 2


def test_d49_pipes_and_devices_do_not_hang(tmp_path: Path) -> None:
    fifo = tmp_path / "a.jsonl"
    os.mkfifo(fifo)
    for path in (fifo, Path("/dev/zero")):
        assert refusal(path).code == "file-not-regular"


def test_d49_missing_and_ambiguous_paths(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_bytes(body(2))
    (tmp_path / "dev.csv").write_text("text\na\n")
    (tmp_path / "notes.md").write_text("not data")
    error = refusal(tmp_path / "tran.jsonl")
    assert (error.code, "did you mean train.jsonl?" in error.fix) == ("file-missing", True)
    assert refusal(tmp_path / "nowhere" / "a.jsonl").code == "file-missing"
    assert refusal(tmp_path).code == "folder-ambiguous"
    assert refusal(tmp_path / "notes.md").code == "format-unknown"
    assert refusal(tmp_path / "a\0b").code == "file-unreadable"
    (tmp_path / "empty").mkdir()
    assert refusal(tmp_path / "empty").code == "folder-empty"
    (tmp_path / "val.jsonl").write_bytes(body(2))
    assert refusal(tmp_path / "validation").code == "folder-ambiguous"


def test_d49_healthy_twin_one_file_and_splits_by_name(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_bytes(body(2))
    assert len(list(read(tmp_path, fields=FIELDS))) == 2
    (tmp_path / "dev.jsonl.gz").write_bytes(gzip.compress(body(3)))
    stream = read(tmp_path / "validation", fields=FIELDS)
    assert (len(list(stream)), stream.source) == (3, str(tmp_path / "dev.jsonl.gz"))
    assert "dev.jsonl.gz" in stream.guessed[0]
