"""Train: rows and a checkpoint in, a run directory with a standard Hugging Face checkpoint out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from warmstart.checkpoints import load_weights
from warmstart.engine import resolve_device
from warmstart.errors import CheckpointError, UsageError
from warmstart.evaluation import Evaluation
from warmstart.metrics import Metric
from warmstart.pipeline import Pipeline
from warmstart.report import write_report
from warmstart.tasks import TASKS, Task, WritesFiles, find_task
from warmstart.training.config import TrainConfig, plain
from warmstart.training.lock import locked
from warmstart.training.model_card import RunFacts
from warmstart.training.phases import phase
from warmstart.training.recipe import Recipe
from warmstart.training.run import RunDirectory, tidying
from warmstart.training.stopping import listening
from warmstart.verbs.evaluate import evaluate_rows
from warmstart.verbs.fitting import Fitting, Progress, fit_pipeline
from warmstart.verbs.kept_evaluation import read_evaluation
from warmstart.verbs.load import check_option_names, load, options_of
from warmstart.verbs.own_optimizer import MakeOptimizer, MakeScheduler, check_settings, with_own
from warmstart.verbs.preparing import Prepared, prepare_run
from warmstart.verbs.resuming import Start, begin, recorded

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
    optimizer: MakeOptimizer | None = None,
    scheduler: MakeScheduler | None = None,
    progress: Callable[[Progress], None] | None = None,
    force: bool = False,
) -> Run:
    """Fine-tune a checkpoint on labelled rows.

    `model`: any name `ws.load` takes. `data`: a file (JSONL, CSV, TSV, Parquet, Arrow, text; also gzipped), a
    `datasets.Dataset`, a pandas or polars frame, or a list of rows. `validation`: rows of the same kinds, or a share
    of `data` to hold out, e.g. 0.1; with it the best evaluated weights are kept, without it the last ones. `columns`
    pins columns, e.g. {"text": "body"}. `progress` is called after every step and evaluation.

    `optimizer`: a function from the parameters to any `torch.optim.Optimizer`, in place of AdamW; `scheduler`: one from
    it and the number of steps to any `LRScheduler`, stepped once a step, e.g. lambda optimizer, total:
    OneCycleLR(optimizer, 0.1, total); ReduceLROnPlateau is stepped by the validation loss after each evaluation. Their
    states are saved and resumed as AdamW's are.

    The same call on the directory of a run that was interrupted resumes it, with the weights of a run that was not, to
    the last bit; on that of a finished one it returns the result. With other data, labels, settings, checkpoint or
    versions it is refused, unless by `force`, which is recorded. SIGINT or SIGTERM, once: the step is finished and
    saved, or after the last one the run is, then KeyboardInterrupt or SystemExit(143) is raised; twice: at once.

        run = ws.train("starter-encoder", "train.jsonl", output="runs/a", validation="dev.jsonl")
        run.metrics["accuracy"]; run.pipeline("a new text")

    A head that fits the rows' labels goes on being trained; otherwise a fresh one is started, which is said.
    Raises UsageError, DataError and CheckpointError before the first step for what is wrong with the call, the rows or
    the checkpoint; TrainingError for a run that cannot go on. A `progress` that fails is warned about and goes on.
    """
    config = _checked(config or TrainConfig(), validation)
    check_settings(config, optimizer, scheduler)
    kind = None if task is None else _trainable(find_task(task))
    if kind is not None:
        check_option_names(kind, options or {})
    if config.device != "auto":
        resolve_device(config.device)
    directory = RunDirectory(Path(output))
    begun = directory.check_usable()
    with ExitStack() as held:
        if begun:
            held.enter_context(locked(directory.path))
        prepared = prepare_run(
            model, data, kind=kind, validation=validation, config=config, columns=columns, options=options or {},
            name=str(output),
        )  # fmt: skip
        prepared = with_own(prepared, optimizer, scheduler)
        if not begun:
            directory.create()
            held.enter_context(locked(directory.path))
        recipe = _recipe(model, data, validation, columns, prepared)
        start = begin(directory, recipe, prepared.provenance, force=force)
        if start.finished is not None:
            return _finished(directory, start.finished, prepared)
        return _fit(prepared, directory, progress, start)


def _fit(prepared: Prepared, directory: RunDirectory, progress: Callable[[Progress], None] | None, start: Start) -> Run:
    """Train to the end and finish. A signal that comes after the last step is obeyed when the run is finished."""
    with listening() as stop:
        with recorded(directory, start):
            run = _finish(fit_pipeline(prepared, directory, progress, start, stop), prepared, start.attempt)
        _tidy(run, prepared.config)
    if stop.signal is not None:
        log.warning("stopped after the last step; the run is finished, and the same call gives its result")
        raise stop.outcome()
    return run


def _recipe(
    model: str | Path, data: Any, validation: Any, columns: Mapping[str, str] | None, prepared: Prepared
) -> Recipe:
    """What config.toml keeps. Rows that did not come from a file cannot be named there."""
    return Recipe(
        model=str(model),
        data=_named(data),
        validation=validation if isinstance(validation, float) else _named(validation),
        task=prepared.pipeline.task.name,
        columns=columns or {},
        options=options_of(prepared.pipeline.task),
        config=prepared.config,
    )


def _named(rows: Any) -> str | None:
    return str(rows) if isinstance(rows, str | Path) and str(rows) != "-" else None


def _finish(fitting: Fitting, prepared: Prepared, attempt: int) -> Run:
    """Take the best weights back, save the result, and write the run's reports."""
    directory, pipeline, best = fitting.directory, fitting.pipeline, fitting.best
    best_step = fitting.selection.best_step if best else fitting.steps
    with phase("finish", fitting.steps):
        if best is not None:
            load_weights(pipeline.model, directory.best_checkpoint(best_step))
        facts = RunFacts(
            task=pipeline.task.name,
            base=prepared.base,
            options=options_of(pipeline.task),
            settings=plain(fitting.config),
            metrics={} if best is None else best.as_dict()["metrics"],
            training_rows=prepared.rows,
            validation_rows=len(fitting.held_out),
            steps=fitting.steps,
            lineage=directory.read_provenance().get("lineage", []),
        )
        task = pipeline.task
        own = task.files(width=pipeline.model.config.hidden_size) if isinstance(task, WritesFiles) else {}
        fitting.save(directory.model, {**own, **facts.files()})  # before all that is only about it
        if best is not None:
            best.write_predictions(directory.predictions)
        try:
            write_report(directory.path)
        except Exception as error:  # the result is saved: a page about it is no reason to lose it
            log.warning("the report could not be written: %r", error)
        directory.note_end(attempt, "finished", fitting.steps, best_step=best_step)
    return _run(pipeline, directory, best, fitting.steps, best_step)


