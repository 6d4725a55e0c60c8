"""A run while its loop goes: it keeps the records, evaluates, chooses the best weights and tells its progress."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from warmstart.checkpoints import save_model
from warmstart.errors import WarmstartError
from warmstart.features import Batch
from warmstart.pipeline import Pipeline
from warmstart.rows import Row
from warmstart.training.batches import Batches
from warmstart.training.config import TrainConfig
from warmstart.training.loop import Schedule, Step, check_finite, fit, not_finite
from warmstart.training.optimizers import adamw, scheduler
from warmstart.training.run import RunDirectory
from warmstart.training.selection import Selection
from warmstart.verbs.evaluate import Evaluation, evaluate_rows

log = logging.getLogger("warmstart")


@dataclass(frozen=True)
class Progress:
    """What a run reports while it goes: a step of `total`, or (`validation` set) an evaluation after that step."""

    step: Step
    total: int
    validation: Evaluation | None = None


@dataclass
class Fitting:
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
    progress_failed: bool = False

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
        evaluation = self.evaluate()
        self.directory.log_validation(step, {"loss": evaluation.loss, **evaluation.as_dict()["metrics"]})
        self.report(step, evaluation)
        if self.selection.offer(step.step, evaluation.rank):
            self.best = evaluation
            self.save(self.directory.best)

    def evaluate(self) -> Evaluation:
        check_finite(self.pipeline.model, self.steps)
        try:
            evaluation = evaluate_rows(self.pipeline, self.held_out)
        except WarmstartError as error:
            if error.code not in ("output-not-a-number", "scores-not-finite"):
                raise
            raise not_finite("validation score", self.steps, math.nan) from None
        if not math.isfinite(evaluation.loss):
            raise not_finite("validation loss", self.steps, evaluation.loss)
        return evaluation

    def save(self, target: Path, extra: Mapping[str, bytes] | None = None) -> None:
        check_finite(self.pipeline.model, self.steps)
        save_model(self.pipeline.model, self.pipeline.tokenizer, target, extra=extra or {}, replace=True)

    def report(self, step: Step, validation: Evaluation | None = None) -> None:
        """Tell `progress`. What fails in there is no reason to lose a run: it is said once."""
        if self.progress is None:
            return
        try:
            self.progress(Progress(step, self.schedule.total, validation))
        except Exception as error:
            if not self.progress_failed:
                log.warning("progress failed in step %d; the run goes on: %r", step.step, error)
            self.progress_failed = True


def fit_pipeline(
    pipeline: Pipeline,
    batches: Batches[Batch],
    held_out: list[Row],
    config: TrainConfig,
    directory: RunDirectory,
    progress: Callable[[Progress], None] | None,
) -> Fitting:
    schedule = Schedule.of(batches, config)
    fitting = Fitting(pipeline, held_out, config, schedule, directory, progress, selection=Selection(config.patience))
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
        after_step=fitting.after_step,
    )
    pipeline.model.eval()
    return fitting
