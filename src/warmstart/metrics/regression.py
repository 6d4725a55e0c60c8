"""Metrics of regression: y_true and y_pred are (N,) real numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from warmstart.errors import DataError, UsageError
from warmstart.metrics.interval import RESAMPLES, Metric, Statistic, Values, Weights, bootstrap, require_rows

Floats = NDArray[np.float64]


def pearson(
    y_true: ArrayLike, y_pred: ArrayLike, *, seed: int = 0, resamples: int = RESAMPLES, confidence: float = 0.95
) -> Metric | None:
    """Pearson's correlation with a bootstrap interval over rows; None if either side is constant.

    Raises DataError `no-rows` or `scores-not-finite`, UsageError `metric-shape`, and as `interval.bootstrap` does.

    >>> round(pearson([1.0, 2.0, 3.0, 4.0], [1.0, 3.0, 2.0, 4.0]).value, 12)
    0.8
    """
    statistic = pearson_statistic(y_true, y_pred)
    n = len(np.asarray(y_true))
    return statistic and bootstrap(statistic, n, seed=seed, resamples=resamples, confidence=confidence)


def pearson_statistic(y_true: ArrayLike, y_pred: ArrayLike) -> Statistic | None:
    """`pearson` as a function of weights (B, N)."""
    true, pred = _pair(y_true, y_pred)
    if _constant(true) or _constant(pred):
        return None
    x, y = _standard(true), _standard(pred)
    moments = np.stack([np.ones_like(x), x, y, x * x, y * y, x * y], axis=1)  # (N, 6)

    def statistic(weights: Weights) -> Values:
        n, sx, sy, xx, yy, xy = (weights.astype(np.float64) @ moments).T
        return _correlation(xy - sx * sy / n, xx - sx * sx / n, yy - sy * sy / n, n)

    return statistic


def spearman(
    y_true: ArrayLike, y_pred: ArrayLike, *, seed: int = 0, resamples: int = RESAMPLES, confidence: float = 0.95
) -> Metric | None:
    """Spearman's rank correlation, ties at their average rank, with a bootstrap interval; None if a side is constant.

    Both sides are sorted once; the ranks of a resample are running sums of its weights. Raises as `pearson` does.

    >>> round(spearman([1.0, 2.0, 3.0, 4.0], [10.0, 30.0, 20.0, 400.0]).value, 12)
    0.8
    """
    statistic = spearman_statistic(y_true, y_pred)
    n = len(np.asarray(y_true))
    return statistic and bootstrap(statistic, n, seed=seed, resamples=resamples, confidence=confidence)


def spearman_statistic(y_true: ArrayLike, y_pred: ArrayLike) -> Statistic | None:
    """`spearman` as a function of weights (B, N)."""
    true, pred = _pair(y_true, y_pred)
    if _constant(true) or _constant(pred):
        return None
    rank_true, rank_pred = _Ranks.of(true), _Ranks.of(pred)

    def statistic(weights: Weights) -> Values:
        exact = weights.astype(np.float64)
        n = exact.sum(axis=1)
        x, y = (ranks(exact) / n[:, None] for ranks in (rank_true, rank_pred))  # (B, N), from -1/2 to 1/2
        xy, xx, yy = ((exact * a * b).sum(axis=1) for a, b in ((x, y), (x, x), (y, y)))
        return _correlation(xy, xx, yy, n)

    return statistic


def mae(
    y_true: ArrayLike, y_pred: ArrayLike, *, seed: int = 0, resamples: int = RESAMPLES, confidence: float = 0.95
) -> Metric:
    """The mean absolute error, in the units of the target, with a bootstrap interval. Raises as `pearson` does.

    >>> mae([1.0, 2.0], [1.5, 2.0]).value
    0.25
    """
    true, pred = _pair(y_true, y_pred)
    errors = np.abs(true - pred)

    def statistic(weights: Weights) -> Values:
        return weights.astype(np.float64) @ errors / weights.sum(axis=1, dtype=np.float64)

    metric = bootstrap(statistic, true.size, seed=seed, resamples=resamples, confidence=confidence)
    assert metric is not None, "finite numbers have a mean"
    return metric


@dataclass(frozen=True, slots=True)
class _Ranks:
    """Rows sorted once by value; `group` is the place of a row's value among the distinct values."""

    order: NDArray[np.int64]
    starts: NDArray[np.int64]
    group: NDArray[np.int64]

    @staticmethod
    def of(values: Floats) -> _Ranks:
        order = np.argsort(values, kind="stable")
        _, starts, group = np.unique(values[order], return_index=True, return_inverse=True)
        back = np.empty_like(group)
        back[order] = group
        return _Ranks(order, starts, back)

    def __call__(self, weights: Floats) -> Floats:
        """Average ranks of the rows under weights (B, N), shifted to a weighted mean of zero: (B, N)."""
        sums = np.add.reduceat(weights.take(self.order, axis=1), self.starts, axis=1)
        middle = np.cumsum(sums, axis=1) - sums / 2  # average rank - 1/2: a shift changes no correlation
        return (middle - weights.sum(axis=1, keepdims=True) / 2).take(self.group, axis=1)


def _pair(y_true: ArrayLike, y_pred: ArrayLike) -> tuple[Floats, Floats]:
    true, pred = np.asarray(y_true, np.float64), np.asarray(y_pred, np.float64)
    require_rows(true.shape[0] if true.ndim else 0)
    if true.ndim != 1 or true.shape != pred.shape:
        raise UsageError(
            "metric-shape",
            "regression metrics take y_true and y_pred of one shape (N,)",
            value=f"{true.shape} and {pred.shape}",
            fix="give one predicted and one true number for each row",
        )
    for name, y in (("y_true", true), ("y_pred", pred)):
        if (bad := np.flatnonzero(~np.isfinite(y))).size:
            raise DataError(
                "scores-not-finite",
                f"{name} holds a number that is NaN or infinite",
                where=f"row {bad[0]}",
                value=float(y[bad[0]]),
                fix="leave that row out, or predict in float32 if the model gave it",
            )
    return true, pred


def _constant(values: Floats) -> bool:
    return bool(values.min() == values.max())


def _standard(values: Floats) -> Floats:
    """Centred and scaled, so that the sums of squares of a resample lose no digits."""
    # To [0, 1] first: a spread of 1e200 would overflow when squared, one of 1e-200 vanish.
    room = 0.25 if np.abs(values).max() > 1e300 else 1.0
    unit = values * room - values.min() * room
    unit = unit / unit.max()
    return np.asarray(unit - unit.mean())


def _correlation(xy: NDArray[Any], xx: NDArray[Any], yy: NDArray[Any], n: NDArray[Any]) -> Values:
    """The correlation from centred sums, NaN where a resample is constant (up to rounding)."""
    moves = (xx > 1e-14 * n) & (yy > 1e-14 * n)
    r = np.divide(xy, np.sqrt(np.maximum(xx, 0)) * np.sqrt(np.maximum(yy, 0)), out=np.full(len(n), np.nan), where=moves)
    return np.asarray(np.clip(r, -1.0, 1.0))
