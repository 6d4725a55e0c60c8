"""A metric that can be computed again: which statistic it is, and which numbers of each row it reads.

A `Measure` is data, so that it can be stored beside the rows' numbers ("columns": arrays whose first axis is the row).
Every statistic takes weights, how often each row counts; so the same columns give the value, its interval, and what two
models' metrics would be on any resample of the rows, or with some rows' predictions exchanged between them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from warmstart.metrics.classification import macro_f1_statistic, matthews_statistic
from warmstart.metrics.entities import span_statistic
from warmstart.metrics.interval import Metric, Statistic, Values, Weights, bootstrap, wilson
from warmstart.metrics.language import perplexity_statistic
from warmstart.metrics.multilabel import micro_f1_statistic, multilabel_macro_f1_statistic
from warmstart.metrics.ranking import auroc_statistic
from warmstart.metrics.regression import pearson_statistic, spearman_statistic
from warmstart.metrics.translation import bleu_statistic, chrf_statistic

Array = NDArray[Any]
Columns = Mapping[str, Array]

Kind = Literal[
    "share", "mean", "mean-absolute", "ratio", "perplexity", "macro-f1", "mcc", "micro-f1", "multilabel-macro-f1",
    "auroc", "pearson", "spearman", "list-auroc", "list-spearman", "span-f1", "span-precision", "span-recall",
    "span-macro-f1", "bleu", "chrf",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Measure:
    """One metric of N rows.

    `kind` says the statistic and what it `reads`, in this order; N is the first axis of each column:

    share             right (N,) bool; counted (N,) bool, all rows if it is left out
    mean              values (N,); NaN is left out
    mean-absolute     values (N,)
    ratio             part (N,), whole (N,): the sum of one over the sum of the other
    perplexity        mean loss a token (N,), tokens (N,)
    macro-f1, mcc     true class (N,), predicted class (N,)
    micro-f1, multilabel-macro-f1   true (N, L), predicted (N, L), of 0 and 1
    auroc             as `metrics.auroc` takes them
    pearson, spearman true (N,), predicted (N,)
    list-auroc, list-spearman       true (N, M), score (N, M): lists of different lengths, NaN after their ends
    bleu, chrf        counts of `bleu_counts` (N, 4, 3) or `chrf_counts` (N, 6, 3)
    span-…            counts (N, types, 3) of `entity_counts`; `index` is one type's, None is over all types

    `unit` names a column (N,) of numbers: rows with one number are drawn and exchanged together, as those of a query.
    """

    kind: Kind
    reads: tuple[str, ...]
    index: int | None = None
    unit: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """The fields, JSON-able."""
        return asdict(self)

    def of(self, columns: Columns) -> Metric | None:
        """The value with its 95 % interval: Wilson's for a share, a bootstrap's otherwise; None where it is undefined.

        >>> Measure("share", ("correct",)).of({"correct": np.array([True, True, False, True])})
        Metric(value=0.75, lo=0.3006..., hi=0.9544...)
        """
        if self.kind == "share":
            right, counted = shares(self, columns)
            return wilson(int(right.sum()), int(counted.sum())) if counted.any() else None
        statistic = self.statistic(columns)
        return None if statistic is None else bootstrap(statistic, self.units(columns))

    def units(self, columns: Columns) -> int:
        """How many rows, or groups of rows, are drawn."""
        return len(columns[self.reads[0]]) if self.unit is None else int(columns[self.unit].max()) + 1

    def statistic(self, columns: Columns) -> Statistic | None:
        """The metric as a function of weights (B, units); None where these rows do not define it."""
        statistic = _MAKERS[self.kind](*self._read(columns))
        if statistic is None or self.unit is None:
            return statistic
        unit, of_rows = columns[self.unit].astype(np.int64), statistic
        return lambda weights: of_rows(weights.take(unit, axis=1))

    def together(self, a: Columns, b: Columns) -> Statistic | None:
        """The metric of predictions taken from two models: a function of weights (B, 2 units), those of `a` first.

        Where only the order or the linear scale of scores counts, each model's are brought to one scale before.
        """
        columns = {}
        for place, name in enumerate(self.reads):
            sides = a[name], b[name]
            if place == 1 and self.kind in _SCALES:
                sides = _SCALES[self.kind](sides[0]), _SCALES[self.kind](sides[1])
            columns[name] = _stack(*sides)
        if self.unit is not None:
            columns[self.unit] = np.concatenate([a[self.unit], b[self.unit] + self.units(a)])
        return self.statistic(columns)

    def differs(self, a: Columns, b: Columns) -> NDArray[np.bool_]:
        """Which units the two models' columns differ in, hence which an exchange would change: (units,)."""
        rows = np.zeros(len(a[self.reads[0]]), np.bool_)
        for x, y in zip(self._read(a), self._read(b), strict=True):
            both = _stack(x, y).reshape(2, len(x), -1)
            same = (both[0] == both[1]) | ((both[0] != both[0]) & (both[1] != both[1]))  # NaN equals NaN here
            rows |= ~same.all(axis=1)
        if self.unit is None:
            return rows
        return np.bincount(a[self.unit].astype(np.int64), weights=rows, minlength=self.units(a)) > 0

    def _read(self, columns: Columns) -> list[Array]:
        arrays = [columns[name] for name in self.reads]
        return arrays if self.index is None else [array[:, self.index] for array in arrays]


