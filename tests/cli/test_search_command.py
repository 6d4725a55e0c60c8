"""`warmstart search`, from texts to embeddings to what is found among them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import warmstart as ws

TEXTS = ["a good film", "the worst plot", "LangChain is fun", "two hours of my life", "happy words"]


@pytest.fixture
def corpus(warmstart: Any, tiny: Callable[..., Path], tmp_path: Path) -> tuple[str, Path, Path]:
    """The model, its embeddings of TEXTS, and the file of the texts."""
    model, texts, target = str(tiny("bert", "base")), tmp_path / "texts.txt", tmp_path / "corpus.npy"
    texts.write_text("".join(f"{text}\n" for text in TEXTS), encoding="utf-8")
    done = warmstart("predict", "-m", model, "--task", "sentence-embedding", "-i", texts, "-o", target)
    assert done.code == 0, done.err
    return model, target, texts


def test_what_predict_wrote_is_what_the_library_gives(corpus: tuple[str, Path, Path]) -> None:
    model, target, _ = corpus
    pipe = ws.load(model, task="sentence-embedding", device="cpu")
    wanted = np.array([prediction.embedding for prediction in pipe(TEXTS)], dtype=np.float32)
    np.testing.assert_allclose(np.lib.format.open_memmap(target, mode="r"), wanted, atol=1e-6)


def test_embeddings_go_into_parquet_as_lists_of_numbers(
    warmstart: Any, corpus: tuple[str, Path, Path], tmp_path: Path
) -> None:
    model, matrix, texts = corpus
    target = tmp_path / "corpus.parquet"
    arguments = ["--task", "sentence-embedding", "-i", texts, "-o", target]
    done = warmstart("predict", "-m", model, *arguments)
    assert (done.code, done.out) == (0, ""), done.err
    table = pq.read_table(target)
    assert pa.types.is_list(table.schema.field("embedding").type)
    assert pa.types.is_floating(table.schema.field("embedding").type.value_type)
    assert table["text"].to_pylist() == TEXTS
    vectors = np.array(table["embedding"].to_pylist(), dtype=np.float32)
    assert vectors.shape == (len(TEXTS), 32)
    np.testing.assert_array_equal(vectors, np.lib.format.open_memmap(matrix, mode="r"))
    pipe = ws.load(model, task="sentence-embedding", device="cpu")
    assert ws.search(pipe(["fun"]), vectors, k=3) == ws.search(pipe(["fun"]), matrix, k=3)


@pytest.mark.parametrize("name", ["corpus.npy", "CORPUS.NPY"])
def test_a_matrix_never_lacks_the_line_of_a_skipped_row(
    warmstart: Any, tiny: Callable[..., Path], tmp_path: Path, name: str
) -> None:
    """Its lines are what search counts by; files that keep the rows beside their vectors may skip."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "a", "id": 0}\n{"text": 3, "id": 1}\n{"text": "b", "id": 2}\n', encoding="utf-8")
    arguments = ["-m", tiny("bert", "base"), "--task", "sentence-embedding", "-i", rows, "--skip-errors", "-o"]
    done = warmstart("predict", *arguments, tmp_path / name)
    assert done.code == 2 and "npy-skips" in done.err and ".parquet or .jsonl" in done.err
    assert list(tmp_path.glob("*.[nN]*")) == []
    done = warmstart("predict", *arguments, tmp_path / "corpus.parquet")
    assert done.code == 5, done.err
    assert pq.read_table(tmp_path / "corpus.parquet")["id"].to_pylist() == [0, 2]


def test_search_on_the_command_line_is_the_library(warmstart: Any, corpus: tuple[str, Path, Path]) -> None:
    model, target, texts = corpus
    queries = ["a film", "fun"]
    done = warmstart("search", *queries, "-m", model, "-e", target, "-k", "3", "--device", "cpu")
    assert done.code == 0, done.err
    pipe = ws.load(model, task="sentence-embedding", device="cpu")
    found = ws.search(pipe(queries), target, k=3)
    lines = [json.loads(line) for line in done.out.splitlines()]
    assert [line["text"] for line in lines] == queries
    for line, hits in zip(lines, found, strict=True):
        assert line["results"] == [{"index": hit.index, "score": pytest.approx(hit.score, abs=1e-6)} for hit in hits]
    shown = warmstart("search", TEXTS[1], "-m", model, "-e", target, "--texts", texts, "-k", "2")
    best = json.loads(shown.out)["results"][0]
    assert (best["index"], best["text"]) == (1, TEXTS[1]) and best["score"] == pytest.approx(1, abs=1e-5)


def test_queries_from_a_file(warmstart: Any, corpus: tuple[str, Path, Path], tmp_path: Path) -> None:
    model, target, _ = corpus
    (tmp_path / "queries.jsonl").write_text('{"query": "a film"}\n{"query": "fun"}\n', encoding="utf-8")
    done = warmstart("search", "-i", tmp_path / "queries.jsonl", "-m", model, "-e", target)
    assert done.out == warmstart("search", "a film", "fun", "-m", model, "-e", target).out


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, "search-queries"),
        (["a", "-i", "texts.txt"], 2, "search-queries"),
        (["a", "-e", "texts.txt"], 3, "embeddings-unreadable"),
        (["a", "-e", "none.npy"], 3, "embeddings-unreadable"),
        (["a", "-e", "narrow.npy"], 3, "embeddings-width"),
        (["a", "--texts", "short.txt", "-k", "5"], 3, "texts-too-few"),
        (["a", "-k", "0"], 2, "-k"),
        (["a", "--similarity", "euclid"], 2, "euclid"),
    ],
)
def test_mistakes(
    warmstart: Any,
    corpus: tuple[str, Path, Path],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    code: int,
    words: str,
) -> None:
    model, target, _ = corpus
    monkeypatch.chdir(target.parent)
    np.save("narrow.npy", np.ones((3, 2), np.float32))
    Path("short.txt").write_text("one\ntwo\n", encoding="utf-8")
    embeddings = [] if "-e" in arguments else ["-e", "corpus.npy"]
    done = warmstart("search", *arguments, *embeddings, "-m", model)
    assert done.code == code and words in done.err, done.err
    assert "Traceback" not in done.err


def test_a_prediction_without_a_vector_is_no_matrix(warmstart: Any, tiny: Callable[..., Path], tmp_path: Path) -> None:
    done = warmstart("predict", "-m", tiny("bert"), "a film", "-o", tmp_path / "out.npy")
    assert done.code == 3 and "npy-no-vector" in done.err
    assert not (tmp_path / "out.npy").exists()
