"""Evaluate: predict, then judge; every metric with a 95 % interval."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from warmstart.errors import DataError, UsageError, WarmstartError
from warmstart.features import Array
from warmstart.metrics import Metric
from warmstart.pipeline import Pipeline
from warmstart.rows import Row, read
from warmstart.tasks import TASKS, Task, as_dict


@dataclass(frozen=True)
class Evaluation:
    """Judged predictions. `metrics`: value, lo, hi of each; `per_example`: arrays of shape (rows,), always `loss`."""

    task: str
    rows: int
    metrics: Mapping[str, Metric]
    primary: str | None = None  # the metric that ranks evaluations, if the predictions define it
    per_example: Mapping[str, Array] = field(repr=False, default_factory=dict)
    examples: tuple[Row, ...] = field(repr=False, default=())
    predictions: tuple[Any, ...] = field(repr=False, default=())

    @property
    def loss(self) -> float:
        """Mean loss a row; does not depend on how rows were batched."""
        return float(self.per_example["loss"].mean())

    @property
    def rank(self) -> tuple[float, float]:
        """What evaluations of the same rows are compared by, larger is better: the primary metric, then the loss."""
        primary = None if self.primary is None else self.metrics.get(self.primary)
        undefined = 0.0 if self.primary is None else -math.inf
        return undefined if primary is None else primary.value, -self.loss

    def as_dict(self) -> dict[str, Any]:
        """The JSON shape of `warmstart evaluate --json`."""
        return {
            "task": self.task,
            "rows": self.rows,
            "metrics": {name: metric.as_dict() for name, metric in self.metrics.items()},
        }

    def write(self, folder: Path) -> None:
        """`metrics.json` (the shape of `as_dict`) and `predictions.parquet` in a folder, which is made if need be.

        Raises WarmstartError "output-failed".
        """
        make_folder(folder)
        with _reported(folder):
            (folder / "metrics.json").write_text(json.dumps(self.as_dict(), indent=2) + "\n", encoding="utf-8")
        self.write_predictions(folder / "predictions.parquet")

    def write_predictions(self, path: Path) -> None:
        """One Parquet line an example: `row`, the row's fields, `prediction` as JSON, and the per-example scores.

        A field that has the name of one of our columns is kept as `input_<name>`. Raises WarmstartError
        "output-failed".
        """
        row = {"row": list(range(self.rows))}
        ours: dict[str, Any] = {
            "prediction": [json.dumps(as_dict(prediction)) for prediction in self.predictions],
            **{name: values.tolist() for name, values in self.per_example.items()},
        }
        fields: dict[str, Any] = {}
        for name in sorted({name for example in self.examples for name in example}):
            key = name
            while key in row or key in ours or key in fields:
                key = f"input_{key}"
            fields[key] = [_cell(example.get(name)) for example in self.examples]
        with _reported(path):
            pq.write_table(pa.table({**row, **fields, **ours}), path)


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
    Raises UsageError "task-without-metrics", DataError for a row without a text or with a label the model does not
    know, before anything is predicted.
    """
    task = pipeline.task
    if not is_judged(task):
        raise UsageError(
            "task-without-metrics",
            f"{task.name} cannot be judged in this version",
            value=task.name,
            fix=f"give task=, one of: {', '.join(name for name, each in TASKS.items() if is_judged(each))}",
        )
    rows = list(read(data, fields=task.fields, columns=columns, targets=True))
    for _ in task.encode(rows, train=True):
        pass  # a row that cannot be judged is an error now, not after all the predictions
    return evaluate_rows(pipeline, rows, progress=progress)


def is_judged(task: Task | type[Task]) -> bool:
    """Whether a task can be evaluated: it has a target, or is trained on its inputs alone."""
    return task.trainable or any(field.target for field in task.fields)


def evaluate_rows(pipeline: Pipeline, rows: list[Row], *, progress: Callable[[int], None] | None = None) -> Evaluation:
    """`evaluate` for rows that are read already."""
    if not rows:
        raise DataError("no-rows", "there are no rows to evaluate on", fix="check the file, and the columns it has")
    predictions = tuple(_counted(pipeline.judge_rows(rows), progress))
    scores = pipeline.task.score(predictions, rows)
    return Evaluation(
        task=pipeline.task.name,
        rows=len(rows),
        metrics=scores.metrics,
        primary=scores.primary,
        per_example=scores.per_example,
        examples=tuple(rows),
        predictions=predictions,
    )


def make_folder(folder: Path) -> None:
    """A folder to write an evaluation into, its parents too. Raises WarmstartError "output-failed"."""
    with _reported(folder):
        folder.mkdir(parents=True, exist_ok=True)


def _counted(predictions: Iterable[Any], progress: Callable[[int], None] | None) -> Iterable[Any]:
    for done, prediction in enumerate(predictions, start=1):
        if progress is not None:
            progress(done)
        yield prediction


def _cell(value: Any) -> Any:
    """A field as a Parquet cell: one column holds one type, so anything but text becomes JSON."""
    if value is None:
        return None
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text.encode("utf-8", "replace").decode("utf-8")  # a lone surrogate has no place in Parquet


@contextmanager
def _reported(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise WarmstartError(
            "output-failed",
            f"the evaluation could not be written: {error.strerror or error}",
            where=str(error.filename or path),
            fix="check the path, free space and permissions",
        ) from None
