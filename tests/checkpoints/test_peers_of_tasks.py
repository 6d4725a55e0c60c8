"""The peers of tasks beside classification and embeddings answer as we do, and refuse what they do otherwise."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

import warmstart as ws
from warmstart.checkpoints import peer_pipelines, peer_sentence_transformers
from warmstart.verbs.bench_figures import agreement
from warmstart.verbs.bench_own import Own, answer_of

TEXTS = ("good film", "a dull and tired plot that never begins", "fun", "I love the cast of this story")
BIO = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
NLI = ("contradiction", "neutral", "entailment")


def own(folder: Path, task: str, options: Mapping[str, Any] | None = None) -> Own:
    pipe = ws.load(folder, task=task, options=options or {}, device="cpu")
    return Own(pipe, answer_of(pipe))


def settings(contestant: Own, folder: Path) -> dict[str, Any]:
    return {**contestant.facts, "folder": str(folder), "threads": 1}


def assert_same_answers(ours: Own, theirs: Any, rows: Sequence[Mapping[str, Any]]) -> list[Any]:
    expected = ours.answers(rows, None)
    for size in (1, 3):
        assert agreement(theirs.answers(rows, size), expected) == 1
    assert theirs.model is not None and theirs.facts == {}
    return expected


@pytest.mark.parametrize("aggregation", ["first", "simple", "max"])
def test_entities_are_those_of_the_pipeline(tiny: Callable[..., Path], aggregation: str) -> None:
    folder = tiny("bert", "tokens", labels=BIO)
    ours = own(folder, "token-classification", {"aggregation": aggregation, "max_length": 64})
    theirs = peer_pipelines.start(settings(ours, folder))
    found = assert_same_answers(ours, theirs, [{"text": text} for text in TEXTS])
    assert any(found) and all(len(each.split()) == 3 for answer in found for each in answer)


def test_long_texts_of_entities_are_read_by_windows_on_both_sides(tiny: Callable[..., Path]) -> None:
    folder = tiny("bert", "tokens", labels=BIO)
    ours = own(folder, "token-classification", {"max_length": 16, "stride": 4})
    theirs = peer_pipelines.start(settings(ours, folder))
    rows = [{"text": "a good film is fun and the cast is great " * 3}]
    [mine], [other] = ours.answers(rows, None), theirs.answers(rows, 2)
    ends = [max(int(each.split()[2]) for each in answer) for answer in (mine, other)]
    assert min(ends) > len(rows[0]["text"]) * 2 / 3  # neither stops at its first window


def test_tags_that_the_pipeline_does_not_join_are_refused_and_so_are_words(tiny: Callable[..., Path]) -> None:
    folder = tiny("bert", "tokens", labels=("O", "B-X", "I-X", "L-X", "U-X"))
    with pytest.raises(ValueError, match="BIO"):
        peer_pipelines.start(settings(own(folder, "token-classification"), folder))
    folder = tiny("bert", "tokens", labels=BIO)
    with pytest.raises(ValueError, match="words"):
        peer_pipelines.start(settings(own(folder, "token-classification"), folder)).answers([{"tokens": ["a"]}], 1)


@pytest.mark.parametrize(("family", "mask"), [("bert", "[MASK]"), ("roberta", "<mask>")])
def test_masks_are_filled_as_by_the_pipeline(tiny: Callable[..., Path], family: str, mask: str) -> None:
    folder = tiny(family, "masks")
    ours = own(folder, "fill-mask")
    theirs = peer_pipelines.start(settings(ours, folder))
    rows = [{"text": f"a {mask} film"}, {"text": "no hole"}, {"text": f"{mask} and {mask} are fun, the plot is dull"}]
    found = assert_same_answers(ours, theirs, rows)
    assert [len(answer) for answer in found] == [1, 0, 2]
    assert agreement(theirs.answers(rows[:1], 1), found[:1]) == 1  # the pipeline gives one text's answer unwrapped
    assert theirs.answers(rows[1:2], 1) == [[]]


@pytest.mark.parametrize("several", [False, True])
def test_zero_shot_labels_are_those_of_the_pipeline(tiny: Callable[..., Path], several: bool) -> None:
    folder = tiny("bert", labels=NLI)
    options = {"labels": ["film", "story"], "multi_label": several, "hypothesis_template": "It is {}."}
    ours = own(folder, "zero-shot-classification", options)
    theirs = peer_pipelines.start(settings(ours, folder))
    rows: list[dict[str, Any]] = [{"text": text} for text in TEXTS]
    rows += [{"text": "a warm plot", "labels": ["fun", "sad", "warm"]}, {"text": "dull", "labels": "sad, happy"}]
    found = assert_same_answers(ours, theirs, rows)
    assert {*found[:4]} <= {"film", "story"} and found[4] in ("fun", "sad", "warm") and found[5] in ("sad", "happy")


def test_what_is_cut_by_the_pipeline_and_read_by_windows_here_is_not_compared(tiny: Callable[..., Path]) -> None:
    folder = tiny("bert", labels=NLI)
    ours = own(folder, "zero-shot-classification", {"labels": ["a", "b"], "long_text": "windows"})
    with pytest.raises(ValueError, match="windows"):
        peer_pipelines.start(settings(ours, folder))
    folder = tiny("bert", labels=("score",))
    with pytest.raises(ValueError, match="windows"):
        peer_sentence_transformers.start(settings(own(folder, "rerank", {"long_text": "windows"}), folder))


@pytest.mark.parametrize("activation", ["sigmoid", "identity"])
def test_passages_come_in_the_order_of_the_cross_encoder(tiny: Callable[..., Path], activation: str) -> None:
    folder = tiny("bert", labels=("score",))
    ours = own(folder, "rerank", {"activation": activation})
    theirs = peer_sentence_transformers.start(settings(ours, folder))
    rows = [
        {"query": "is it fun", "passages": list(TEXTS)},
        {"query": "who", "passages": "the cast is great"},
        {"query": "what is it", "passages": [TEXTS[2]]},
    ]
    found = assert_same_answers(ours, theirs, rows)
    assert sorted(found[0]) == ["0", "1", "2", "3"] and all(isinstance(score, float) for score in found[1:])
