"""A run while its loop goes: it keeps the records, evaluates, chooses the best weights, saves, tells its progress."""

from __future__ import annotations

import copy
import dataclasses
import json
import logging
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from warmstart.checkpoints import save_model
from warmstart.errors import CheckpointError, TrainingError, WarmstartError, Where, is_out_of_memory
from warmstart.evaluation import Evaluation
from warmstart.pipeline import Pipeline
from warmstart.rows import Row
from warmstart.tasks import Task
from warmstart.training.additive import check_additive
from warmstart.training.config import TrainConfig
from warmstart.training.ema import Average
from warmstart.training.fetching import tells_of_a_worker
from warmstart.training.loop import Guards, Schedule, Step, check_finite, fit, not_finite
from warmstart.training.memory import Cuts
from warmstart.training.nonfinite import BadStep, write_bad_step
from warmstart.training.numerics import numerics
from warmstart.training.optimizers import adamw, scaler_for, scheduler
from warmstart.training.pace import Pace
from warmstart.training.phases import phase
from warmstart.training.precision import is_measured, measure, recorded
from warmstart.training.recomputing import recomputing
from warmstart.training.run import RunDirectory, tidying
from warmstart.training.selection import Selection
from warmstart.training.snapshot_folder import snapshot_unread
from warmstart.training.snapshots import Snapshot, State, best_steps, save_snapshot
from warmstart.training.state_files import pack
from warmstart.training.stopping import Stop
from warmstart.training.threads import threads
from warmstart.training.top_layers import training_top
from warmstart.training.trained_weights import TrainedWeights
from warmstart.training.vocabulary import whole_state, word_table
from warmstart.verbs.evaluate import evaluate_rows
from warmstart.verbs.kept_evaluation import NAME as EVALUATION
from warmstart.verbs.kept_evaluation import read_evaluation, to_bytes
from warmstart.verbs.load import options_of
from warmstart.verbs.preparing import Prepared
from warmstart.verbs.resuming import Start

log = logging.getLogger("warmstart")

# While a run goes, one snapshot may turn out to be damaged.
LEAST_KEPT = 2


@dataclass(frozen=True)
class Progress:
    """What a run reports while it goes: a step of `total`, or (`validation` set) an evaluation after that step."""

    step: Step
    total: int
    validation: Evaluation | None = None


class _StopAsked(Exception):  # noqa: N818 – no error
    """An evaluation is given up, because the run is to stop."""


