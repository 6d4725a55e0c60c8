"""Precision, recall and F1 of labelled spans: an entity is right where its type, start and end are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from warmstart.errors import UsageError
from warmstart.metrics.interval import RESAMPLES, Metric, Statistic, Values, Weights, bootstrap, require_rows

Entity = tuple[str, Hashable, Hashable]  # type, start, end: word or character positions alike
SpanRatio = Literal["f1", "precision", "recall"]
SPAN_RATIOS: tuple[SpanRatio, ...] = ("f1", "precision", "recall")


def entity_scores(
    y_true: Sequence[Iterable[Entity]],
    y_pred: Sequence[Iterable[Entity]],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    confidence: float = 0.95,
) -> dict[str, Metric]:
    """`f1`, `precision` and `recall` over all entities of all rows (micro), `macro_f1` over the types, and each type's
    own as `f1_TYPE`, every one with a bootstrap interval over rows.

    `y_true` and `y_pred` hold the entities of each of N rows; the same entity twice in a row counts once. The values
    are those of seqeval's `classification_report` (https://github.com/chakki-works/seqeval): precision is 0 where
    nothing is predicted, and types are those of either side. Where there is no entity at all, none is defined: {}.

    Raises DataError `no-rows`, UsageError `metric-shape` and those of `interval.bootstrap`.

    >>> found = entity_scores([[("PER", 0, 1), ("LOC", 3, 4)]], [[("PER", 0, 1), ("LOC", 3, 5)]])
    >>> found["f1"].value, found["f1_PER"].value, found["f1_LOC"].value
    (0.5, 1.0, 0.0)
    """
    if len(y_true) != len(y_pred):
        raise UsageError(
            "metric-shape",
            "there must be as many rows of entities predicted as true",
            value=(len(y_true), len(y_pred)),
            fix="give both for the same rows, in the same order",
        )
    types, counts = entity_counts(y_true, y_pred)

    def measure(values: NDArray[np.float64], kind: SpanRatio) -> Metric | None:
        statistic = span_statistic(values, kind)
        return bootstrap(statistic, len(values), seed=seed, resamples=resamples, confidence=confidence)

    total = counts.sum(axis=1)
    found: dict[str, Metric | None] = {kind: measure(total, kind) for kind in SPAN_RATIOS}
    found["macro_f1"] = measure(counts, "f1") if types else None
    found |= {f"f1_{name}": measure(counts[:, i], "f1") for i, name in enumerate(types)}
    return {name: metric for name, metric in found.items() if metric is not None}


def span_statistic(counts: NDArray[Any], kind: SpanRatio) -> Statistic:
    """F1, precision or recall as a function of weights (B, N); `counts` as of `entity_counts`: (N, 3), or (N, types, 3)
    for the mean over the types that a resample holds."""
    values = np.asarray(counts, np.float64)
    require_rows(len(values))

    def statistic(weights: Weights) -> Values:
        drawn = np.tensordot(weights.astype(np.float64), values, axes=1)  # (B, …, 3)
        defined = drawn[..., 1:].sum(axis=-1) > 0
        ratios = np.where(defined, _ratio(drawn, kind), np.nan)
        return _mean(ratios) if ratios.ndim > 1 else ratios

    return statistic


def entity_counts(
    y_true: Sequence[Iterable[Entity]], y_pred: Sequence[Iterable[Entity]], types: Sequence[str] | None = None
) -> tuple[list[str], NDArray[np.float64]]:
    """The types, and how many entities of each are right, predicted and true in each row: (N, types, 3).

    `types` are all there may be, in their order; None: those that occur, sorted.

    >>> entity_counts([[("PER", 0, 1)]], [[("PER", 0, 1), ("LOC", 3, 5)]])
    (['LOC', 'PER'], array([[[0., 1., 0.],
            [1., 1., 1.]]]))
    """
    rows = [(set(true), set(pred)) for true, pred in zip(y_true, y_pred, strict=True)]
    names = list(types) if types is not None else sorted({entity[0] for true, pred in rows for entity in true | pred})
    place = {name: i for i, name in enumerate(names)}
    counts = np.zeros((len(rows), len(names), 3))
    for row, (true, pred) in enumerate(rows):
        for column, entities in enumerate((true & pred, pred, true)):
            for name, count in Counter(entity[0] for entity in entities).items():
                counts[row, place[name], column] = count
    return names, counts


def _ratio(counts: NDArray[np.float64], kind: SpanRatio) -> NDArray[np.float64]:
    right, predicted, true = np.moveaxis(counts, -1, 0)
    part, whole = {"f1": (2 * right, predicted + true), "precision": (right, predicted), "recall": (right, true)}[kind]
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)


def _mean(ratios: NDArray[np.float64]) -> Values:
    """The mean over the types that a resample holds, NaN where it holds none: (B, types) to (B,)."""
    held = ~np.isnan(ratios)
    sums = np.where(held, ratios, 0).sum(axis=1)
    return np.divide(sums, held.sum(axis=1), out=np.full(len(ratios), np.nan), where=held.any(axis=1))


def tag_accuracy(
    right: Sequence[int],
    total: Sequence[int],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    confidence: float = 0.95,
) -> Metric | None:
    """The share of tags that are right over all rows, given how many are in each row, with a bootstrap interval over
    rows: the tags of a row are not independent of each other. None where there is no tag.

    Raises as `entity_scores`.

    >>> tag_accuracy([2, 3], [2, 4]).value
    0.8333333333333334
    """
    if len(right) != len(total):
        raise UsageError(
            "metric-shape",
            "there must be as many counts of right tags as of all tags",
            value=(len(right), len(total)),
            fix="give both for the same rows, in the same order",
        )
    counts = np.array([right, total], dtype=np.float64).T  # (N, 2)

    def statistic(weights: Weights) -> Values:
        part, whole = (weights.astype(np.float64) @ counts).T
        return np.divide(part, whole, out=np.full_like(whole, np.nan), where=whole > 0)

    return bootstrap(statistic, len(counts), seed=seed, resamples=resamples, confidence=confidence)
