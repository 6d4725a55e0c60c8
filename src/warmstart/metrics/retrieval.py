"""Metrics of ranked lists: a query's candidates, each with a relevance (0 is none) and a score.

Equal scores are in no order: every value is the expectation over all orders of the tied, so that a model which gives
one score to everything gets what chance gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from warmstart.errors import DataError, UsageError
from warmstart.metrics.interval import RESAMPLES, Metric, Values, Weights, bootstrap, require_rows

Floats = NDArray[np.float64]


def mrr(
    relevance: Sequence[ArrayLike],
    scores: Sequence[ArrayLike],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    confidence: float = 0.95,
) -> Metric | None:
    """The mean reciprocal rank of the first relevant candidate, with a bootstrap interval over queries.

    `relevance` and `scores` hold one list a query, of one length; what is above 0 is relevant. Queries without a
    relevant candidate are left out; None if there is no other.

    Source: E. Voorhees, "The TREC-8 question answering track report", TREC 1999.
    Raises DataError `no-rows` or `scores-not-finite`, UsageError `metric-shape`, and as `interval.bootstrap` does.

    >>> mrr([[0, 1, 0], [1, 0]], [[0.9, 0.5, 0.1], [0.8, 0.2]]).value
    0.75
    """
    return _mean_over_queries(reciprocal_ranks(relevance, scores), seed, resamples, confidence)


def ndcg(
    relevance: Sequence[ArrayLike],
    scores: Sequence[ArrayLike],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    confidence: float = 0.95,
) -> Metric | None:
    """The mean normalised discounted cumulative gain, with a bootstrap interval over queries; arguments as of `mrr`.

    The gain is the relevance itself, the discount log2(rank + 1), all ranks count: as scikit-learn's `ndcg_score`.

    Sources: K. Järvelin and J. Kekäläinen, "Cumulated gain-based evaluation of IR techniques", TOIS 20 (2002); of ties
    F. McSherry and M. Najork, "Computing information retrieval performance measures efficiently in the presence of tied
    scores", ECIR 2008. Raises as `mrr` does, and DataError `relevance-negative`.

    >>> ndcg([[3, 2, 0]], [[0.9, 0.5, 0.1]]).value
    1.0
    """
    return _mean_over_queries(gains(relevance, scores), seed, resamples, confidence)


def reciprocal_ranks(relevance: Sequence[ArrayLike], scores: Sequence[ArrayLike]) -> Floats:
    """What `mrr` is the mean of: each query's own, NaN for a query without a relevant candidate; shape (queries,).

    >>> reciprocal_ranks([[0, 1, 0], [0, 0]], [[0.9, 0.5, 0.1], [0.8, 0.2]])
    array([0.5, nan])
    """
    return _each_query(_reciprocal_rank, relevance, scores)


def gains(relevance: Sequence[ArrayLike], scores: Sequence[ArrayLike]) -> Floats:
    """What `ndcg` is the mean of: each query's own, NaN for a query without a relevant candidate; shape (queries,).

    >>> gains([[3, 2, 0], [0, 0]], [[0.9, 0.5, 0.1], [0.8, 0.2]])
    array([ 1., nan])
    """
    return _each_query(_normalised_gain, relevance, scores)


def mean(values: ArrayLike, *, seed: int = 0, resamples: int = RESAMPLES, confidence: float = 0.95) -> Metric:
    """The mean of one finite number a row (N,), with a bootstrap interval.

    Raises DataError `no-rows`, and as `interval.bootstrap` does.

    >>> mean([1.0, 0.5, 0.0]).value
    0.5
    """
    numbers = np.asarray(values, np.float64)
    require_rows(numbers.size)

    def statistic(weights: Weights) -> Values:
        return weights.astype(np.float64) @ numbers / weights.sum(axis=1, dtype=np.float64)

    metric = bootstrap(statistic, numbers.size, seed=seed, resamples=resamples, confidence=confidence)
    assert metric is not None, "finite numbers have a mean"
    return metric


def _mean_over_queries(values: Floats, seed: int, resamples: int, confidence: float) -> Metric | None:
    judged = values[~np.isnan(values)]
    return mean(judged, seed=seed, resamples=resamples, confidence=confidence) if judged.size else None


def _each_query(judge: Any, relevance: Sequence[ArrayLike], scores: Sequence[ArrayLike]) -> Floats:
    if len(relevance) != len(scores):
        raise _shapes(f"{len(relevance)} and {len(scores)} queries")
    require_rows(len(relevance))
    lists = [_checked(i, r, s) for i, (r, s) in enumerate(zip(relevance, scores, strict=True))]
    return np.array([judge(*pair) if pair[0].any() else np.nan for pair in lists])


def _checked(query: int, relevance: ArrayLike, scores: ArrayLike) -> tuple[Floats, Floats]:
    found, ranked = np.asarray(relevance, np.float64), np.asarray(scores, np.float64)
    if found.ndim != 1 or found.shape != ranked.shape:
        raise _shapes(f"{found.shape} and {ranked.shape} in query {query}")
    if not (np.isfinite(found).all() and np.isfinite(ranked).all()):
        raise DataError(
            "scores-not-finite",
            "a query has a relevance or a score that is NaN or infinite",
            where=f"query {query}",
            fix="leave that query out, or predict in float32 if the model gave it",
        )
    if (found < 0).any():
        raise DataError(
            "relevance-negative",
            "a relevance is 0 for what does not matter, and larger for what does",
            where=f"query {query}",
            value=float(found.min()),
            fix="shift the labels so that the least is 0",
        )
    return found, ranked


def _reciprocal_rank(relevance: Floats, scores: Floats) -> float:
    best = scores[relevance > 0].max()
    above, tied = int((scores > best).sum()), scores == best
    total, hits = int(tied.sum()), int((relevance[tied] > 0).sum())
    expected, none_yet = 0.0, 1.0
    for place in range(total - hits + 1):  # of the tied in random order: the first relevant one stands here
        here = none_yet * hits / (total - place)
        expected += here / (above + place + 1)
        none_yet -= here
    return expected


def _normalised_gain(relevance: Floats, scores: Floats) -> float:
    discount = 1 / np.log2(np.arange(2, relevance.size + 2))
    _, tie, counts = np.unique(-scores, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    summed = np.concatenate([[0.0], np.cumsum(discount)])
    shared = (summed[ends] - summed[ends - counts]) / counts  # the mean discount of the places that a tie takes up
    ideal = np.sort(relevance)[::-1] @ discount
    return float(relevance @ shared[tie] / ideal)


def _shapes(found: str) -> UsageError:
    return UsageError(
        "metric-shape",
        "ranked lists need one relevance and one score for each candidate",
        value=found,
        fix="give two sequences of lists that agree in length, list by list",
    )