@dataclass
class Fitting:
    """What a run knows while its loop goes."""

    pipeline: Pipeline
    held_out: list[Row]
    config: TrainConfig
    schedule: Schedule
    directory: RunDirectory
    progress: Callable[[Progress], None] | None
    optimizer: torch.optim.Optimizer
    scheduler: LRScheduler
    start: Start
    selection: Selection
    pace: Pace
    guards: Guards
    weights: TrainedWeights
    stop: Stop
    stopped: bool = False  # the loop ended because of `stop`, with work left to do
    steps: int = 0
    saved: int = 0  # the step of the newest snapshot
    evaluated: int = 0
    best: Evaluation | None = None
    progress_failed: bool = False

    def restore(self, snapshot: Snapshot) -> None:
        """Become what the run was at a snapshot. Raises CheckpointError "state-unfit" if this is another model's;
        TrainingError "snapshot-unread" where memory or a disk fails."""
        state = snapshot.state
        try:
            self.weights.load(snapshot.path, state.recipes)
            self.optimizer.load_state_dict(whole_state(state.optimizer, self.optimizer))
            self.scheduler.load_state_dict(dict(state.scheduler))
            if self.guards.scaler is not None:
                self.guards.scaler.load_state_dict(dict(state.scaler))
        except (CheckpointError, OSError) as error:
            # Its manifest was true a moment ago, so what now fails is not the snapshot.
            if isinstance(error, CheckpointError) and error.code not in ("file-unreadable", "model-build-failed"):
                raise
            raise snapshot_unread(snapshot.path, error) from error
        except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, MemoryError) as error:
            if is_out_of_memory(error):
                raise snapshot_unread(snapshot.path, error) from error
            raise CheckpointError(
                "state-unfit",
                f"the optimizer's state in the snapshot is not that of this model: {error}",
                where=str(snapshot.path),
                fix="choose another -o and train anew",
            ) from None
        self.steps = self.saved = state.step.step
        self.evaluated = state.evaluated
        self.selection = copy.copy(state.selection)
        self.selection.patience = self.config.patience
        if self.selection.best is not None:
            folder = self.directory.best_checkpoint(self.selection.best_step)
            self.best = read_evaluation(folder, self.pipeline.task, self.held_out)

    def after_step(self, step: Step) -> bool:
        """Record the step; evaluate and save where that is due. True ends the loop."""
        self.steps = self.start.reached = step.step
        self.directory.log_step(step)
        self.weights.after_step(step.step)
        self.report(step)
        over = self.evaluate_if_due(step)
        self.stopped = self.stop.signal is not None  # asked once: a signal from here on is for the next step
        if self.stopped or (not over and self.pace.due(step.step)):
            self.snapshot(step)
        return over or self.stopped

    def evaluate_if_due(self, step: Step) -> bool:
        """Evaluate after a step, unless that is done; True if no further step is to be made."""
        due = self.held_out and self.schedule.evaluation_due(step.step, self.config.evaluate_every)
        if due and self.evaluated != step.step:
            try:
                with phase("evaluation", step.step), self.weights.as_result():
                    self.validate(step)
            except _StopAsked:
                self.stopped = True
                return True
        return self.selection.exhausted

    def validate(self, step: Step) -> None:
        """Evaluate, and keep the weights if they are the best so far."""
        evaluation = self.evaluate()
        self.evaluated = step.step
        if isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step(evaluation.loss)
        self.directory.log_validation(step, {"loss": evaluation.loss, **evaluation.as_dict()["metrics"]})
        self.report(step, evaluation)
        if self.selection.offer(step.step, evaluation.rank):
            self.best = evaluation
            with phase("save", step.step):
                target = self.directory.checkpoints / f"best-{step.step:06d}"
                self.save(target, {EVALUATION: to_bytes(evaluation)})
            with tidying():
                self.prune_best()

    def evaluate(self) -> Evaluation:
        check_finite(self.pipeline.model, self.steps)
        try:
            evaluation = evaluate_rows(self.pipeline, self.held_out, progress=self._check_stop)
        except WarmstartError as error:
            if error.code not in ("output-not-a-number", "scores-not-finite"):
                raise
            raise not_finite("validation score", self.steps, math.nan) from None
        if not math.isfinite(evaluation.loss):
            raise not_finite("validation loss", self.steps, evaluation.loss)
        return evaluation

    def _check_stop(self, rows: int) -> None:
        if self.stop.signal is not None:
            raise _StopAsked

    def save(self, target: Path, extra: Mapping[str, bytes] | None = None) -> None:
        check_finite(self.pipeline.model, self.steps)
        save_model(self.pipeline.model, self.pipeline.tokenizer, target, extra=extra or {}, replace=True)

    def snapshot(self, step: Step) -> None:
        """Save all that the rest of the run needs. A disk that takes no snapshot is said, and ends no run."""
        check_finite(self.pipeline.model, self.steps)
        started = time.monotonic()
        state = State(
            step=step,
            evaluated=self.evaluated,
            selection=self.selection,
            metrics_bytes=self.directory.metrics_size(),
            optimizer=self.weights.optimizer_state(self.optimizer),
            scheduler=self.scheduler.state_dict(),
            scaler={} if self.guards.scaler is None else self.guards.scaler.state_dict(),
            recipes=self.weights.state(),
        )
        target = self.directory.step_checkpoint(step.step)
        try:
            with phase("save", step.step), self.weights.as_checkpoint():
                save_snapshot(target, self.pipeline.model, self.pipeline.tokenizer, state)
        except CheckpointError as error:
            then = "" if self.stopped else "; the run goes on"
            log.warning("no snapshot of step %d: %s%s%s", step.step, error.what, self._space(state), then)
        else:
            self.saved = step.step
            with phase("prune", step.step), tidying():
                self.directory.prune(max(LEAST_KEPT, self.config.keep))
                self.prune_best()
        self.pace.saved(time.monotonic() - started)

    def prune_best(self) -> None:
        """Keep the best weights, and those that a snapshot would go on from."""
        self.directory.prune_best({self.selection.best_step, *best_steps(self.directory.checkpoints)})

    def _space(self, state: State) -> str:
        """What a snapshot takes and what is there, in words."""
        with self.weights.as_checkpoint():
            tensors = [*self.pipeline.model.state_dict().values(), *pack([state.optimizer, state.recipes])[1].values()]
        needed = sum(t.numel() * t.element_size() for t in tensors)
        free = shutil.disk_usage(self.directory.path).free
        return f" (it takes {needed / 1e6:,.0f} MB, {free / 1e6:,.0f} MB are free)"

    def report(self, step: Step, validation: Evaluation | None = None) -> None:
        """Tell `progress`. What fails in there is no reason to lose a run: it is said once. A lost worker is one."""
        if self.progress is None:
            return
        try:
            self.progress(Progress(step, self.schedule.total, validation))
        except Exception as error:
            if self.config.workers and tells_of_a_worker(error):
                raise
            if not self.progress_failed:
                log.warning("progress failed in step %d; the run goes on: %r", step.step, error)
            self.progress_failed = True


