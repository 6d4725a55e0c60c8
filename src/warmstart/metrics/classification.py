"""Metrics of single-label classification: one class a row, classes numbered from 0.

Every function takes arrays over the same N rows and gives a `Metric` with its interval. F1 and MCC are functions of
three counts per class (rows of it, rows given it, rows right), so a resample costs three grouped sums.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from warmstart.errors import UsageError
from warmstart.metrics.interval import RESAMPLES, Metric, Statistic, Values, Weights, bootstrap, require_rows, wilson

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ClassScore:
    """One class's precision, recall, F1 and support (rows that truly have it). A ratio over nothing is 0."""

    label: int
    precision: float
    recall: float
    f1: float
    support: int

    def as_dict(self) -> dict[str, float]:
        """The fields, JSON-able."""
        return asdict(self)


def accuracy(y_true: ArrayLike, y_pred: ArrayLike, *, confidence: float = 0.95) -> Metric:
    """The share of rows (N,) whose predicted class is the true one, with Wilson's interval.

    Raises DataError `no-rows`, UsageError `metric-shape` or `metric-labels`.

    >>> accuracy([0, 1, 1, 0], [0, 1, 0, 0])
    Metric(value=0.75, lo=0.3006..., hi=0.9544...)
    """
    true, pred = classes_of(y_true, y_pred)
    return wilson(int((true == pred).sum()), true.size, confidence=confidence)


def macro_f1(
    y_true: ArrayLike, y_pred: ArrayLike, *, seed: int = 0, resamples: int = RESAMPLES, confidence: float = 0.95
) -> Metric:
    """The mean F1 over the classes that occur in y_true or y_pred (N,), with a bootstrap interval.

    A class never predicted, or never right, has F1 0 (scikit-learn's `zero_division=0`). A resample averages over the
    classes that occur in it. Raises as `accuracy` and `interval.bootstrap` do.

    >>> macro_f1([0, 1, 1, 0], [0, 1, 0, 0]).value
    0.7333333333333334
    """
    true, pred = classes_of(y_true, y_pred)
    statistic = macro_f1_statistic(true, pred)
    metric = bootstrap(statistic, true.size, seed=seed, resamples=resamples, confidence=confidence)
    assert metric is not None, "at least one class occurs"
    return metric


def macro_f1_statistic(y_true: ArrayLike, y_pred: ArrayLike) -> Statistic:
    """`macro_f1` as a function of weights (B, N)."""
    sums = _ClassSums.of(*classes_of(y_true, y_pred))

    def statistic(weights: Weights) -> Values:
        rows, given, right = sums(weights)  # (B, K) each
        total = rows + given
        f1 = np.divide(2 * right, total, out=np.zeros_like(total), where=total > 0)
        return f1.sum(axis=1) / (total > 0).sum(axis=1)

    return statistic


def matthews(
    y_true: ArrayLike, y_pred: ArrayLike, *, seed: int = 0, resamples: int = RESAMPLES, confidence: float = 0.95
) -> Metric:
    """The Matthews correlation coefficient (MCC), from -1 to 1, for two or more classes, with a bootstrap interval.

    0 where either side holds a single class, as scikit-learn has it. Source: J. Gorodkin, "Comparing two K-category
    assignments by a K-category correlation coefficient", Comput. Biol. Chem. 28 (2004). Raises as `macro_f1` does.

    >>> matthews([0, 1, 1, 0], [0, 1, 0, 0]).value
    0.5773502691896258
    """
    true, pred = classes_of(y_true, y_pred)
    statistic = matthews_statistic(true, pred)
    metric = bootstrap(statistic, true.size, seed=seed, resamples=resamples, confidence=confidence)
    assert metric is not None, "MCC is 0 where it has no other value"
    return metric


def matthews_statistic(y_true: ArrayLike, y_pred: ArrayLike) -> Statistic:
    """`matthews` as a function of weights (B, N)."""
    sums = _ClassSums.of(*classes_of(y_true, y_pred))

    def statistic(weights: Weights) -> Values:
        rows, given, right = sums(weights)
        n = rows.sum(axis=1)
        covariance = right.sum(axis=1) * n - (rows * given).sum(axis=1)
        spread = (n**2 - (rows**2).sum(axis=1)) * (n**2 - (given**2).sum(axis=1))
        return np.divide(covariance, np.sqrt(spread), out=np.zeros_like(covariance), where=spread > 0)

    return statistic


