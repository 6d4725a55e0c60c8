"""`warmstart compare`: two results on the same rows, and whether their difference is more than chance."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from warmstart.cli import console
from warmstart.display import escape_terminal
from warmstart.durable import write_file

if TYPE_CHECKING:
    from warmstart.evaluation import Comparison
    from warmstart.evaluation.disagreement import Disagreement

SHOWN = 5  # disagreements


@click.command("compare")
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="A file for all of it, as JSON.")
@click.option("--json", "as_json", is_flag=True, help="One JSON line, with every row they disagree on.")
def command(a: Path, b: Path, output: Path | None, as_json: bool) -> None:
    """Compare A and B: run directories, or folders of `warmstart evaluate -o`, on the same rows.

    \b
    warmstart compare runs/a runs/b
    """
    from warmstart.evaluation import make_folder, reported
    from warmstart.verbs.compare import compare

    found = compare(a, b)
    if output is not None:
        make_folder(output.parent)
        with reported(output):
            write_file(output, (json.dumps(found.as_dict(), indent=2, allow_nan=False) + "\n").encode())
    if as_json:
        console.emit(found.as_dict())
        return
    _show(found)
    if output is not None:
        console.say(f"all {len(found.disagreements):,} disagreements: {output}")


def _show(found: Comparison) -> None:
    console.show(f"A: {found.a}\nB: {found.b}\n{found.task}, {found.rows:,} rows\n")
    width = max(len(name) for name in ("metric", *found.metrics))
    heads = f"{'A':>8} {'B':>8} {'B - A':>9}  {'95 % interval':18} {'p':>9} {'detectable':>10}"
    console.show(f"{'metric':{width}}  {heads}")
    for name, each in found.metrics.items():
        detectable = "" if each.minimum_detectable is None else f"{each.minimum_detectable:.4f}"
        console.show(
            f"{escape_terminal(name):{width}}  {each.a:8.4f} {each.b:8.4f} {each.difference:+9.4f}  "
            f"[{each.lo:+.4f}, {each.hi:+.4f}]   {_chance(each.p_value):>7} {detectable:>10}"
        )
    for name in found.left_out:
        console.say(f"{name} is left out: the stored predictions of one side do not give it")
    if found.primary is not None:
        console.show(f"\n{_verdict(found, found.primary)}")
    console.show(f"they disagree on {len(found.disagreements):,} rows")
    for row in found.disagreements[:SHOWN]:
        console.show(_row(row))


def _verdict(found: Comparison, primary: str) -> str:
    each = found.metrics[primary]
    if each.p_value <= 0.05:
        return f"{'B' if each.difference > 0 else 'A'} is better by {primary}: chance alone rarely does that"
    shown = "" if each.minimum_detectable is None else f"; so many rows would likely show {each.minimum_detectable:.4f}"
    return f"no difference in {primary} is shown: chance alone would do that{shown}"


def _row(each: Disagreement) -> str:
    fields = " | ".join(f"{name}: {_short(value)}" for name, value in each.fields.items())
    return f"  row {each.row_a}: {escape_terminal(fields)}\n    A: {_said(each.a)}\n    B: {_said(each.b)}"


def _said(prediction: Mapping[str, Any]) -> str:
    shown = {
        name: value for name, value in prediction.items() if name not in ("tokens", "truncated", "flags", "scores")
    }
    return escape_terminal(_short(json.dumps(_rounded(shown), ensure_ascii=False)))


def _rounded(value: Any) -> Any:
    """A prediction as it is shown."""
    if isinstance(value, Mapping):
        return {name: _rounded(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_rounded(each) for each in value]
    return round(value, 4) if isinstance(value, float) else value


def _chance(p: float) -> str:
    return f"{p:.4f}" if p >= 0.0001 else "<0.0001"


def _short(text: str, width: int = 100) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"
