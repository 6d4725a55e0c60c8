"""Evaluate: predict, then judge; every metric with a 95 % interval."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from warmstart.errors import DataError, UsageError
from warmstart.evaluation import Evaluation
from warmstart.pipeline import Pipeline
from warmstart.rows import Row, read
from warmstart.tasks import TASKS, Task


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
        measures=scores.measures,
        labels=scores.labels,
        by_label=scores.by_label,
    )


def _counted(predictions: Iterable[Any], progress: Callable[[int], None] | None) -> Iterable[Any]:
    for done, prediction in enumerate(predictions, start=1):
        if progress is not None:
            progress(done)
        yield prediction
