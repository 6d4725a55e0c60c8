"""`warmstart train`: a checkpoint and labelled rows in, a run directory out."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from warmstart.cli import console
from warmstart.cli.options import columns_option, option_option, task_option

if TYPE_CHECKING:
    from warmstart.verbs.evaluate import Evaluation
    from warmstart.verbs.fitting import Progress


@click.command("train")
@click.option("-m", "--model", required=True, help="The checkpoint to start from.")
@click.option("-d", "--data", required=True, help="Labelled rows: a file, or - for stdin.")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The new run directory.")
@click.option("--validation", help="A file of rows, or a share of the data to hold out, e.g. 0.1.")
@click.option("--config", "config_path", type=click.Path(path_type=Path), help="A TOML file with a [train] table.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="A training setting, e.g. epochs=2.")
@click.option("--device", help="auto, cpu, cuda, cuda:N or mps; short for --set device=….")
@click.option("--json", "as_json", is_flag=True, help="One JSON line at the end, on stdout.")
@task_option
@columns_option
@option_option
def command(
    model: str,
    data: str,
    output: Path,
    validation: str | None,
    config_path: Path | None,
    settings: tuple[str, ...],
    device: str | None,
    as_json: bool,
    task: str | None,
    columns: dict[str, str],
    options: dict[str, Any],
) -> None:
    """Fine-tune a checkpoint on labelled rows.

    \b
    warmstart train -m starter-encoder -d train.jsonl --validation dev.jsonl -o runs/a
    warmstart train -m starter-encoder -d train.csv --validation 0.1 -o runs/b --set epochs=2 --set seed=1
    """
    from warmstart.training.config import read_config
    from warmstart.verbs.train import train

    config = read_config(config_path, settings if device is None else (*settings, f"device={device}"))
    run = train(
        model,
        data,
        output=output,
        task=task,
        validation=_share_or_path(validation),
        config=config,
        columns=columns,
        options=options,
        progress=progress_line(),
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

    def update(progress: Progress) -> None:
        nonlocal started
        step = progress.step
        started = time.monotonic() - step.seconds if started is None else started
        if progress.validation is not None:
            metrics = "  ".join(f"{name} {metric.value:.4f}" for name, metric in progress.validation.metrics.items())
            at = f"step {step.step}/{progress.total}"
            line.update(f"{at}  validation loss {progress.validation.loss:.4f}  {metrics}", last=True)
            return
        spent = time.monotonic() - started
        left = spent / step.step * (progress.total - step.step)
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


def _share_or_path(validation: str | None) -> float | str | None:
    if validation is None:
        return None
    try:
        return float(validation)
    except ValueError:
        return validation