def _finished(directory: RunDirectory, end: Mapping[str, Any], prepared: Prepared) -> Run:
    """The result of a run that is finished: its own weights, and its evaluation on the validation rows."""
    log.info("%s is finished, after %d steps; nothing is trained", directory.path, end["step"])
    pipeline = load(directory.path, device=prepared.config.device)
    best = None
    if prepared.held_out:
        try:
            best = read_evaluation(directory.best_checkpoint(end["best_step"]), pipeline.task, prepared.held_out)
        except CheckpointError as error:
            log.warning("%s; the weights are evaluated again", error.what)
            best = evaluate_rows(pipeline, prepared.held_out)
    run = _run(pipeline, directory, best, end["step"], end["best_step"])
    _tidy(run, prepared.config)  # a kill may have come before it
    return run


def _tidy(run: Run, config: TrainConfig) -> None:
    """Leave what a finished run keeps."""
    best_step = None if run.validation is None else run.best_step
    with phase("prune", run.best_step), tidying():
        RunDirectory(run.path).tidy(best_step, config.keep if config.save_every else 0)


def _run(pipeline: Pipeline, directory: RunDirectory, best: Evaluation | None, steps: int, best_step: int) -> Run:
    return Run(
        pipeline=pipeline,
        path=directory.path,
        metrics={} if best is None else best.metrics,
        validation=best,
        steps=steps,
        best_step=best_step,
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


def _trainable(kind: type[Task]) -> type[Task]:
    if kind.trainable:
        return kind
    raise UsageError(
        "task-not-trainable",
        f"{kind.name} cannot be trained in this version",
        value=kind.name,
        fix=f"give task=, one of: {', '.join(name for name, each in TASKS.items() if each.trainable)}",
    )
