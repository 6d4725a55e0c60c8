"""The fault catalogue, D43: tags and spans that do not fit their tokens or text. What cannot be read is an error at its
row; what can be repaired is repaired, counted and said."""

from __future__ import annotations

import json
import logging
import time
import tracemalloc
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import warmstart as ws
from support.models import tiny_checkpoint
from warmstart.errors import DataError
from warmstart.rows import Row
from warmstart.tasks.tagged_rows import INSIDE, OFF_EDGE, OVERLAP
from warmstart.tasks.token_classification import IGNORED, TokenClassification

BIO = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
HEALTHY: dict[str, Any] = {"tokens": ["Ann", "Lee", "sings"], "tags": ["B-PER", "I-PER", "O"]}
SPANNED: dict[str, Any] = {"text": "Ann Lee sings in Rome", "tags": [[0, 7, "PER"], [17, 21, "LOC"]]}
# As Prodigy writes it: a text, its words by their places, and spans.
PLACED: dict[str, Any] = {
    "text": "The story's end LangChain",
    "tokens": [
        {"text": word, "start": start, "end": start + len(word), "id": i}
        for i, (word, start) in enumerate([("The", 0), ("story's", 4), ("end", 12), ("LangChain", 16)])
    ],
    "tags": [{"start": 4, "end": 11, "label": "LOC"}, {"start": 16, "end": 25, "label": "PER"}],
}


def placed(*spans: tuple[int, int, str]) -> dict[str, Any]:
    return PLACED | {"tags": [{"start": start, "end": end, "label": label} for start, end, label in spans]}


@pytest.fixture(scope="module")
def pipe(tiny_root: Path) -> ws.Pipeline:
    return ws.load(tiny_checkpoint(tiny_root, "bert", "tokens", BIO), device="cpu")


def trained_tags(pipe: ws.Pipeline, row: Mapping[str, Any]) -> list[str]:
    [feature] = pipe.task.encode([Row(row)], train=True)
    return [BIO[i] for i in feature.targets["labels"].tolist() if i != IGNORED]


def refused(pipe: ws.Pipeline, row: dict[str, Any], tmp_path: Path) -> DataError:
    """The error of a file whose second line is this row, in judging; in training it is the same."""
    twin = HEALTHY if "tokens" in row else SPANNED
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in (twin, row)))
    found = []
    for call in (
        lambda: ws.evaluate(pipe, path),
        lambda: ws.train(tiny_checkpoint(tmp_path, "bert", "base"), path, output=tmp_path / "run", task="ner"),
    ):
        started = time.process_time()
        with pytest.raises(DataError) as caught:
            call()
        assert time.process_time() - started < 3
        where = caught.value.where
        assert (where.source, where.line, where.field) == (str(path), 2, "tags")
        found.append(caught.value)
    assert not (tmp_path / "run").exists()
    assert found[0].code == found[1].code
    return found[0]


@pytest.mark.parametrize("tags", [[], ["O"], ["O", "O", "O", "O"]])
def test_d43_tags_and_tokens_of_unequal_number(pipe: ws.Pipeline, tmp_path: Path, tags: list[str]) -> None:
    error = refused(pipe, HEALTHY | {"tags": tags}, tmp_path)
    assert error.code == "tags-length"
    assert f"3 tokens and {len(tags)} tags" in str(error)


@pytest.mark.parametrize(
    ("spans", "code"),
    [
        ([[0, 99, "PER"]], "span-out-of-text"),
        ([[7, 7, "PER"]], "span-out-of-text"),
        ([[-3, 2, "PER"]], "span-out-of-text"),
        ([[0, 7]], "spans-unusable"),
        (["B-PER", "I-PER", "O", "O", "O"], "spans-unusable"),
        ([{"start": 0, "end": 3, "label": "PER", "text": "Bob"}], "span-text-differs"),
    ],
)
def test_d43_spans_that_are_none(pipe: ws.Pipeline, tmp_path: Path, spans: list[Any], code: str) -> None:
    assert refused(pipe, SPANNED | {"tags": spans}, tmp_path).code == code


def test_d43_healthy_twins(pipe: ws.Pipeline, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "warmstart"):
        assert trained_tags(pipe, HEALTHY) == ["B-PER", "I-PER", "O"]
        assert trained_tags(pipe, SPANNED) == ["B-PER", "I-PER", "O", "O", "B-LOC"]
    assert isinstance(pipe.task, TokenClassification)
    assert pipe.task.repairs([Row(HEALTHY), Row(SPANNED), Row(PLACED)]) == {}
    assert not caplog.records


