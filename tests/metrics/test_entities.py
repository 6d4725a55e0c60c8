"""Entity metrics against seqeval's definition, which `support.seqeval` writes out."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.seqeval import chunks, micro
from warmstart.errors import DataError, UsageError
from warmstart.metrics import entity_scores, tag_accuracy
from warmstart.tasks.tagging import Tagging, runs

KINDS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC", "E-LOC", "S-PER", "E-PER", "S-LOC")
tags = st.lists(st.sampled_from(KINDS), max_size=8)


@given(tags)
def test_tags_make_the_spans_that_seqeval_makes(sentence: list[str]) -> None:
    tagging = Tagging(KINDS)
    assert set(runs([tagging.tags[KINDS.index(tag)] for tag in sentence])) == chunks(sentence)


@given(st.lists(st.tuples(tags, tags), min_size=1, max_size=6))
def test_values_are_those_of_the_definition(pairs: list[tuple[list[str], list[str]]]) -> None:
    true, pred = [chunks(a) for a, _ in pairs], [chunks(b) for _, b in pairs]
    found = {name: metric.value for name, metric in entity_scores(true, pred, resamples=100).items()}
    types = {name for row in (*true, *pred) for name, _, _ in row}
    if not types:
        assert found == {}
        return
    left, right = (list(column) for column in zip(*pairs, strict=True))
    assert (found["precision"], found["recall"], found["f1"]) == pytest.approx(micro(left, right))

    def only(sentences: list[list[str]], name: str) -> list[list[str]]:
        return [[tag if tag.endswith(name) else "O" for tag in sentence] for sentence in sentences]

    by_type = {name: micro(only(left, name), only(right, name))[2] for name in types}
    assert {name[3:]: value for name, value in found.items() if name.startswith("f1_")} == pytest.approx(by_type)
    assert found["macro_f1"] == pytest.approx(np.mean(list(by_type.values())))


BILOU = ("O", *(f"{kind}-{name}" for kind in "BILU" for name in ("PER", "LOC")))
bilou = st.lists(st.sampled_from(BILOU), max_size=8)


@given(st.lists(st.tuples(bilou, bilou), min_size=1, max_size=6))
def test_bilou_is_judged_as_seqeval_judges_the_same_tags_named_bioes(pairs: list[tuple[list[str], list[str]]]) -> None:
    """seqeval's default mode does not know L and U: it would take them for neither begin nor end."""
    tagging = Tagging(BILOU)

    def spans(sentence: list[str]) -> set[tuple[str, int, int]]:
        return set(runs([tagging.tags[BILOU.index(tag)] for tag in sentence]))

    def renamed(sentence: list[str]) -> list[str]:
        return [tag.replace("L-", "E-").replace("U-", "S-") for tag in sentence]

    left, right = ([renamed(sentence) for sentence in column] for column in zip(*pairs, strict=True))
    assert all(spans(sentence) == chunks(renamed(sentence)) for pair in pairs for sentence in pair)
    metrics = entity_scores([spans(a) for a, _ in pairs], [spans(b) for _, b in pairs], resamples=100)
    found = tuple(metrics[name].value for name in ("precision", "recall", "f1")) if metrics else (0.0, 0.0, 0.0)
    assert found == pytest.approx(micro(left, right))


def test_an_entity_is_right_as_a_whole_or_not_at_all() -> None:
    true = [{("PER", 0, 2), ("LOC", 5, 6)}]
    for wrong in ({("PER", 0, 1)}, {("PER", 1, 2)}, {("LOC", 0, 2)}):
        assert entity_scores(true, [wrong])["f1"].value == 0
    assert entity_scores(true, [{("PER", 0, 2)}])["f1"].value == pytest.approx(2 / 3)


def test_intervals_hold_the_value_and_narrow_with_rows() -> None:
    rng = np.random.default_rng(0)
    widths = []
    for n in (40, 640):
        true = [{("PER", 0, 1), ("LOC", 3, int(rng.integers(4, 6)))} for _ in range(n)]
        pred = [{("PER", 0, int(rng.integers(1, 3))), ("LOC", 3, 4)} for _ in range(n)]
        metric = entity_scores(true, pred)["f1"]
        assert metric.lo < metric.value < metric.hi
        widths.append(metric.hi - metric.lo)
        assert entity_scores(true, pred)["f1"] == metric
    assert 2 < widths[0] / widths[1] < 8  # about the square root of 16


def test_tag_accuracy_pools_rows() -> None:
    metric = tag_accuracy([1, 9], [2, 10])
    assert metric is not None
    assert metric.value == pytest.approx(10 / 12)
    assert tag_accuracy([0], [0]) is None


def test_refusals() -> None:
    for call in (lambda: entity_scores([set()], []), lambda: tag_accuracy([1], [])):
        with pytest.raises(UsageError) as caught:
            call()
        assert caught.value.code == "metric-shape"
    with pytest.raises(DataError) as none:
        entity_scores([], [])
    assert none.value.code == "no-rows"
