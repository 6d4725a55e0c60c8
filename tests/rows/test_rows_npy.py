"""Vectors as a `.npy` matrix: what numpy reads back, whole or not at all."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from warmstart.errors import DataError, UsageError
from warmstart.rows import open_writer


def write(path: Path, vectors: list[Any], **more: Any) -> None:
    with open_writer(path) as writer:
        for vector in vectors:
            writer.write({"embedding": vector, "tokens": 3} | more, {"text": "a", "embedding": "of the row"})


@pytest.mark.parametrize("rows", [0, 1, 1000])
def test_numpy_reads_it_back(tmp_path: Path, rows: int) -> None:
    vectors = np.random.default_rng(0).standard_normal((rows, 7)).astype(np.float32)
    write(tmp_path / "a.npy", vectors.tolist())
    back = np.lib.format.open_memmap(tmp_path / "a.npy", mode="r")
    assert back.dtype == np.float32 and back.flags["C_CONTIGUOUS"]
    np.testing.assert_array_equal(back, vectors if rows else np.zeros((0, 0)))
    assert back.offset % 64 == 0


def test_values_are_rounded_once_to_float32(tmp_path: Path) -> None:
    write(tmp_path / "a.npy", [[0.1, 1 / 3, 1e-40, -0.0]])
    np.testing.assert_array_equal(
        np.lib.format.open_memmap(tmp_path / "a.npy", mode="r"), np.array([[0.1, 1 / 3, 1e-40, -0.0]], np.float32)
    )


@pytest.mark.parametrize(
    ("vectors", "code"),
    [([[1.0, 2.0], [1.0]], "npy-width"), ([None], "npy-no-vector"), ([["a"]], "npy-no-vector"), ([3], "npy-no-vector")],
)
def test_what_is_no_matrix_leaves_no_file(tmp_path: Path, vectors: list[Any], code: str) -> None:
    with pytest.raises(DataError) as caught:
        write(tmp_path / "a.npy", vectors)
    assert caught.value.code == code
    assert list(tmp_path.iterdir()) == []


def test_pairs_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "warmstart"):
        write(tmp_path / "single.npy", [[1.0]] * 3, similarity=None)
        assert not caplog.records
        write(tmp_path / "pairs.npy", [[1.0]] * 3, similarity=0.5)
    assert len(caplog.records) == 1 and "first texts" in caplog.text


@pytest.mark.parametrize(
    ("path", "options", "code"),
    [("a.npy.gz", {}, "format-unknown"), ("-", {"format": "npy"}, "format-not-streamable")],
)
def test_where_it_cannot_be_written(tmp_path: Path, path: str, options: dict[str, Any], code: str) -> None:
    with pytest.raises(UsageError) as caught:
        open_writer(path if path == "-" else tmp_path / path, **options)
    assert caught.value.code == code
