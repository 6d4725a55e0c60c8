"""`warmstart evaluate`: every metric with its 95 % interval."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from warmstart.cli import console
from warmstart.cli.loading import open_pipeline
from warmstart.cli.options import columns_option, device_option, option_option, precision_option, task_option
from warmstart.cli.train import show_metrics


@click.command("evaluate")
@click.option("-m", "--model", required=True, help="A folder, run, hub id or starter name.")
@click.option("-d", "--data", required=True, help="Labelled rows: a file, or - for stdin.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="A folder for metrics.json, predictions.parquet.")
@click.option("--json", "as_json", is_flag=True, help="One JSON line.")
@task_option
@columns_option
@option_option
@device_option
@precision_option
def command(
    model: str,
    data: str,
    output: Path | None,
    as_json: bool,
    task: str | None,
    columns: dict[str, str],
    options: dict[str, Any],
    device: str,
    precision: str | None,
) -> None:
    """Judge a checkpoint on labelled rows.

    \b
    warmstart evaluate -m runs/a -d test.jsonl
    """
    from warmstart.evaluation import make_folder
    from warmstart.verbs.evaluate import evaluate

    if output is not None:
        make_folder(output)
    # The rows that judge calibrate nothing.
    pipe = open_pipeline(model, precision=precision, task=task, options=options, device=device)
    result = evaluate(pipe, data, columns=columns)
    if output is not None:
        result.write(output)
    if as_json:
        console.emit(result.as_dict())
    else:
        console.show(f"{result.rows:,} rows, mean loss {result.loss:.4f}")
        show_metrics(result)