@pytest.mark.parametrize(
    ("row", "tags", "fault", "count"),
    [
        (HEALTHY | {"tags": ["I-PER", "I-PER", "O"]}, ["B-PER", "I-PER", "O"], INSIDE, 1),
        (HEALTHY | {"tags": ["B-PER", "I-LOC", "L-PER"]}, ["B-PER", "B-LOC", "B-PER"], INSIDE, 2),
        (SPANNED | {"tags": [[1, 5, "PER"]]}, ["B-PER", "I-PER", "O", "O", "O"], OFF_EDGE, 1),
        (SPANNED | {"tags": [[3, 8, "PER"], [16, 21, "LOC"]]}, ["O", "B-PER", "O", "O", "B-LOC"], OFF_EDGE, 2),
        (SPANNED | {"tags": [[3, 4, "PER"]]}, ["O"] * 5, OFF_EDGE, 0),  # of a space alone: there is no word to tag
        (SPANNED | {"tags": [[0, 3, "LOC"], [0, 7, "PER"]]}, ["B-PER", "I-PER", "O", "O", "O"], OVERLAP, 1),
        (SPANNED | {"tags": [[0, 7, "PER"], [4, 13, "LOC"]]}, ["O", "B-LOC", "I-LOC", "O", "O"], OVERLAP, 1),
        (SPANNED | {"tags": [[0, 7, "PER"], [0, 7, "PER"]]}, ["B-PER", "I-PER", "O", "O", "O"], OVERLAP, 0),
        (placed((6, 9, "LOC"), (16, 20, "PER")), ["O", "B-LOC", "I-LOC", "I-LOC", "O", "B-PER"], OFF_EDGE, 2),
        (placed((3, 11, "LOC")), ["O", "B-LOC", "I-LOC", "I-LOC", "O", "O"], OFF_EDGE, 1),
        (placed((4, 11, "LOC"), (4, 15, "PER")), ["O", "B-PER", "I-PER", "I-PER", "I-PER", "O"], OVERLAP, 1),
    ],
)
def test_d43_what_can_be_repaired_is_counted_and_said(
    pipe: ws.Pipeline,
    caplog: pytest.LogCaptureFixture,
    row: dict[str, Any],
    tags: list[str],
    fault: str,
    count: int,
) -> None:
    assert isinstance(pipe.task, TokenClassification)
    with caplog.at_level(logging.WARNING, "warmstart"):
        assert trained_tags(pipe, row) == tags
    assert pipe.task.repairs([Row(row)]) == ({fault: count} if count else {})
    said = [record.message for record in caplog.records]
    assert said == ([f"gold tags were repaired: {count} × {fault}"] if count else [])


@pytest.mark.parametrize("tokens", [False, True], ids=["text", "tokens"])
@pytest.mark.parametrize(
    ("spans", "kept", "moved"),
    [
        ([[0, 3, "PER"], [3, 6, "LOC"]], ["B-PER", "O"], 2),  # equally long then: the first
        ([[0, 3, "PER"], [3, 6, "PER"]], ["B-PER", "O"], 2),
        ([[0, 3, "PER"], [3, 9, "LOC"]], ["B-LOC", "I-LOC"], 2),
        ([[0, 6, "PER"], [7, 8, "LOC"], [8, 9, "PER"]], ["B-PER", "B-LOC"], 2),
    ],
)
def test_d43_of_spans_that_share_a_word_one_is_trained_and_judged(
    pipe: ws.Pipeline, spans: list[Any], kept: list[str], moved: int, tokens: bool
) -> None:
    assert isinstance(pipe.task, TokenClassification)
    words = {"tokens": [{"start": 0, "end": 6}, {"start": 7, "end": 9}]} if tokens else {}
    row = Row({"text": "foobar ok", "tags": spans} | words)
    assert trained_tags(pipe, row) == kept
    assert pipe.task.repairs([row]) == {OFF_EDGE: moved, OVERLAP: 1}
    [feature] = pipe.task.encode([row], train=True)
    logits = 50 * np.eye(len(BIO), dtype=np.float32)[np.maximum(feature.targets["labels"], 0)]
    scores = pipe.task.score([pipe.task.decode(row, [feature], [{"logits": logits}])], [row])
    assert {name: scores.metrics[name].value for name in ("f1", "recall", "accuracy")} == dict.fromkeys(
        ("f1", "recall", "accuracy"), 1.0
    )


def test_d43_repairs_are_said_once_a_run(pipe: ws.Pipeline, caplog: pytest.LogCaptureFixture) -> None:
    rows = [HEALTHY, *[HEALTHY | {"tags": ["I-PER", "O", "I-LOC"]}] * 50]
    with caplog.at_level(logging.WARNING, "warmstart"):
        ws.evaluate(pipe, rows)
    assert [record.message for record in caplog.records] == [f"gold tags were repaired: 100 × {INSIDE}"]


def test_d43_tags_without_meaning(pipe: ws.Pipeline, tmp_path: Path) -> None:
    base = tiny_checkpoint(tmp_path, "bert", "base")
    for tags, code in (
        ([0, 3, 4], "tags-are-ids"),
        (["B-PER", "I-PER", "LOC"], "tags-mixed"),
        (["O", "O", "O"], "no-entities"),
        (["B-PER", "", "O"], "tag-unusable"),
    ):
        with pytest.raises(DataError) as caught:
            ws.train(base, [HEALTHY | {"tags": tags}], output=tmp_path / "run", task="ner")
        assert (caught.value.code, caught.value.where.row, caught.value.where.field) == (code, 0, "tags")
    with pytest.raises(DataError) as caught:
        ws.evaluate(pipe, [HEALTHY, HEALTHY | {"tags": ["B-PER", "I-PER", "B-per son"]}])
    assert (caught.value.code, caught.value.where.row) == ("label-unknown", 1)
    assert "PER" in caught.value.fix


@pytest.mark.parametrize(
    "make",
    [
        lambda n: {"text": "ab " * n, "tags": [[3 * i, 3 * i + 2, "PER"] for i in range(n)]},
        lambda n: {"text": "ab " * n, "tags": [[3 * i, 3 * n, "PER"] for i in range(n)]},  # each in the one before
        lambda n: {"tokens": ["ab"] * n, "tags": ["I-PER"] * n},
        lambda n: {"text": "ab " * n, "tokens": ["ab"] * n, "tags": ["B-PER"] * n},
    ],
    ids=["spans", "nested", "tags", "words-in-text"],
)
def test_d43_thousands_of_spans_take_linear_time(pipe: ws.Pipeline, make: Callable[[int], dict[str, Any]]) -> None:
    row = Row(make(20_000))
    tracemalloc.start()
    started = time.process_time()
    assert len(list(pipe.task.encode([row], train=True))) > 160
    seconds, peak = time.process_time() - started, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seconds < 5
    assert peak < 128 * 2**20
