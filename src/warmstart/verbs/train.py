"""Train: rows and a checkpoint in, a run directory with a standard Hugging Face checkpoint out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from warmstart.checkpoints import Found, Verified, find, load_model, load_tokenizer, load_weights, verify
from warmstart.engine import resolve_device, torch_runtime
from warmstart.errors import DataError, UsageError, Where
from warmstart.metrics import Metric
from warmstart.pipeline import Pipeline
from warmstart.provenance import environment, folder_digest, rows_digest
from warmstart.report import write_report
from warmstart.rows import Row, hold_out, read
from warmstart.tasks import TASKS, Task, WritesFiles, find_task
from warmstart.training.batches import make_batches
from warmstart.training.config import TrainConfig
from warmstart.training.model_card import RunFacts
from warmstart.training.optimizers import default_learning_rate
from warmstart.training.run import RunDirectory
from warmstart.verbs.evaluate import Evaluation
from warmstart.verbs.fitting import Fitting, Progress, fit_pipeline
from warmstart.verbs.load import check_option_names, make_task, options_of

log = logging.getLogger("warmstart")


@dataclass(frozen=True)
class Run:
    """A finished training. `path`: the run directory; `model`: the folder any transformers program can load."""

    pipeline: Pipeline
    path: Path
    metrics: Mapping[str, Metric]  # on the validation rows; empty without them
    validation: Evaluation | None
    steps: int  # optimizer steps made
    best_step: int  # the step whose weights were kept

    @property
    def model(self) -> Path:
        return RunDirectory(self.path).model


def train(
    model: str | Path,
    data: Any,
    *,
    output: str | Path,
    task: str | None = None,
    validation: Any = None,
    config: TrainConfig | None = None,
    columns: Mapping[str, str] | None = None,
    options: Mapping[str, Any] | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Run:
    """Fine-tune a checkpoint on labelled rows.

    `model`: any name `ws.load` takes. `data`: a file (JSONL, CSV, TSV, Parquet, Arrow, text; also gzipped), a
    `datasets.Dataset`, a pandas or polars frame, or a list of rows. `validation`: rows of the same kinds, or a share
    of `data` to hold out, e.g. 0.1; with it the best evaluated weights are kept, without it the last ones. `columns`
    pins columns, e.g. {"text": "body"}. `progress` is called after every step and evaluation.

        run = ws.train("starter-encoder", "train.jsonl", output="runs/a", validation="dev.jsonl")
        run.metrics["accuracy"]; run.pipeline("a new text")

    A head that fits the rows' labels goes on being trained; otherwise a fresh one is started, which is said.
    Raises UsageError, DataError and CheckpointError before the first step for what is wrong with the call, the rows or
    the checkpoint; TrainingError for a run that cannot go on. A `progress` that fails is warned about and goes on.
    """
    config = _checked(config or TrainConfig(), validation)
    kind = None if task is None else _trainable(find_task(task))
    if kind is not None:
        check_option_names(kind, options or {})
    if config.device != "auto":
        resolve_device(config.device)
    directory = RunDirectory(Path(output))
    directory.check_free()

    found = find(model)
    verified = verify(found.folder)
    kind = kind or _task_for_training(verified)
    rows, held_out = _read_rows(kind, data, validation, columns)
    tokenizer = load_tokenizer(verified)
    loaded = make_task(kind, tokenizer, verified, options or {})
    learned = loaded.learn(rows)
    _check_coupled(learned, config)
    for _ in learned.encode(held_out, train=True):
        pass  # a validation row that cannot be used is an error now, not after the first epoch
    batches = make_batches(learned, rows, seed=config.seed, batch_size=config.batch_size, max_tokens=config.max_tokens)
    pipeline = _untrained(
        verified, tokenizer, learned, fresh=learned.head() != loaded.head(), config=config, name=str(output)
    )
    config = _with_learning_rate(config, pipeline.model)
    directory.create()
    directory.write_config(config, model=str(model), task=kind.name, options=options_of(learned))
    directory.write_provenance(_provenance(found, rows, held_out, batches.left_out))
    fitting = fit_pipeline(pipeline, batches, held_out, config, directory, progress)
    return _finish(fitting, base=found.name, rows=len(rows))


def _untrained(
    verified: Verified, tokenizer: Any, task: Task, *, fresh: bool, config: TrainConfig, name: str
) -> Pipeline:
    """The pipeline at its start; with a fresh head if asked to, or if the checkpoint has none of this kind."""
    head_of = TASKS.get(verified.purpose or "")
    fits = verified.has_head and head_of is not None and head_of.auto_class == task.auto_class
    fresh_head = None if fits and not fresh else task.head()
    if fresh_head is not None:
        log.info("starting a fresh head for %s", task.name)
    model = load_model(verified, auto_class=task.auto_class, fresh_head=fresh_head, seed=config.seed)
    return Pipeline(
        model=model,
        tokenizer=tokenizer,
        task=task,
        runtime=torch_runtime(model, task, device=config.device),
        name=name,
        notes=verified.findings,
    )


def _finish(fitting: Fitting, *, base: str, rows: int) -> Run:
    """Take the best weights back, save the result, and write the run's reports."""
    directory, pipeline, best = fitting.directory, fitting.pipeline, fitting.best
    if best is not None:
        load_weights(pipeline.model, directory.best)
        best.write_predictions(directory.predictions)
    facts = RunFacts(
        task=pipeline.task.name,
        base=base,
        options=options_of(pipeline.task),
        settings=fitting.config.model_dump(),
        metrics={} if best is None else best.as_dict()["metrics"],
        training_rows=rows,
        validation_rows=len(fitting.held_out),
        steps=fitting.steps,
    )
    own = pipeline.task.files(width=pipeline.model.config.hidden_size) if isinstance(pipeline.task, WritesFiles) else {}
    fitting.save(directory.model, {**own, **facts.files()})
    try:
        write_report(directory.path)
    except Exception as error:  # the result is saved: a page about it is no reason to lose it
        log.warning("the report could not be written: %r", error)
    return Run(
        pipeline=pipeline,
        path=directory.path,
        metrics={} if best is None else best.metrics,
        validation=best,
        steps=fitting.steps,
        best_step=fitting.selection.best_step if best else fitting.steps,
    )


