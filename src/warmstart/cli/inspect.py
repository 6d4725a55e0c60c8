"""`warmstart inspect`: what a checkpoint is, read from its files; no model is built and no code of it runs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from warmstart.cli import console
from warmstart.display import escape_terminal
from warmstart.errors import UsageError

if TYPE_CHECKING:
    from warmstart.checkpoints import Exported, Verified


@click.command("inspect")
@click.argument("model", required=False)
@click.option("-m", "--model", "named", help="The same, as other commands take it.")
@click.option("--json", "as_json", is_flag=True, help="One JSON line.")
def command(model: str | None, named: str | None, as_json: bool) -> None:
    """Show what checkpoint MODEL is: task, labels, size, limits, and what was found odd.

    \b
    warmstart inspect starter-encoder
    warmstart inspect -m runs/a --json
    """
    if model is not None and named is not None:
        raise UsageError(
            "option-conflict", "MODEL and -m are both given", value=[model, named], fix="give one of the two"
        )
    model = model or named
    if model is None:
        raise click.MissingParameter(param_hint="MODEL", param_type="argument")
    from warmstart.checkpoints import find, is_export, verify, verify_export

    found = find(model)
    facts: dict[str, Any] = {"name": found.name, "source": found.source, "folder": str(found.folder)}
    facts |= _exported(verify_export(found.folder)) if is_export(found.folder) else _weights(verify(found.folder))
    if chosen := _choices(found.folder):
        facts["precision_auto"] = chosen
    if as_json:
        console.emit(facts)
        return
    for name, value in facts.items():
        values = value if isinstance(value, list) else [value]
        more = f", and {len(values) - 20} more" if len(values) > 20 else ""
        console.show(f"{name:<14} {escape_terminal(', '.join(map(_text, values[:20])))}{more}")


def _weights(verified: Verified) -> dict[str, Any]:
    from warmstart.engine.architectures import way_of

    return {
        "model_type": verified.model_type,
        "batches": way_of(verified.model_type, verified.config),
        "task": verified.task,
        "trained_head": verified.has_head,
        "labels": None if verified.labels is None else list(verified.labels),
        "parameters": sum(math.prod(tensor.shape) for tensor in verified.tensors.values()),
        "dtypes": sorted({tensor.dtype for tensor in verified.tensors.values()}),
        "bytes": sum(path.stat().st_size for path in verified.weights),
        "max_positions": verified.max_positions,
        **_kept_parity(verified.folder),
        "findings": list(verified.findings),
    }


def _kept_parity(folder: Path) -> dict[str, Any]:
    """How weights that `warmstart export` wrote compare with their source."""
    from warmstart.checkpoints.exported import PARITY
    from warmstart.checkpoints.files import find_file, read_json

    path = find_file(folder, PARITY)
    return {} if path is None else {"parity": _counted(read_json(path))}


def _counted(parity: Mapping[str, Any]) -> dict[str, Any]:
    """A parity report with the number of its flips in their place."""
    flips = parity.get("flips")
    kept = {name: value for name, value in parity.items() if name != "flips"}
    return {**kept, "flipped": len(flips) if isinstance(flips, list) else flips}


def _exported(exported: Exported) -> dict[str, Any]:
    """The record of an export, its parity report in the place of tensors."""
    record = exported.record
    return {
        "model_type": exported.config["model_type"],
        "task": record.task,
        "labels": None if record.labels is None else list(record.labels),
        "format": record.format,
        "precision": record.precision,
        "exported_from": record.source,
        "bytes": sum(path.stat().st_size for path in exported.files),
        "max_positions": record.tokenizer.limit,
        "options": record.options,
        "packed": record.packed,
        "calibration": record.calibration,
        "parity": _counted(record.parity),
        "versions": record.versions,
        "findings": list(exported.findings),
    }


def _choices(folder: Path) -> list[dict[str, Any]]:
    """What `--precision auto` has chosen for this checkpoint, and what it saw of each candidate."""
    from warmstart.verbs.choice import choices_for

    return [
        {
            "chosen": choice.chosen,
            "why": choice.why,
            "task": choice.task,
            "device": choice.device,
            "threads": choice.machine["threads"],
            "judged_on": f"{choice.rows['rows']} {'rows given' if choice.own_rows else 'movie reviews'}",
            "tried": {trial.name: trial.refused or f"{trial.rows_per_second:.0f} rows/s" for trial in choice.trials},
        }
        for choice in choices_for(folder)
    ]


def _text(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_text(part)}" for name, part in value.items())
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
