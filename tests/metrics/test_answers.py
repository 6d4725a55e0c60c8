"""Exact match and F1 of answers, against SQuAD's two evaluation scripts as their authors define them."""

from __future__ import annotations

import re
import string
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from warmstart.errors import UsageError
from warmstart.metrics import answer_scores, normalize_answer

WORDS = ("the", "a", "An", "cat", "Cat,", "cats", "--", "'s", "dog's", "New-York", "é", "", " ", "\u00a0", "1,000")
ANSWERS = st.lists(st.sampled_from(WORDS), max_size=5).map(" ".join)


def reference_normalize(answer: str) -> str:
    answer = "".join(character for character in answer.lower() if character not in set(string.punctuation))
    answer = re.sub(r"\b(a|an|the)\b", " ", answer)
    return " ".join(answer.split())


def reference_f1(gold: str, predicted: str, version: int) -> float:
    gold_words, words = reference_normalize(gold).split(), reference_normalize(predicted).split()
    if version == 2 and (len(gold_words) == 0 or len(words) == 0):
        return float(gold_words == words)
    same = sum((Counter(gold_words) & Counter(words)).values())
    if same == 0:
        return 0.0
    precision, recall = same / len(words), same / len(gold_words)
    return 2 * precision * recall / (precision + recall)


def reference_v2(golds: list[str], predicted: str) -> tuple[float, float]:
    golds = [gold for gold in golds if reference_normalize(gold)] or [""]
    exact = max(int(reference_normalize(gold) == reference_normalize(predicted)) for gold in golds)
    return exact, max(reference_f1(gold, predicted, 2) for gold in golds)


def reference_v1(golds: list[str], predicted: str) -> tuple[float, float]:
    exact = max(int(reference_normalize(gold) == reference_normalize(predicted)) for gold in golds)
    return exact, max(reference_f1(gold, predicted, 1) for gold in golds)


@given(st.lists(st.tuples(ANSWERS, st.lists(ANSWERS, max_size=3)), min_size=1, max_size=8))
@settings(max_examples=150, deadline=None)
def test_both_equal_the_script_of_squad_2(rows: list[tuple[str, list[str]]]) -> None:
    exact, f1 = answer_scores([predicted for predicted, _ in rows], [golds for _, golds in rows])
    expected = np.array([reference_v2(golds, predicted) for predicted, golds in rows])
    np.testing.assert_array_equal(exact, expected[:, 0])
    np.testing.assert_allclose(f1, expected[:, 1], atol=1e-12)


@given(ANSWERS, st.lists(ANSWERS.filter(reference_normalize), min_size=1, max_size=3))
@settings(max_examples=150, deadline=None)
def test_and_the_script_of_squad_1_where_answers_hold_a_word(predicted: str, golds: list[str]) -> None:
    exact, f1 = answer_scores([predicted], [golds])
    assert (exact[0], f1[0]) == pytest.approx(reference_v1(golds, predicted))


@given(st.text(max_size=40))
@settings(max_examples=150, deadline=None)
def test_any_text_is_normalised_alike(text: str) -> None:
    assert normalize_answer(text) == reference_normalize(text)


@pytest.mark.parametrize(
    ("predicted", "golds", "exact", "f1"),
    [
        ("The  Rain!", ["rain"], True, 1.0),
        ("rain in Spain", ["Spain", "the rain in spain"], True, 1.0),
        ("rain in Spain", ["in Spain"], False, 0.8),
        ("", [], True, 1.0),
        ("rain", [], False, 0.0),
        ("", ["rain"], False, 0.0),
        ("the", ["a"], True, 1.0),  # both are nothing: SQuAD 1.1's script says F1 = 0 here
    ],
)
def test_examples(predicted: str, golds: list[str], exact: bool, f1: float) -> None:
    found = answer_scores([predicted], [golds])
    assert (found[0][0], found[1][0]) == (exact, pytest.approx(f1))


def test_lists_of_unequal_lengths_are_refused() -> None:
    with pytest.raises(UsageError) as caught:
        answer_scores(["a"], [])
    assert caught.value.code == "metric-shape"
