"""Two models on the same rows: how far apart their metrics are, whether chance does that, and where they disagree."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from warmstart.evaluation.disagreement import Disagreement, disagreements
from warmstart.evaluation.pairing import pair
from warmstart.evaluation.result import Evaluation
from warmstart.metrics import Difference, Measure, paired_difference

_LOSS = Measure("mean", ("loss",))


@dataclass(frozen=True)
class Comparison:
    """What two evaluations of the same rows say of each other.

    `metrics`: each metric of both, and the mean loss, as a `Difference` (b - a). `primary`: the metric to judge by,
    larger is better. `left_out`: metrics that only one has, or that cannot be computed again from what is stored.
    `disagreements`: the rows they decide differently, largest change of the loss first.
    """

    task: str
    rows: int
    a: str
    b: str
    primary: str | None
    metrics: Mapping[str, Difference]
    left_out: tuple[str, ...] = ()
    disagreements: tuple[Disagreement, ...] = field(repr=False, default=())

    def as_dict(self) -> dict[str, Any]:
        """The JSON shape of `warmstart compare --json`."""
        return {
            "task": self.task,
            "rows": self.rows,
            "a": self.a,
            "b": self.b,
            "primary": self.primary,
            "metrics": {name: each.as_dict() for name, each in self.metrics.items()},
            "left_out": list(self.left_out),
            "disagreements": [each.as_dict() for each in self.disagreements],
        }


def compare_evaluations(a: Evaluation, b: Evaluation, *, names: tuple[str, str] = ("A", "B")) -> Comparison:
    """Compare two evaluations; `names` are shown. See `verbs.compare`, which also reads them from files."""
    paired = pair(a, b, names)
    measures = {name: each for name, each in a.measures.items() if _comparable(name, each, a, b)}
    if not any(np.isnan(side["loss"]).any() for side in (paired.a, paired.b)):
        measures["loss"] = _LOSS
    found = {name: paired_difference(measure, paired.a, paired.b) for name, measure in measures.items()}
    differences = {name: difference for name, difference in found.items() if difference is not None}
    every = dict.fromkeys((*a.metrics, *b.metrics, "loss"))
    return Comparison(
        task=a.task,
        rows=a.rows,
        a=names[0],
        b=names[1],
        primary=a.primary if a.primary in differences else None,
        metrics=differences,
        left_out=tuple(name for name in every if name not in differences),
        disagreements=disagreements(a, b, paired),
    )


def _comparable(name: str, measure: Measure, a: Evaluation, b: Evaluation) -> bool:
    """Is the metric computed alike in both. (An `index` counts labels, which the pairing has put into one order.)"""
    other = b.measures.get(name)
    return other is not None and (other.kind, other.reads, other.unit) == (measure.kind, measure.reads, measure.unit)
