"""`warmstart replay`: computes a step again that was not finite, and names its rows and parameters."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from warmstart.cli import console
from warmstart.display import escape_terminal

if TYPE_CHECKING:
    from warmstart.verbs.replay import Replay, ReplayedRow

MOST = 8  # rows and parameters that are listed


@click.command("replay")
@click.argument("step", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="One JSON line with every row.")
def command(step: Path, as_json: bool) -> None:
    """Compute a step again that ended a run because its loss or gradient was not finite.

    \b
    warmstart replay runs/a/nonfinite/step-000012
    """
    from warmstart.verbs.replay import replay

    found = replay(step)
    if as_json:
        console.emit(found.as_dict())
    else:
        for line in _lines(found):
            console.show(line)


def _lines(found: Replay) -> list[str]:
    again = "as then, to the last bit" if found.same else "not as then"
    lines = [f"step {found.step}: loss {found.loss:.6g}, gradient norm {found.grad_norm:.6g} ({again})"]
    bad = [row for row in found.rows if not row.finite]
    if bad:
        lines += [f"rows that are not finite: {len(bad)} of {len(found.rows)}", *_listed(bad)]
    else:
        largest = sorted(found.rows, key=lambda row: row.loss or 0.0, reverse=True)
        lines += [f"every one of the {len(found.rows)} rows is finite; the largest losses:", *_listed(largest[:3])]
    if found.parameters:
        more = f" and {len(found.parameters) - MOST} more" if len(found.parameters) > MOST else ""
        names = ", ".join(found.parameters[:MOST])
        lines.append(f"gradients that are not finite: {len(found.parameters)} of {found.trained}: {names}{more}")
    if found.module is not None:
        lines.append(f"first module whose output is not finite: {found.module}")
    return lines


def _listed(rows: list[ReplayedRow]) -> list[str]:
    shown = []
    for row in rows[:MOST]:
        named = (("loss", row.loss), ("gradient", row.grad_norm))
        numbers = ", ".join(f"{name} {value:.4g}" for name, value in named if value is not None)
        shown.append(f"  {escape_terminal(row.place)}: {numbers}  {escape_terminal(row.text)}")
    return shown + ([f"  and {len(rows) - MOST} more (--json lists all)"] if len(rows) > MOST else [])