def confusion(y_true: ArrayLike, y_pred: ArrayLike, n: int) -> Ints:
    """How many rows of each true class (first axis) were given each class (second axis): (n, n) int64.

    Raises UsageError `metric-labels` for a class outside 0 … n - 1.

    >>> confusion([0, 1, 1], [0, 1, 0], 2)
    array([[1, 0],
           [1, 1]])
    """
    true, pred = classes_of(y_true, y_pred)
    if (top := int(max(true.max(), pred.max()))) >= n:
        raise UsageError(
            "metric-labels",
            f"classes are numbered from 0 to {n - 1} here",
            value=top,
            fix="give n as the number of labels of the model",
        )
    return np.bincount(true * n + pred, minlength=n * n).reshape(n, n)


def per_class(y_true: ArrayLike, y_pred: ArrayLike, n: int) -> tuple[ClassScore, ...]:
    """Precision, recall, F1 and support of each of the n classes, in their order. Raises as `confusion` does.

    >>> per_class([0, 1, 1], [0, 1, 0], 2)[1]
    ClassScore(label=1, precision=1.0, recall=0.5, f1=0.6666666666666666, support=2)
    """
    table = confusion(y_true, y_pred, n)
    right, rows, given = table.diagonal(), table.sum(axis=1), table.sum(axis=0)
    precision, recall, f1 = (_ratio(right, given), _ratio(right, rows), _ratio(2 * right, rows + given))
    return tuple(ClassScore(k, float(precision[k]), float(recall[k]), float(f1[k]), int(rows[k])) for k in range(n))


def classes_of(y_true: ArrayLike, y_pred: ArrayLike) -> tuple[Ints, Ints]:
    """Both arrays as int64 (N,), checked: the same length, at least one row, whole numbers from 0."""
    true, pred = (_classes(name, y) for name, y in (("y_true", y_true), ("y_pred", y_pred)))
    if true.shape != pred.shape:
        raise UsageError(
            "metric-shape",
            "y_true and y_pred must be as long as each other",
            value=f"{true.size} and {pred.size} rows",
            fix="give one predicted and one true class for each row",
        )
    require_rows(true.size)
    return true, pred


def _classes(name: str, y: ArrayLike) -> Ints:
    array = np.asarray(y)
    if array.size == 0:
        return np.zeros(0, np.int64)
    if array.ndim != 1:
        raise UsageError(
            "metric-shape", f"{name} must have shape (N,)", value=array.shape, fix="give one class for each row"
        )
    if array.dtype.kind not in "iub" or array.min() < 0:
        raise UsageError(
            "metric-labels",
            f"{name} must hold class numbers, whole and from 0",
            value=array.dtype.name if array.dtype.kind not in "iub" else int(array.min()),
            fix="map label names to their numbers first (label2id of the checkpoint)",
        )
    return array.astype(np.int64)


def _ratio(part: NDArray[Any], whole: NDArray[Any]) -> NDArray[np.float64]:
    return np.divide(part, whole, out=np.zeros(part.shape), where=whole > 0)


@dataclass(frozen=True, slots=True)
class _ClassSums:
    """Sorted once by class, so that each weighted count is one `reduceat` over neighbours: O(B N), whatever K is."""

    n: int
    classes: int  # K: classes that occur
    by_true: tuple[Ints, Ints, Ints]  # order of the rows, where each class starts, which class that is
    by_pred: tuple[Ints, Ints, Ints]
    by_right: tuple[Ints, Ints, Ints]

    @staticmethod
    def of(true: Ints, pred: Ints) -> _ClassSums:
        names, dense = np.unique(np.concatenate([true, pred]), return_inverse=True)
        true, pred = dense[: true.size], dense[true.size :]
        right = np.flatnonzero(true == pred)
        grouped = _grouped(true[right])
        return _ClassSums(
            true.size, names.size, _grouped(true), _grouped(pred), (right[grouped[0]], grouped[1], grouped[2])
        )

    def __call__(self, weights: Weights) -> tuple[Values, Values, Values]:
        """Rows of each class, rows given it, rows right: three (B, K) float64 from weights (B, N)."""
        rows, given, right = (self._sums(weights, by) for by in (self.by_true, self.by_pred, self.by_right))
        return rows, given, right

    def _sums(self, weights: Weights, by: tuple[Ints, Ints, Ints]) -> Values:
        order, starts, which = by
        out = np.zeros((len(weights), self.classes))
        if order.size:
            out[:, which] = np.add.reduceat(weights.take(order, axis=1), starts, axis=1)
        return out


def _grouped(keys: Ints) -> tuple[Ints, Ints, Ints]:
    order = np.argsort(keys, kind="stable")
    which, starts = np.unique(keys[order], return_index=True)
    return order, starts, which
