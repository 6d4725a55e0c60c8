"""Train: rows and a checkpoint in, a run directory with a standard Hugging Face checkpoint out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from warmstart.checkpoints import Found, Verified, find, load_model, load_tokenizer, load_weights, save_model, verify
from warmstart.engine import torch_runtime
from warmstart.errors import UsageError
from warmstart.metrics import Metric
from warmstart.pipeline import Pipeline
from warmstart.provenance import environment, folder_digest, rows_digest
from warmstart.report import write_report
from warmstart.rows import Row, hold_out, read
from warmstart.tasks import TASKS, Task, find_task
from warmstart.training.batches import make_batches
from warmstart.training.config import TrainConfig
from warmstart.training.loop import Schedule, Step, fit
from warmstart.training.model_card import RunFacts
from warmstart.training.optimizers import adamw, default_learning_rate, scheduler
from warmstart.training.run import RunDirectory
from warmstart.training.selection import Selection
from warmstart.verbs.evaluate import Evaluation, evaluate_rows
from warmstart.verbs.load import make_task, options_of

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


@dataclass(frozen=True)
class Progress:
    """What a run reports while it goes: a step of `total`, or (`validation` set) an evaluation after that step."""

    step: Step
    total: int
    validation: Evaluation | None = None


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
    the checkpoint; TrainingError for a run that cannot go on.
    """
    config = config or TrainConfig()
    kind = None if task is None else find_task(task)
    found = find(str(model))
    verified = verify(found.folder)
    kind = kind or _task_for_training(verified)
    if not kind.trainable:
        raise UsageError(
            "task-not-trainable",
            f"{kind.name} cannot be trained in this version",
            value=kind.name,
            fix=f"give task=, one of: {', '.join(name for name, each in TASKS.items() if each.trainable)}",
        )
    rows, held_out = _read_rows(kind, data, validation, columns)
    tokenizer = load_tokenizer(verified)
    loaded = make_task(kind, tokenizer, verified, options or {})
    learned = loaded.learn(rows)
    for _ in learned.encode(held_out, train=True):
        pass  # a validation row that cannot be used is an error now, not after the first epoch
    directory = RunDirectory.create(Path(output))
    fresh_head = None if verified.has_head and learned is loaded else learned.head()
    if fresh_head is not None:
        log.info("starting a fresh head for %s", learned.name)
    network = load_model(verified, auto_class=kind.auto_class, fresh_head=fresh_head, seed=config.seed)
    if config.learning_rate is None:
        config = config.model_copy(update={"learning_rate": default_learning_rate(network.config.hidden_size)})
        log.info("learning rate %.3g, by the width of the model", config.learning_rate)
    directory.write_config(config, model=str(model), task=kind.name, options=options_of(learned))
    directory.write_provenance(_provenance(found, rows, held_out))
    pipeline = Pipeline(
        model=network,
        tokenizer=tokenizer,
        task=learned,
        runtime=torch_runtime(network, learned, device=config.device),
        name=str(output),
        notes=verified.findings,
    )
    training = _fit(pipeline, rows, held_out, config, directory, progress)
    return _finish(training, base=found.name, rows=len(rows))


@dataclass
class _Training:
    """What a run knows while its loop goes."""

    pipeline: Pipeline
    held_out: list[Row]
    config: TrainConfig
    schedule: Schedule
    directory: RunDirectory
    progress: Callable[[Progress], None] | None
    selection: Selection
    steps: int = 0
    best: Evaluation | None = None

    def after_step(self, step: Step) -> bool:
        """Record the step; evaluate and save where that is due. True ends the run."""
        self.steps = step.step
        self.directory.log_step(step)
        self.report(step)
        if self.config.save_every and step.step % self.config.save_every == 0:
            self.save(self.directory.step_checkpoint(step.step))
            self.directory.prune(self.config.keep)
        if self.held_out and self.schedule.evaluation_due(step.step, self.config.evaluate_every):
            self.validate(step)
        return self.selection.exhausted

    def validate(self, step: Step) -> None:
        """Evaluate, and keep the weights if they are the best so far."""
        evaluation = evaluate_rows(self.pipeline, self.held_out)
        self.directory.log_validation(step, {"loss": evaluation.loss, **evaluation.as_dict()["metrics"]})
        self.report(step, evaluation)
        first = next(iter(evaluation.metrics.values()), None)
        if self.selection.offer(step.step, -evaluation.loss if first is None else first.value, evaluation.loss):
            self.best = evaluation
            self.save(self.directory.best)

    def save(self, target: Path, extra: Mapping[str, bytes] | None = None) -> None:
        save_model(self.pipeline.model, self.pipeline.tokenizer, target, extra=extra or {}, replace=True)

    def report(self, step: Step, validation: Evaluation | None = None) -> None:
        if self.progress is not None:
            self.progress(Progress(step, self.schedule.total, validation))


