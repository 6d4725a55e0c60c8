"""`warmstart train`: a checkpoint and labelled rows in, a run directory out."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from warmstart.cli import console
from warmstart.cli.options import columns_option, option_option, task_option
from warmstart.errors import UsageError

if TYPE_CHECKING:
    from warmstart.evaluation import Evaluation
    from warmstart.verbs.fitting import Progress


@click.command("train")
@click.option("-m", "--model", help="The checkpoint to start from.")
@click.option("-d", "--data", help="Labelled rows: a file, or - for stdin.")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The run directory.")
@click.option("--validation", help="A file of rows, or a share of the data to hold out, e.g. 0.1.")
@click.option("--config", "config_path", type=click.Path(path_type=Path), help="A recipe: TOML, as each run has.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="A training setting, e.g. epochs=2.")
@click.option("--device", help="auto, cpu, cuda, cuda:N or mps; short for --set device=….")
@click.option("--force", is_flag=True, help="Resume although the run was begun with something else.")
@click.option("--json", "as_json", is_flag=True, help="One JSON line at the end, on stdout.")
@task_option
@columns_option
@option_option
def command(
    model: str | None,
    data: str | None,
    output: Path,
    validation: str | None,
    config_path: Path | None,
    settings: tuple[str, ...],
    device: str | None,
    force: bool,
    as_json: bool,
    task: str | None,
    columns: dict[str, str],
    options: dict[str, Any],
) -> None:
    """Fine-tune a checkpoint on labelled rows.

    \b
    warmstart train -m starter-encoder -d train.jsonl --validation dev.jsonl -o runs/a
    warmstart train -m starter-encoder -d train.csv --validation 0.1 -o runs/b --set epochs=2 --set seed=1
    warmstart train --config runs/a/config.toml -o runs/c

    The same command resumes a run that was interrupted. Ctrl-C once finishes the step and saves; twice ends at once.
    """
    from warmstart.training.config import read_config
    from warmstart.training.recipe import Recipe, read_recipe
    from warmstart.verbs.train import train

    settings = settings if device is None else (*settings, f"device={device}")
    recipe = Recipe(config=read_config(None, settings)) if config_path is None else read_recipe(config_path, settings)
    run = train(
        _given(model or recipe.model, "-m", "the checkpoint to start from"),
        _given(data or recipe.data, "-d", "the rows to train on"),
        output=output,
        task=task or recipe.task,
        validation=recipe.validation if validation is None else share_or_path(validation),
        config=recipe.config,
        columns={**recipe.columns, **columns},
        options={**recipe.options, **options},
        progress=progress_line(),
        force=force,
    )
    if as_json:
        metrics = {} if run.validation is None else run.validation.as_dict()["metrics"]
        console.emit({"run": str(run.path), "model": str(run.model), "steps": run.steps, "metrics": metrics})
    else:
        console.show(f"model   {run.model}")
        console.show(f"report  {run.path / 'report.html'}")
    if run.validation is not None and not as_json:
        show_metrics(run.validation)


def progress_line() -> Callable[[Progress], None]:
    """Shows a run's steps with loss, speed and time left, and a line for each evaluation."""
    line = console.Line()
    started: float | None = None  # when the first step began: loading is no part of the speed
    before = 0  # steps of earlier attempts: neither are they

    def update(progress: Progress) -> None:
        nonlocal started, before
        step = progress.step
        if started is None:
            started, before = time.monotonic() - step.seconds, step.step - (progress.validation is None)
        if progress.validation is not None:
            metrics = "  ".join(f"{name} {metric.value:.4f}" for name, metric in progress.validation.metrics.items())
            at = f"step {step.step}/{progress.total}"
            line.update(f"{at}  validation loss {progress.validation.loss:.4f}  {metrics}", last=True)
            return
        spent = time.monotonic() - started
        left = spent / max(1, step.step - before) * (progress.total - step.step)
        line.update(
            f"step {step.step}/{progress.total}  epoch {step.epoch:.2f}  loss {step.loss:.4f}  "
            f"{step.rows / max(step.seconds, 1e-9):.0f} rows/s  {left:.0f} s left"
        )

    return update


def show_metrics(evaluation: Evaluation) -> None:
    """Metrics with their intervals, as a table with bars."""
    for name, metric in evaluation.metrics.items():
        filled = console.bar(metric.value, beside=54) if 0 <= metric.value <= 1 else ""
        console.show(f"{name:<10} {metric.value:8.4f}  {filled}  95 % interval {metric.lo:.4f} to {metric.hi:.4f}")


def _given(value: str | None, option: str, what: str) -> str:
    if value is None:
        raise UsageError(
            "option-needed", f"{what} is not given", value=option, fix=f"give {option}, or --config with a recipe"
        )
    return value


def share_or_path(validation: str) -> float | str:
    """The share of rows that a text writes, or else the file it names."""
    try:
        return float(validation)
    except ValueError:
        return validation
