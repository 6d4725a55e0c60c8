"""The peers of a benchmark answer as we do: each runs the same model on the same tokens, its own way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import warmstart as ws
from support.damage import copy_of, edit_json
from warmstart.checkpoints import peer_sentence_transformers, peer_transformers
from warmstart.verbs.bench_figures import agreement
from warmstart.verbs.bench_own import Own, answer_of

TEXTS = ("good film", "", "a dull and tired plot that never begins " * 30, "fun", "I love the cast?")
ROWS = [{"text": text} for text in TEXTS]
PAIRS = [{"text": text, "text_pair": "is it fun"} for text in TEXTS]


def own(folder: Path, task: str = "text-classification") -> Own:
    pipe = ws.load(folder, task=task, device="cpu")
    return Own(pipe, answer_of(pipe))


def settings(contestant: Own, folder: Path, **more: Any) -> dict[str, Any]:
    return {**contestant.facts, "folder": str(folder), "threads": 1, **more}


@pytest.mark.parametrize("peer", ["pipeline", "textbook"])
@pytest.mark.parametrize(
    ("family", "labels", "problem", "rows"),
    [
        ("bert", ("NEGATIVE", "POSITIVE"), None, ROWS),
        ("bert", ("NEGATIVE", "POSITIVE"), None, PAIRS),
        ("distilbert", ("a", "b", "c"), "multi_label_classification", ROWS),
        ("roberta", ("score",), "regression", ROWS),
        ("gpt2", ("a", "b"), None, ROWS),  # has no padding token
    ],
)
def test_classifiers_answer_as_ours(
    tiny: Callable[..., Path], tmp_path: Path, peer: str, family: str, labels: Sequence[str], problem: str | None,
    rows: list[dict[str, str]],
) -> None:  # fmt: skip
    folder = copy_of(tiny(family, labels=tuple(labels)), tmp_path / "c")
    if problem is not None:
        edit_json(folder / "config.json", {"problem_type": problem})
    ours = own(folder)
    theirs = peer_transformers.start(settings(ours, folder, peer=peer))
    rows = [row for row in rows if row["text"]] if family == "gpt2" else rows
    for size in (1, 3):
        assert agreement(theirs.answers(rows, size), ours.answers(rows, None)) == 1
    assert theirs.model is not None and theirs.facts == {}


@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_embeddings_are_ours(tiny: Callable[..., Path], family: str) -> None:
    folder = tiny(family, "base")
    ours = own(folder, "sentence-embedding")
    expected = ours.answers(ROWS, None)
    textbook = peer_transformers.start(settings(ours, folder, peer="textbook"))
    encode = peer_sentence_transformers.start(settings(ours, folder))
    for size in (1, 3):
        assert agreement(textbook.answers(ROWS, size), expected) == 1
        assert agreement(encode.answers(ROWS, size), expected) == 1


def test_cls_pooling_and_length_1_are_the_textbooks_too(tiny: Callable[..., Path]) -> None:
    ours = own(tiny("bert", "base"), "sentence-embedding")
    told = settings(ours, tiny("bert", "base"), peer="textbook") | {"pooling": "cls", "normalize": True}
    [vector] = peer_transformers.start(told).answers(ROWS[:1], 1)
    inputs = ours.pipe.tokenizer(TEXTS[0], return_tensors="pt")
    state = ours.pipe.model(**inputs).last_hidden_state[0, 0].detach()
    assert vector == pytest.approx((state / state.norm()).tolist(), abs=1e-6)