def _fit(
    pipeline: Pipeline,
    rows: list[Row],
    held_out: list[Row],
    config: TrainConfig,
    directory: RunDirectory,
    progress: Callable[[Progress], None] | None,
) -> _Training:
    batches = make_batches(
        pipeline.task, rows, seed=config.seed, batch_size=config.batch_size, max_tokens=config.max_tokens
    )
    schedule = Schedule.of(batches, config)
    training = _Training(
        pipeline, held_out, config, schedule, directory, progress, selection=Selection(config.patience)
    )
    assert config.learning_rate is not None
    optimizer = adamw(pipeline.model, learning_rate=config.learning_rate, weight_decay=config.weight_decay)
    fit(
        pipeline.model,
        pipeline.task,
        batches,
        config,
        optimizer,
        scheduler(optimizer, config, schedule.total),
        device=pipeline.device,
        schedule=schedule,
        after_step=training.after_step,
    )
    pipeline.model.eval()
    return training


def _finish(training: _Training, *, base: str, rows: int) -> Run:
    """Take the best weights back, save the result, and write the run's reports."""
    directory, pipeline, best = training.directory, training.pipeline, training.best
    if best is not None:
        load_weights(pipeline.model, directory.best)
        best.write_predictions(directory.predictions)
    facts = RunFacts(
        task=pipeline.task.name,
        base=base,
        options=options_of(pipeline.task),
        settings=training.config.model_dump(),
        metrics={} if best is None else best.as_dict()["metrics"],
        training_rows=rows,
        validation_rows=len(training.held_out),
        steps=training.steps,
    )
    training.save(directory.model, facts.files())
    write_report(directory.path)
    return Run(
        pipeline=pipeline,
        path=directory.path,
        metrics={} if best is None else best.metrics,
        validation=best,
        steps=training.steps,
        best_step=training.selection.best_step if best else training.steps,
    )


def _task_for_training(verified: Verified) -> type[Task]:
    """The checkpoint's own task if it can be trained; a bare encoder is trained as a text classifier, which is said."""
    own = None if verified.task is None else TASKS.get(verified.task)
    if own is not None and own.trainable:
        return own
    log.info("task text-classification, for a checkpoint that is made for %s", verified.task or "none")
    return TASKS["text-classification"]


def _read_rows(
    kind: type[Task], data: Any, validation: Any, columns: Mapping[str, str] | None
) -> tuple[list[Row], list[Row]]:
    rows = list(read(data, fields=kind.fields, columns=columns, targets=True))
    if isinstance(validation, int | float):
        if isinstance(validation, bool) or not 0 < validation < 1:
            raise UsageError(
                "validation-share",
                "a share of rows to hold out lies between 0 and 1",
                value=validation,
                fix="e.g. validation=0.1, or a file of rows",
            )
        return hold_out(rows, float(validation))
    if validation is None:
        return rows, []
    return rows, list(read(validation, fields=kind.fields, columns=columns, targets=True))


def _provenance(found: Found, rows: list[Row], held_out: list[Row]) -> dict[str, Any]:
    return {
        "checkpoint": {
            "name": found.name,
            "revision": found.revision,
            "source": found.source,
            "digest": folder_digest(found.folder),
        },
        "data": {"train": rows_digest(rows), "validation": rows_digest(held_out)},
        "environment": environment(),
    }
