"""The area under the ROC curve: two classes, more (one against the rest), and several labels a row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from warmstart.errors import DataError, UsageError
from warmstart.metrics.interval import RESAMPLES, Metric, Statistic, Values, Weights, bootstrap, require_rows

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


def auroc(
    y_true: ArrayLike, scores: ArrayLike, *, seed: int = 0, resamples: int = RESAMPLES, confidence: float = 0.95
) -> Metric | None:
    """The area under the ROC curve with a bootstrap interval, or None where it is undefined.

    Two classes: y_true (N,) of 0 and 1 and scores (N,) or (N, 2), of which the second column counts. More: y_true (N,)
    and scores (N, C); the mean over the classes that occur in y_true of each against the rest. Several labels a row:
    y_true (N, L) of 0 and 1 and scores (N, L); the mean over the labels that have rows with and without them. None if
    no class or label has both. Equal scores count half. A resample averages over what is defined in it.

    How it is fast: the area is a rank sum, sum over positives of (weight below + half the weight tied). Each class's
    rows are sorted once, from the top down to its lowest positive; a resample only sums its weights between the
    positives' scores (`reduceat`), so 1000 resamples cost O(1000 N C) additions at worst and no sorting.

    Source: J. Hanley and B. McNeil, "The meaning and use of the area under a ROC curve", Radiology 143 (1982).
    Raises DataError `no-rows` or `scores-not-finite`, UsageError `metric-shape` or `metric-labels`.

    >>> auroc([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8]).value
    0.75
    >>> auroc([1, 1], [0.2, 0.9]) is None
    True
    """
    statistic = auroc_statistic(y_true, scores)
    n = len(np.asarray(y_true))
    return statistic and bootstrap(statistic, n, seed=seed, resamples=resamples, confidence=confidence)


def auroc_statistic(y_true: ArrayLike, scores: ArrayLike) -> Statistic | None:
    """`auroc` as a function of weights (B, N)."""
    positive, score = _columns(np.asarray(y_true), np.asarray(scores, np.float64))
    curves = [_Curve.of(p, s) for p, s in zip(positive, score, strict=True) if p.any() and not p.all()]
    require_rows(positive.shape[1])
    if not curves:
        return None

    def statistic(weights: Weights) -> Values:
        total = weights.sum(axis=1, dtype=np.float64)
        areas, defined = np.zeros(len(weights)), np.zeros(len(weights))
        for curve in curves:
            area = curve(weights, total)
            known = ~np.isnan(area)
            areas[known] += area[known]
            defined += known
        return np.divide(areas, defined, out=np.full(len(weights), np.nan), where=defined > 0)

    return statistic


def _columns(true: NDArray[Any], scores: Floats) -> tuple[NDArray[np.bool_], Floats]:
    """Who is positive and with which score, one row per class or label: two (C, N) arrays."""
    require_rows(true.shape[0] if true.ndim else 0)
    if scores.ndim == 2 and true.ndim == 1 and scores.shape[1] == 2:
        scores = scores[:, 1]
    if true.ndim not in (1, 2) or scores.shape[:1] != true.shape[:1] or (true.ndim == 2 and true.shape != scores.shape):
        raise UsageError(
            "metric-shape",
            "auroc takes y_true (N,) with scores (N,) or (N, C), or both of shape (N, L)",
            value=f"{true.shape} and {scores.shape}",
            fix="give one row of scores for each true label",
        )
    if not np.isfinite(scores).all():
        row = int(np.argwhere(~np.isfinite(scores))[0][0])
        raise DataError(
            "scores-not-finite",
            "a score is NaN or infinite, so rows cannot be ranked by it",
            where=f"row {row}",
            fix="look for non-finite weights in the model, or predict in float32",
        )
    several = true.ndim == 1 and scores.ndim == 2
    top = scores.shape[1] - 1 if several else 1
    if true.dtype.kind not in "iub" or true.min() < 0 or true.max() > top:
        raise UsageError(
            "metric-labels",
            f"y_true must hold whole numbers from 0 to {top} here",
            value=f"{true.min()} … {true.max()}",
            fix="map label names to their numbers first, one column of scores each",
        )
    if several:
        return np.arange(top + 1)[:, None] == true, scores.T
    return np.atleast_2d(true.T == 1), np.atleast_2d(scores.T)


@dataclass(frozen=True, slots=True)
class _Curve:
    """One class against the rest, sorted once. K: distinct scores among the positives, from the highest down."""

    order: NDArray[np.int32]  # rows from the top score down to the lowest positive's
    starts: Ints  # where a run between or at the positives' scores begins in `order`
    tied: Ints  # (K,): which run holds the rows at the positives' k-th score
    positives: Ints  # positive rows, from the highest score down
    positive_starts: Ints  # (K,): where the k-th score begins among them

    @staticmethod
    def of(positive: NDArray[np.bool_], score: Floats) -> _Curve:
        order = np.argsort(-score, kind="stable")
        down = -score[order]  # ascending
        positives = order[positive[order]]
        levels, positive_starts = np.unique(-score[positives], return_index=True)
        first = np.asarray(np.searchsorted(down, levels, "left"))
        end = np.asarray(np.searchsorted(down, levels, "right"))
        starts = np.unique(np.concatenate([[0], first, end[:-1]]))
        tied = np.asarray(np.searchsorted(starts, first))
        return _Curve(order[: end[-1]].astype(np.int32), starts, tied, positives, positive_starts)

    def __call__(self, weights: Weights, total: Values) -> Values:
        """The area at each of the weights (B, N), whose sums are `total` (B,): (B,), NaN where one side is empty."""
        runs = np.add.reduceat(weights.take(self.order, axis=1), self.starts, axis=1).astype(np.float64)
        tied = runs[:, self.tied]  # (B, K)
        above = (np.cumsum(runs, axis=1) - runs)[:, self.tied]
        right = np.add.reduceat(weights.take(self.positives, axis=1), self.positive_starts, axis=1).astype(np.float64)
        count = right.sum(axis=1)
        below = (right * (total[:, None] - above - tied / 2)).sum(axis=1)
        pairs = count * (total - count)
        # Positives outrank positives in half of their own pairs: count**2 / 2, which is not part of the area.
        return np.divide(below - count**2 / 2, pairs, out=np.full(len(total), np.nan), where=pairs > 0)
