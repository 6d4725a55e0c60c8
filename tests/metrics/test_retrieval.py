"""Ranked lists: equal to scikit-learn and to the definition, ties in every order counted."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st

from warmstart.errors import DataError, UsageError
from warmstart.metrics import mean, mrr, ndcg

PAIR = st.tuples(st.sampled_from([0, 0, 1, 2, 3.5]), st.sampled_from([-1.0, 0.0, 0.25, 2.0]))
LISTS = st.lists(PAIR, min_size=2, max_size=6)


def value(metric: object, relevance: list[float], scores: list[float]) -> float:
    found = metric([relevance], [scores])  # type: ignore[operator]
    return float("nan") if found is None else found.value


@given(LISTS)
@settings(deadline=None)
def test_ndcg_is_scikit_learns(pairs: list[tuple[float, float]]) -> None:
    relevance, scores = map(list, zip(*pairs, strict=True))
    found = value(ndcg, relevance, scores)
    if not any(relevance):
        assert np.isnan(found)
    else:
        assert found == pytest.approx(sklearn.metrics.ndcg_score([relevance], [scores]))


@given(LISTS)
@settings(deadline=None, max_examples=50)
def test_mrr_is_the_mean_over_all_orders_of_the_tied(pairs: list[tuple[float, float]]) -> None:
    if not any(relevance for relevance, _ in pairs):
        return
    ranks = []
    for order in itertools.permutations(pairs):
        ranked = sorted(order, key=lambda pair: -pair[1])  # stable: the tied stay as permuted
        ranks.append(1 / next(rank for rank, pair in enumerate(ranked, start=1) if pair[0] > 0))
    relevance, scores = map(list, zip(*pairs, strict=True))
    assert value(mrr, relevance, scores) == pytest.approx(np.mean(ranks))


def test_one_score_for_everything_is_chance() -> None:
    relevance = [[1] + [0] * 9] * 5
    constant = mrr(relevance, [[0.5] * 10] * 5)
    assert constant is not None
    assert constant.value == pytest.approx(np.mean(1 / np.arange(1, 11)))
    large = mrr([[1] * 5_000 + [0] * 5_000], [[0.0] * 10_000])
    assert large is not None and large.value == pytest.approx(np.log(2), abs=1e-3)  # sum of 2**-j / j


def test_queries_without_a_relevant_candidate_are_left_out() -> None:
    with_one = mrr([[0, 1], [0, 0], [1, 0]], [[0.9, 0.1]] * 3)
    assert with_one is not None and with_one.value == 0.75
    assert with_one.lo <= with_one.value <= with_one.hi
    assert mrr([[0, 0]], [[1.0, 2.0]]) is None and ndcg([[0]], [[1.0]]) is None


def test_the_interval_covers_the_truth() -> None:
    """The relevant one of five stands at a random place: in 60 samples of 100 queries, some 57 intervals hold it."""
    rng = np.random.default_rng(0)
    truth = np.mean(1 / np.arange(1, 6))
    found = [
        mrr(list(np.eye(5)[rng.integers(0, 5, 100)]), list(rng.random((100, 5))), resamples=200) for _ in range(60)
    ]
    assert sum(metric is not None and metric.lo < truth < metric.hi for metric in found) >= 51


@pytest.mark.parametrize(
    ("relevance", "scores", "code"),
    [
        ([], [], "no-rows"),
        ([[1]], [], "metric-shape"),
        ([[1, 0]], [[0.5]], "metric-shape"),
        ([[[1]]], [[[0.5]]], "metric-shape"),
        ([[1, 0]], [[0.5, float("nan")]], "scores-not-finite"),
        ([[1, -1]], [[0.5, 0.1]], "relevance-negative"),
    ],
)
def test_what_is_no_ranked_list(relevance: list[object], scores: list[object], code: str) -> None:
    for metric in (mrr, ndcg):
        with pytest.raises((DataError, UsageError)) as caught:
            metric(relevance, scores)  # type: ignore[arg-type]
        assert caught.value.code == code


def test_a_mean() -> None:
    values = np.random.default_rng(1).random(300)
    found = mean(values)
    assert found.value == pytest.approx(values.mean())
    assert found.lo < values.mean() < found.hi
    assert found.hi - found.lo == pytest.approx(2 * 1.96 * values.std() / np.sqrt(300), rel=0.15)
    with pytest.raises(DataError):
        mean([])
