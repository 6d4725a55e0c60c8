"""Search is exact: what a full sort of all similarities gives, whatever the pieces it is computed in."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import warmstart as ws
from warmstart.errors import DataError, UsageError

RNG = np.random.default_rng(0)


def sorted_all(queries: Any, corpus: Any, k: int, similarity: str) -> list[list[int]]:
    """The definition: every similarity in double precision, sorted; of equal ones the lower index."""
    a, b = np.asarray(queries, np.float64), np.asarray(corpus, np.float64)
    if similarity == "cosine":
        a = a / np.maximum(np.linalg.norm(a, axis=1, keepdims=True), 1e-12)
        b = b / np.maximum(np.linalg.norm(b, axis=1, keepdims=True), 1e-12)
    return [np.argsort(-row, kind="stable")[:k].tolist() for row in a @ b.T]


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
@pytest.mark.parametrize("k", [1, 7, 600])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_it_is_the_full_sort(
    similarity: Any, k: int, dtype: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus, queries = RNG.standard_normal((500, 16)).astype(dtype), RNG.standard_normal((20, 16)).astype(dtype)
    np.save(tmp_path / "corpus.npy", corpus)
    wanted = sorted_all(queries, corpus, k, similarity)
    for budget in (1, 10_000, 1 << 25):  # a line at a time, some lines, all of them
        monkeypatch.setattr("warmstart.verbs.search._BUDGET", budget)
        found = ws.search(queries, tmp_path / "corpus.npy", k=k, similarity=similarity)
        assert [[hit.index for hit in hits] for hits in found] == wanted
        assert all(hits[i].score >= hits[i + 1].score for hits in found for i in range(len(hits) - 1))
    assert [[hit.index for hit in hits] for hits in ws.search(queries, corpus, k=k, similarity=similarity)] == wanted
    assert [hit.index for hit in ws.search(queries[3], corpus, k=k, similarity=similarity)] == wanted[3]


@given(
    st.integers(1, 12), st.integers(1, 40), st.integers(1, 6), st.sampled_from([1, 100, 1 << 20]), st.integers(0, 99)
)
@settings(deadline=None, max_examples=60)
def test_equal_scores_stand_in_the_order_of_their_lines(k: int, rows: int, width: int, budget: int, seed: int) -> None:
    """Small whole numbers: their dot products are exact, and many are equal."""
    rng = np.random.default_rng(seed)
    corpus, queries = (rng.integers(-1, 2, (n, width)).astype(np.float32) for n in (rows, 3))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("warmstart.verbs.search._BUDGET", budget)
        found = ws.search(queries, corpus, k=k, similarity="dot")
    assert [[hit.index for hit in hits] for hits in found] == sorted_all(queries, corpus, k, "dot")


def test_predictions_are_queries(tiny: Callable[..., Path]) -> None:
    pipe = ws.load(tiny("bert", "base"), task="sentence-embedding", device="cpu")
    texts = ["a good film", "bad", "the story never begins"]
    predictions = pipe(texts)
    corpus = np.array([prediction.embedding for prediction in predictions], dtype=np.float32)
    for i, text in enumerate(texts):
        nearest = ws.search(pipe(text), corpus, k=2)
        assert (nearest[0].index, len(nearest)) == (i, 2)
        assert nearest[0].score == pytest.approx(1, abs=1e-6)
    assert [hits[0].index for hits in ws.search(predictions, corpus)] == [0, 1, 2]


def test_an_empty_corpus_has_nothing_near() -> None:
    assert ws.search(np.ones(4, np.float32), np.zeros((0, 4), np.float32)) == []
    assert ws.search(np.ones((2, 4), np.float32), np.zeros((0, 4), np.float32)) == [[], []]


def test_a_vector_of_zeros_is_near_to_nothing() -> None:
    [first, second] = ws.search(np.array([1.0, 0.0]), np.array([[0.0, 0.0], [1.0, 1.0]]))
    assert (first.index, second) == (1, type(second)(0, 0.0))


def test_memory_does_not_grow_with_the_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("warmstart.verbs.search._BUDGET", 1 << 18)
    path = tmp_path / "corpus.npy"
    corpus = np.lib.format.open_memmap(path, "w+", np.float32, (100_000, 64))  # 25.6 MB
    corpus[:] = 0.5
    corpus[77_777] = np.arange(64)
    corpus.flush()
    tracemalloc.start()
    started = time.perf_counter()
    [hit] = ws.search(np.arange(64, dtype=np.float32), path, k=1)
    seconds, peak = time.perf_counter() - started, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert hit.index == 77_777
    assert peak < 3 << 20, f"{peak:,} bytes"
    assert seconds < 5


# --- faults -----------------------------------------------------------------------------------------------------------


def header(shape: str, descr: str = "'<f4'") -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little") + text.encode()


HEALTHY = header("(2, 4)") + bytes(32)
DAMAGED = {
    "empty": b"",
    "text": b"I love this film\n",
    "cut header": HEALTHY[:40],
    "cut data": HEALTHY[:-5],
    "huge shape": header("(10000000000000, 4)") + bytes(32),
    "shape of text": header("('a', 4)") + bytes(32),
    "code for a shape": header("(__import__('os').getpid(), 4)") + bytes(32),
    "negative shape": header("(-2, 4)") + bytes(32),
    "objects": header("(2, 4)", "'|O'") + bytes(64),
    "pickle": b"\x80\x04\x95\x05\x00\x00\x00\x00\x00\x00\x00]\x94K\x01a.",
    "deep header": b"\x93NUMPY\x01\x00\xff\x7f" + b"(" * 0x7FFF,
}


def test_the_healthy_twin_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(HEALTHY)
    assert len(ws.search(np.ones(4), tmp_path / "a.npy")) == 2


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.npy"
    path.write_bytes(DAMAGED[name])
    started = time.perf_counter()
    with pytest.raises(DataError) as caught:
        ws.search(np.ones(4), path)
    assert time.perf_counter() - started < 2
    assert caught.value.code == "embeddings-unreadable"
    assert "a.npy" in str(caught.value.where)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        ws.search(np.ones(4), tmp_path / "none.npy")
    assert (caught.value.code, caught.value.where.source) == ("embeddings-unreadable", str(tmp_path / "none.npy"))


@pytest.mark.parametrize(
    ("queries", "corpus", "options", "code"),
    [
        (np.ones(4), np.ones((3, 5)), {}, "embeddings-width"),
        (np.ones(4), np.ones(4), {}, "embeddings-shape"),
        (np.ones(4), np.ones((2, 2, 2)), {}, "embeddings-shape"),
        (np.ones(4), np.ones((2, 4), int), {}, "embeddings-shape"),
        (np.ones(4), np.array([["a"]]), {}, "embeddings-shape"),
        ("a text", np.ones((2, 4)), {}, "embeddings-shape"),
        ([], np.ones((2, 4)), {}, "embeddings-shape"),
        (np.ones(0), np.ones((2, 4)), {}, "embeddings-shape"),
        (np.array([1.0, np.nan]), np.ones((2, 2)), {}, "scores-not-finite"),
        (np.ones(2), np.array([[1.0, 1.0], [np.inf, 0.0]]), {}, "scores-not-finite"),
        (np.ones(2), np.ones((2, 2)), {"k": 0}, "search-k"),
        (np.ones(2), np.ones((2, 2)), {"k": True}, "search-k"),
        (np.ones(2), np.ones((2, 2)), {"k": 1.5}, "search-k"),
        (np.ones(2), np.ones((2, 2)), {"similarity": "euclid"}, "search-similarity"),
    ],
)
def test_what_cannot_be_searched(queries: Any, corpus: Any, options: dict[str, Any], code: str) -> None:
    with pytest.raises((DataError, UsageError)) as caught:
        ws.search(queries, corpus, **options)
    assert caught.value.code == code


def test_a_number_that_is_none_names_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("warmstart.verbs.search._BUDGET", 64)
    corpus = np.ones((50, 2), np.float32)
    corpus[33, 1] = np.nan
    with pytest.raises(DataError) as caught:
        ws.search(np.ones(2), corpus)
    assert caught.value.where.row == 33
