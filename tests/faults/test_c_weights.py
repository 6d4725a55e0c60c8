"""Catalogue C1-C10: weights that are damaged, hostile, or not weights."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import random
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from support.damage import copy_of, refused, split_safetensors, write_safetensors
from warmstart.checkpoints import load_model, verify

WEIGHTS = "model.safetensors"
TWO = {
    "a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]},
    "b": {"dtype": "F32", "shape": [2], "data_offsets": [16, 24]},
}
DATA = np.arange(6, dtype="<f4").tobytes()


@pytest.fixture
def folder(tiny: Callable[..., Path], tmp_path: Path) -> Path:
    copy = copy_of(tiny("bert"), tmp_path / "checkpoint")
    assert verify(copy).has_head  # the healthy twin of every test here
    return copy


def test_c01_empty_file(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(b"")
    with refused("safetensors-empty", WEIGHTS) as caught:
        verify(folder)
    assert "download" in caught.value.fix


def test_c02_truncated_at_100_points(folder: Path) -> None:
    content = (folder / WEIGHTS).read_bytes()
    points = random.Random(2).sample(range(1, len(content)), 100)
    for point in [1, 7, 8, 9, len(content) - 1, *points]:
        (folder / WEIGHTS).write_bytes(content[:point])
        with refused("safetensors-truncated", WEIGHTS, seconds=0.5):
            verify(folder)
    (folder / WEIGHTS).write_bytes(content)
    assert verify(folder).tensors


@pytest.mark.parametrize("length", [1 << 63, 101 << 20, (1 << 64) - 1, 0, 1])
def test_c03_header_length_lies_without_allocation(folder: Path, length: int) -> None:
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(length.to_bytes(8, "little") + content[8:])
    tracemalloc.start()
    with refused("safetensors-header-size", WEIGHTS):
        verify(folder)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20


@pytest.mark.parametrize(
    ("offsets", "data"),
    [
        ([[0, 16], [8, 16]], DATA),  # overlap
        ([[0, 16], [20, 28]], DATA + b"hole"),  # hole
        ([[4, 20], [20, 28]], b"hole" + DATA),  # hole at the start
        ([[0, 16], [16, 24]], DATA + b"tail"),  # bytes after the last tensor
        ([[16, 0], [16, 24]], DATA),  # backwards
        ([[0, 16], [-8, 0]], DATA),  # negative
        ([[0, 16.0], [16, 24]], DATA),  # not a whole number
        ([[0, 16, 24], [16, 24]], DATA),  # three
    ],
)
def test_c04_overlapping_or_holed_offsets(folder: Path, offsets: list[list[int]], data: bytes) -> None:
    header = {name: TWO[name] | {"data_offsets": pair} for name, pair in zip(TWO, offsets, strict=True)}
    write_safetensors(folder / WEIGHTS, header, data)
    with refused("safetensors-offsets", WEIGHTS):
        verify(folder)


@pytest.mark.parametrize(
    "shape", [[1 << 32, 1 << 32], [1 << 63, 2], [(1 << 62) + 2, 4], [2, -2], [2, True], [2.0], "ab", [1] * 17]
)
def test_c05_shape_product_overflow(folder: Path, shape: object) -> None:
    write_safetensors(folder / WEIGHTS, TWO | {"a": TWO["a"] | {"shape": shape}}, DATA)
    with refused("safetensors-shape", WEIGHTS):
        verify(folder)


def test_c06_duplicate_tensor_key(folder: Path) -> None:
    entry = json.dumps(TWO["b"] | {"data_offsets": [0, 8]})
    write_safetensors(folder / WEIGHTS, f'{{"b": {entry}, "b": {entry}}}', DATA[:8])
    with refused("json-duplicate-key", WEIGHTS) as caught:
        verify(folder)
    assert caught.value.value == "b"


@pytest.mark.parametrize("name", ["../../etc/x", "a\x00b", "n" * 1_000_000, "", "a b", "é", "a\nb", "a/b"])
def test_c07_hostile_tensor_names(folder: Path, name: str) -> None:
    write_safetensors(folder / WEIGHTS, {name: TWO["b"] | {"data_offsets": [0, 8]}}, DATA[:8])
    with refused("safetensors-name", WEIGHTS) as caught:
        verify(folder)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 90868376\n", "Git LFS"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "HTML"),
        (b"\n<html lang=en>", "HTML"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "XML"),
        (gzip.compress(b"x" * 100), "gzip"),
        (b'{"error": "Repository not found"}', "JSON"),
        (b"GGUF\x03\x00\x00\x00" + bytes(64), "GGUF"),
    ],
)
def test_c08_other_files_are_recognised_by_name(folder: Path, content: bytes, kind: str) -> None:
    (folder / WEIGHTS).write_bytes(content)
    with refused("safetensors-wrong-format", WEIGHTS) as caught:
        verify(folder)
    assert kind in caught.value.what


@pytest.mark.parametrize("length", [0x0280, 0x8B1F, 0x7B])
def test_c08_twin_honest_header_lengths_that_look_like_signatures(folder: Path, length: int) -> None:
    header, data = split_safetensors(folder / WEIGHTS)
    first = {"classifier.weight": header["classifier.weight"]}
    start, stop = first["classifier.weight"]["data_offsets"]
    first["classifier.weight"]["data_offsets"] = [0, stop - start]
    write_safetensors(folder / "x.safetensors", json.dumps(first).ljust(length), data[start:stop])
    from warmstart.checkpoints.safetensors_file import read_header

    assert list(read_header(folder / "x.safetensors")) == ["classifier.weight"]


class _Marker:
    """What a hostile pickle would do: leave a mark."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_c09_pickle_renamed_safetensors(folder: Path, tmp_path: Path, protocol: int) -> None:
    marker = tmp_path / "owned"
    (folder / WEIGHTS).write_bytes(pickle.dumps(_Marker(str(marker)), protocol=protocol))
    with refused("safetensors-wrong-format", WEIGHTS) as caught:
        verify(folder)
    assert "save_pretrained" in caught.value.fix
    assert not marker.exists()


def test_c09_zip_renamed_safetensors(folder: Path, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(_Marker(str(tmp_path / "owned"))))
    (folder / WEIGHTS).write_bytes(buffer.getvalue())
    with refused("safetensors-wrong-format", WEIGHTS) as caught:
        verify(folder)
    assert "save_pretrained" in caught.value.fix
    assert not (tmp_path / "owned").exists()


def test_c10_only_pytorch_model_bin(folder: Path, tmp_path: Path) -> None:
    marker = tmp_path / "owned"
    (folder / WEIGHTS).unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(_Marker(str(marker))))
    with refused("pickle-refused", "pytorch_model.bin") as caught:
        verify(folder)
    assert "save_pretrained" in caught.value.fix
    assert not marker.exists()


def test_c10_twin_a_pickle_beside_safetensors_is_never_opened(folder: Path, tmp_path: Path) -> None:
    marker = tmp_path / "owned"
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(_Marker(str(marker))))
    load_model(verify(folder), auto_class="AutoModelForSequenceClassification")
    assert not marker.exists()


def test_c10_distributed_checkpoint_is_refused(folder: Path, tmp_path: Path) -> None:
    marker = tmp_path / "owned"
    (folder / ".metadata").write_bytes(pickle.dumps(_Marker(str(marker))))
    with refused("distributed-unsupported", "checkpoint"):
        verify(folder)
    assert not marker.exists()