def shares(measure: Measure, columns: Columns) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Of a measure of kind "share": which rows are right, and which count: two (N,)."""
    right = columns[measure.reads[0]].astype(np.bool_)
    counted = columns[measure.reads[1]].astype(np.bool_) if len(measure.reads) > 1 else np.ones_like(right)
    return right & counted, counted


def _stack(a: Array, b: Array) -> Array:
    """Both, one after the other; lists of different lengths (N, M) are filled up with NaN."""
    if a.ndim == b.ndim == 2 and a.shape[1] != b.shape[1]:
        width = max(a.shape[1], b.shape[1])
        a, b = (np.pad(x, ((0, 0), (0, width - x.shape[1])), constant_values=np.nan) for x in (a, b))
    return np.concatenate([a, b])


# --- statistics ---------------------------------------------------------------------------------------------------


def ratio_statistic(part: Array, whole: Array) -> Statistic:
    """The sum of `part` over the sum of `whole`, both (N,), as a function of weights (B, N); NaN over nothing."""
    sums = np.stack([part, whole], axis=1).astype(np.float64)

    def statistic(weights: Weights) -> Values:
        top, below = (weights.astype(np.float64) @ sums).T
        return np.divide(top, below, out=np.full_like(below, np.nan), where=below > 0)

    return statistic


def _mean(values: Array) -> Statistic:
    known = ~np.isnan(values.astype(np.float64))
    return ratio_statistic(np.where(known, values, 0), known)


def _share(right: Array, counted: Array | None = None) -> Statistic:
    every = np.ones(len(right)) if counted is None else counted
    return ratio_statistic(right.astype(np.float64) * every, every)


def _of_lists(statistic_of: Callable[[Array, Array], Statistic | None]) -> Callable[[Array, Array], Statistic | None]:
    """A statistic of the entries of lists, which have the weight of their row."""

    def make(true: Array, scores: Array) -> Statistic | None:
        held = ~np.isnan(true)
        of_entries, row = statistic_of(true[held], scores[held]), np.nonzero(held)[0]
        return of_entries and (lambda weights: of_entries(weights.take(row, axis=1)))

    return make


_MAKERS: Mapping[Kind, Callable[..., Statistic | None]] = {
    "share": _share,
    "mean": _mean,
    "mean-absolute": lambda values: _mean(np.abs(values)),
    "ratio": ratio_statistic,
    "perplexity": lambda losses, tokens: perplexity_statistic(losses * tokens, tokens),
    "macro-f1": macro_f1_statistic,
    "mcc": matthews_statistic,
    "micro-f1": micro_f1_statistic,
    "multilabel-macro-f1": multilabel_macro_f1_statistic,
    "auroc": auroc_statistic,
    "pearson": pearson_statistic,
    "spearman": spearman_statistic,
    "list-auroc": _of_lists(lambda true, scores: auroc_statistic(true.astype(np.int64), scores)),
    "list-spearman": _of_lists(spearman_statistic),
    "span-f1": lambda counts: span_statistic(counts.sum(axis=1) if counts.ndim == 3 else counts, "f1"),
    "span-precision": lambda counts: span_statistic(counts.sum(axis=1), "precision"),
    "span-recall": lambda counts: span_statistic(counts.sum(axis=1), "recall"),
    "span-macro-f1": lambda counts: span_statistic(counts, "f1"),
    "bleu": bleu_statistic,
    "chrf": chrf_statistic,
}


def _ranks(scores: Array) -> Array:
    """Scores as their average ranks among themselves, column by column; NaN stays."""
    if scores.ndim == 2:
        return np.stack([_ranks(column) for column in scores.T], axis=1)
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    return np.where(np.isnan(scores), np.nan, (np.cumsum(counts) - counts / 2)[place])


def _ranks_of_lists(scores: Array) -> Array:
    return _ranks(scores.reshape(-1)).reshape(scores.shape)


def _standard(scores: Array) -> Array:
    """Scores with mean 0 and deviation 1; constant ones stay."""
    deviation = scores.std()
    return np.asarray((scores - scores.mean()) / deviation) if deviation > 0 else scores


# What changes none of these metrics of one model, and lets two models' scores stand in one list.
_SCALES: Mapping[Kind, Callable[[Array], Array]] = {
    "auroc": _ranks,
    "spearman": _ranks,
    "list-auroc": _ranks_of_lists,
    "list-spearman": _ranks_of_lists,
    "pearson": _standard,
}