def keep_step(fitting: Fitting, places: Sequence[Where], task: Task, bad: BadStep) -> TrainingError:
    """Keep a step that is not finite for `warmstart replay`; gives the error that ends the run."""
    rows = {feature.row for batch in bad.batches for feature in batch.features}
    pipeline = fitting.pipeline
    record = {"task": task.name, "options": options_of(pipeline.task)}
    try:
        with fitting.weights.as_checkpoint():
            kept = write_bad_step(
                fitting.directory.bad_step(bad.step),
                bad,
                model=pipeline.model,
                tokenizer=pipeline.tokenizer,
                task=task,
                record=json.dumps(record).encode(),
                places={row: str(places[row]) for row in sorted(rows)},
                optimizer=fitting.weights.optimizer_state(fitting.optimizer),
                scheduler=fitting.scheduler.state_dict(),
            )
    except CheckpointError as error:  # the run ends anyway; why it does is the more important of the two
        log.warning("the step could not be kept: %s", error.what)
        return bad.error()
    return bad.error(kept)


def fit_pipeline(
    prepared: Prepared, directory: RunDirectory, progress: Callable[[Progress], None] | None, start: Start, stop: Stop
) -> Fitting:
    """Train from `start` to the end. Raises KeyboardInterrupt or SystemExit, with a snapshot saved, where `stop` asks
    for it before the last step is made and evaluated."""
    config, pipeline = _settled(prepared, directory, start), prepared.pipeline
    fitting = _fitting(prepared, config, directory, progress, start, stop)
    with threads(start.threads), recomputing(pipeline.model, config.gradient_checkpointing):
        if start.snapshot is not None:
            fitting.restore(start.snapshot)
        with (
            training_top(
                pipeline.model, prepared.batches, config.top_layers, folder=directory.path, device=pipeline.device
            ),
            fitting.weights.training(),
        ):
            # The task of the batches learns by the loss that was asked for; the pipeline's is judged by the plain one.
            task = prepared.batches.task
            if start.snapshot is None:
                check_additive(pipeline.model, task, prepared.batches, config, device=pipeline.device)
            over = False
            if start.snapshot is not None:
                with numerics(pipeline.device):  # as every evaluation that `fit` makes
                    over = fitting.evaluate_if_due(start.snapshot.state.step)
            if not over:
                fit(
                    pipeline.model,
                    task,
                    prepared.batches,
                    config,
                    fitting.optimizer,
                    fitting.scheduler,
                    device=pipeline.device,
                    schedule=fitting.schedule,
                    after_step=fitting.after_step,
                    start=fitting.steps,
                    guards=fitting.guards,
                )
    if fitting.stopped:
        total = fitting.schedule.total
        again = f"goes on after step {fitting.saved}" if fitting.saved else "starts over: there is no snapshot"
        log.warning("stopped after step %d of %d; the same call %s", fitting.steps, total, again)
        raise stop.outcome()
    fitting.weights.finish()
    pipeline.model.eval()
    return fitting


def _settled(prepared: Prepared, directory: RunDirectory, start: Start) -> TrainConfig:
    """The config with the precision that the run computes in: on a CPU what is measured to be faster, or was."""
    config, pipeline = prepared.config, prepared.pipeline
    known = directory.read_provenance()
    found = recorded(known, config)
    if found is None and is_measured(config, pipeline.device):
        with threads(start.threads), recomputing(pipeline.model, config.gradient_checkpointing):
            found = measure(pipeline.model, prepared.batches, config, device=pipeline.device)
        directory.write_provenance({**known, "precision": dataclasses.asdict(found)})
    if found is None:
        return config
    found.say()
    return config.model_copy(update={"precision": found.used})


def _fitting(
    prepared: Prepared,
    config: TrainConfig,
    directory: RunDirectory,
    progress: Callable[[Progress], None] | None,
    start: Start,
    stop: Stop,
) -> Fitting:
    pipeline = prepared.pipeline
    assert config.learning_rate is not None
    schedule = Schedule.of(prepared.batches, config)
    optimizer = prepared.optimizer or adamw(
        pipeline.model,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        layer_decay=config.layer_decay,
    )
    fitting = Fitting(
        pipeline=pipeline,
        held_out=prepared.held_out,
        config=config,
        schedule=schedule,
        directory=directory,
        progress=progress,
        optimizer=optimizer,
        scheduler=prepared.scheduler or scheduler(optimizer, config, schedule.total),
        start=start,
        stop=stop,
        selection=Selection(config.patience),
        pace=Pace(config.save_every),
        guards=Guards(Cuts(directory.read_cuts()), scaler_for(config.precision, pipeline.device)),
        weights=TrainedWeights(
            pipeline.model,
            None if config.ema is None else Average(pipeline.model, config.ema.decay),
            prepared.adapter,
            word_table(pipeline.model, optimizer, prepared.batches, config, device=pipeline.device),
        ),
    )
    fitting.guards.cuts.tell = partial(directory.note_cut, start.attempt)
    fitting.guards.keep = partial(keep_step, fitting, prepared.places, prepared.batches.task)
    return fitting