def _checked(config: TrainConfig, validation: Any) -> TrainConfig:
    """The config, if it is one and does not ask for what this call cannot give."""
    if not isinstance(config, TrainConfig):
        raise UsageError(
            "config-not-config",
            f"config must be a TrainConfig, and is of type {type(config).__name__}",
            value=config,
            fix="config=ws.TrainConfig(epochs=3)",
        )
    for name, value in (("patience", config.patience), ("evaluate_every", config.evaluate_every)):
        if value is not None and validation is None:
            raise UsageError(
                "validation-needed",
                f"{name} needs validation rows to look at",
                value=value,
                fix=f"give validation=, a file or a share such as 0.1, or leave {name} out",
            )
    return config


def _check_coupled(task: Task, config: TrainConfig) -> None:
    """Where rows learn from each other, what splits a batch changes the loss: it is refused rather than done."""
    if not task.couples_rows:
        return
    for name, value, plain in (("accumulate", config.accumulate, 1), ("max_tokens", config.max_tokens, None)):
        if value != plain:
            raise UsageError(
                "rows-coupled",
                f"{task.name} learns from all rows of a batch together, so {name} would change what is learned",
                where=Where(field=name),
                value=value,
                fix=f"leave {name} out and set batch_size to the rows that learn from each other; "
                "less memory: a shorter max_length",
            )


def _trainable(kind: type[Task]) -> type[Task]:
    if kind.trainable:
        return kind
    raise UsageError(
        "task-not-trainable",
        f"{kind.name} cannot be trained in this version",
        value=kind.name,
        fix=f"give task=, one of: {', '.join(name for name, each in TASKS.items() if each.trainable)}",
    )


def _task_for_training(verified: Verified) -> type[Task]:
    """The checkpoint's own task if it learns from labels; else text classification, which is said (decision 0006)."""
    own = None if verified.task is None else TASKS.get(verified.task)
    if own is not None and own.trainable and any(field.target and not field.optional for field in own.fields):
        return own
    log.info("task text-classification, for a checkpoint that is made for %s", verified.task or "none")
    return TASKS["text-classification"]


def _with_learning_rate(config: TrainConfig, network: Any) -> TrainConfig:
    if config.learning_rate is not None:
        return config
    rate = default_learning_rate(network.config.hidden_size)
    log.info("learning rate %.3g, by the width of the model", rate)
    return config.model_copy(update={"learning_rate": rate})


def _read_rows(
    kind: type[Task], data: Any, validation: Any, columns: Mapping[str, str] | None
) -> tuple[list[Row], list[Row]]:
    share = validation if isinstance(validation, int | float) else None
    if share is not None and (isinstance(share, bool) or not 0 < share < 1):
        raise UsageError(
            "validation-share",
            "a share of rows to hold out lies between 0 and 1",
            value=validation,
            fix="e.g. validation=0.1, or a file of rows",
        )
    rows = list(read(data, fields=kind.fields, columns=columns, targets=True))
    if validation is None:
        return rows, []
    if share is not None:
        fields = sorted(kind.fields, key=lambda field: not field.together)  # the sort keeps the order otherwise
        inputs = [field.name for field in fields if not field.target]
        rows, held_out = hold_out(rows, float(share), fields=inputs)
    else:
        held_out = list(read(validation, fields=kind.fields, columns=columns, targets=True))
    if rows and not held_out:
        raise DataError(
            "validation-empty",
            "there are no validation rows",
            value=validation if isinstance(validation, str | float) else None,
            fix="give rows with different texts to hold a share of them out, or another file, or no validation",
        )
    return rows, held_out


def _provenance(found: Found, rows: list[Row], held_out: list[Row], left_out: tuple[int, ...]) -> dict[str, Any]:
    return {
        "checkpoint": {
            "name": found.name,
            "revision": found.revision,
            "source": found.source,
            "digest": folder_digest(found.folder),
        },
        # The digest is of all rows; `left_out` are the positions of those that taught nothing.
        "data": {"train": rows_digest(rows), "validation": rows_digest(held_out), "left_out": list(left_out)},
        "environment": environment(),
    }
