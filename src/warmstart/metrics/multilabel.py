"""Metrics of multi-label classification: y_true and y_pred (N, L) of 0 and 1. AUROC is in `ranking`."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from warmstart.errors import UsageError
from warmstart.metrics.interval import RESAMPLES, Metric, Statistic, Values, Weights, bootstrap, require_rows, wilson

Floats = NDArray[np.float64]


def exact_match(y_true: ArrayLike, y_pred: ArrayLike, *, confidence: float = 0.95) -> Metric:
    """Subset accuracy: the share of rows whose whole set of labels is right, with Wilson's interval.

    Raises DataError `no-rows`, UsageError `metric-shape` or `metric-labels`.

    >>> exact_match([[1, 0], [1, 1]], [[1, 0], [0, 1]]).value
    0.5
    """
    true, pred = _indicators(y_true, y_pred)
    return wilson(int((true == pred).all(axis=1).sum()), len(true), confidence=confidence)


def micro_f1(
    y_true: ArrayLike, y_pred: ArrayLike, *, seed: int = 0, resamples: int = RESAMPLES, confidence: float = 0.95
) -> Metric:
    """F1 over all (row, label) pairs together, with a bootstrap interval over rows. 0 if no pair is ever positive.

    Raises as `exact_match` and `interval.bootstrap` do.

    >>> micro_f1([[1, 0], [1, 1]], [[1, 0], [0, 1]]).value
    0.8
    """
    statistic = micro_f1_statistic(y_true, y_pred)
    return _defined(
        bootstrap(statistic, len(np.asarray(y_true)), seed=seed, resamples=resamples, confidence=confidence)
    )


def micro_f1_statistic(y_true: ArrayLike, y_pred: ArrayLike) -> Statistic:
    """`micro_f1` as a function of weights (B, N)."""
    true, pred = _indicators(y_true, y_pred)
    counts = np.stack([2 * (true * pred).sum(axis=1), (true + pred).sum(axis=1)], axis=1)  # (N, 2)

    def statistic(weights: Weights) -> Values:
        part, whole = (weights.astype(np.float64) @ counts).T
        return np.divide(part, whole, out=np.zeros_like(whole), where=whole > 0)

    return statistic


def multilabel_macro_f1(
    y_true: ArrayLike, y_pred: ArrayLike, *, seed: int = 0, resamples: int = RESAMPLES, confidence: float = 0.95
) -> Metric:
    """The mean over all L labels of each label's F1, with a bootstrap interval over rows.

    A label neither present nor predicted has F1 0, as in scikit-learn with `zero_division=0`. Raises as `micro_f1`.

    >>> multilabel_macro_f1([[1, 0], [1, 1]], [[1, 0], [0, 1]]).value
    0.8333333333333333
    """
    statistic = multilabel_macro_f1_statistic(y_true, y_pred)
    return _defined(
        bootstrap(statistic, len(np.asarray(y_true)), seed=seed, resamples=resamples, confidence=confidence)
    )


def multilabel_macro_f1_statistic(y_true: ArrayLike, y_pred: ArrayLike) -> Statistic:
    """`multilabel_macro_f1` as a function of weights (B, N)."""
    true, pred = _indicators(y_true, y_pred)
    both, either = 2 * true * pred, true + pred  # (N, L)

    def statistic(weights: Weights) -> Values:
        exact = weights.astype(np.float64)
        part, whole = exact @ both, exact @ either  # (B, L)
        return np.divide(part, whole, out=np.zeros_like(whole), where=whole > 0).mean(axis=1)

    return statistic


def _indicators(y_true: ArrayLike, y_pred: ArrayLike) -> tuple[Floats, Floats]:
    true, pred = np.asarray(y_true), np.asarray(y_pred)
    require_rows(true.shape[0] if true.ndim else 0)
    if true.ndim != 2 or true.shape != pred.shape or true.shape[1] == 0:
        raise UsageError(
            "metric-shape",
            "multi-label metrics take y_true and y_pred of one shape (N, L)",
            value=f"{true.shape} and {pred.shape}",
            fix="give a row of L zeros and ones for each example",
        )
    if not all(y.dtype.kind in "iub" and y.min() >= 0 and y.max() <= 1 for y in (true, pred)):
        raise UsageError(
            "metric-labels",
            "multi-label metrics take zeros and ones",
            value=f"{true.dtype} and {pred.dtype}",
            fix="cut scores at a threshold first: (scores >= 0.5).astype(int)",
        )
    return true.astype(np.float64), pred.astype(np.float64)


def _defined(metric: Metric | None) -> Metric:
    assert metric is not None, "F1 is 0 where it has no other value"
    return metric
