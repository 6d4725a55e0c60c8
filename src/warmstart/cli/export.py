"""`warmstart export`: a checkpoint in another form, kept only if it answers as its source."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from warmstart.cli import console
from warmstart.cli.options import columns_option, option_option, task_option

if TYPE_CHECKING:
    from warmstart.verbs.parity import Parity, Tolerance


@click.command("export")
@click.option("-m", "--model", required=True, help="The checkpoint: a folder, run, hub id or starter name.")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The new folder.")
@click.option("--format", default="openvino", show_default=True, help="openvino, onnx or safetensors.")
@click.option("--precision", default="fp32", show_default=True, help="fp32 or int8.")
@click.option("-d", "--data", help="Rows to calibrate int8 with and to judge the export on; no labels needed.")
@click.option("--agreement", type=click.FloatRange(0, 1), help="The least share of rows decided as before.")
@click.option(
    "--max-difference", type=click.FloatRange(min=0), help="The largest difference of an output, e.g. a logit."
)
@click.option("--parity-rows", type=click.IntRange(min=1), help="The fewest rows to judge on.")
@click.option("--json", "as_json", is_flag=True, help="One JSON line.")
@task_option
@columns_option
@option_option
def command(
    model: str,
    output: Path,
    format: str,
    precision: str,
    data: str | None,
    agreement: float | None,
    max_difference: float | None,
    parity_rows: int | None,
    as_json: bool,
    task: str | None,
    columns: dict[str, str],
    options: dict[str, Any],
) -> None:
    """Write a checkpoint as a graph that predicts without torch, or as plain weights.

    \b
    warmstart export -m runs/a -o runs/a-int8 --precision int8 -d train.jsonl
    warmstart predict -m runs/a-int8 "a text"
    """
    from warmstart.verbs.export import default_tolerance, export

    tolerance = _changed(default_tolerance(precision), agreement=agreement, difference=max_difference, rows=parity_rows)
    result = export(
        model,
        output,
        format=format,
        precision=precision,
        data=data,
        columns=columns,
        task=task,
        options=options,
        tolerance=tolerance,
    )
    if as_json:
        console.emit(result.as_dict())
        return
    console.show(f"folder      {result.path}")
    console.show(f"size        {result.bytes / 1e6:,.1f} MB")
    if result.precision == "int8":
        console.show(f"in float    {len(result.in_float)} matrix products")
    for line in _report(result.parity):
        console.show(line)


def _changed(tolerance: Tolerance, *, agreement: float | None, difference: float | None, rows: int | None) -> Tolerance:
    """The tolerance with what a person asked for in its place."""
    asked = {"agreement": agreement, "difference": difference, "rows": rows}
    return dataclasses.replace(tolerance, **{name: value for name, value in asked.items() if value is not None})  # type: ignore[arg-type]


def _report(parity: Parity) -> list[str]:
    """The parity report, a line a fact, and every flipped row."""
    lines = [
        f"agreement   {parity.agreement:.2%} of {parity.rows:,} rows, {parity.rows_alone:,} of them also one at a time",
        f"difference  {parity.difference:.3g} at most, of any output",
    ]
    if parity.cosine is not None:
        lines.append(f"cosine      {parity.cosine:.5f} at least")
    for flip in parity.flips:
        beside = "alone" if flip.alone else "in a batch"
        lines.append(f"flipped     {flip.where or f'row {flip.row}'}, {beside}: {flip.expected} became {flip.got}")
    return lines
