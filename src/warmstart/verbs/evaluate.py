"""Evaluate: predict, then judge; every metric with a 95 % interval."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from warmstart.errors import DataError
from warmstart.features import Array
from warmstart.metrics import Metric
from warmstart.pipeline import Pipeline
from warmstart.rows import Row, read
from warmstart.tasks import as_dict


@dataclass(frozen=True)
class Evaluation:
    """Judged predictions. `metrics`: value, lo, hi of each; `per_example`: arrays of shape (rows,), always `loss`."""

    task: str
    rows: int
    metrics: Mapping[str, Metric]
    per_example: Mapping[str, Array] = field(repr=False, default_factory=dict)
    examples: tuple[Row, ...] = field(repr=False, default=())
    predictions: tuple[Any, ...] = field(repr=False, default=())

    @property
    def loss(self) -> float:
        """Mean loss a row; does not depend on how rows were batched."""
        return float(self.per_example["loss"].mean())

    def as_dict(self) -> dict[str, Any]:
        """The JSON shape of `warmstart evaluate --json`."""
        return {
            "task": self.task,
            "rows": self.rows,
            "metrics": {name: metric.as_dict() for name, metric in self.metrics.items()},
        }

    def write_predictions(self, path: Path) -> None:
        """One Parquet line an example: `row`, the row's fields, `prediction` as JSON, and the per-example scores."""
        names = sorted({name for row in self.examples for name in row})
        columns: dict[str, Any] = {"row": list(range(self.rows))}
        for name in names:
            columns[name] = [_cell(row.get(name)) for row in self.examples]
        columns["prediction"] = [json.dumps(as_dict(prediction), ensure_ascii=False) for prediction in self.predictions]
        for name, values in self.per_example.items():
            columns[name] = values.tolist()
        pq.write_table(pa.table(columns), path)


def evaluate(
    pipeline: Pipeline,
    data: Any,
    *,
    columns: Mapping[str, str] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """Judge a pipeline on labelled rows. `data` is anything `ws.train` takes.

        result = ws.evaluate(run.pipeline, "test.jsonl")
        result.metrics["accuracy"]           # Metric(value=…, lo=…, hi=…)

    Accuracies have Wilson's interval, all else a bootstrap's. `progress` is called with the number of rows done.
    Raises DataError for a row without a text or with a label the model does not know.
    """
    rows = read(data, fields=pipeline.task.fields, columns=columns, targets=True)
    return evaluate_rows(pipeline, list(rows), progress=progress)


def evaluate_rows(pipeline: Pipeline, rows: list[Row], *, progress: Callable[[int], None] | None = None) -> Evaluation:
    """`evaluate` for rows that are read already."""
    if not rows:
        raise DataError("no-rows", "there are no rows to evaluate on", fix="check the file, and the columns it has")
    predictions = tuple(_counted(pipeline.predict_rows(rows), progress))
    scores = pipeline.task.score(predictions, rows)
    return Evaluation(
        task=pipeline.task.name,
        rows=len(rows),
        metrics=scores.metrics,
        per_example=scores.per_example,
        examples=tuple(rows),
        predictions=predictions,
    )


def _counted(predictions: Iterable[Any], progress: Callable[[int], None] | None) -> Iterable[Any]:
    for done, prediction in enumerate(predictions, start=1):
        if progress is not None:
            progress(done)
        yield prediction


def _cell(value: Any) -> Any:
    """A field as a Parquet cell: one column holds one type, so anything but text becomes JSON."""
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
