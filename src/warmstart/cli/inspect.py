"""`warmstart inspect`: what a checkpoint is, read from its files; no model is built and no code of it runs."""

from __future__ import annotations

import math
from typing import Any

import click

from warmstart.cli import console
from warmstart.display import escape_terminal


@click.command("inspect")
@click.argument("model")
@click.option("--json", "as_json", is_flag=True, help="One JSON line.")
def command(model: str, as_json: bool) -> None:
    """Show what checkpoint MODEL is: task, labels, size, limits, and what was found odd.

    \b
    warmstart inspect starter-encoder
    warmstart inspect runs/a --json
    """
    from warmstart.checkpoints import find, verify

    found = find(model)
    verified = verify(found.folder)
    parameters = sum(math.prod(tensor.shape) for tensor in verified.tensors.values())
    facts: dict[str, Any] = {
        "name": found.name,
        "source": found.source,
        "folder": str(found.folder),
        "model_type": verified.model_type,
        "task": verified.task,
        "trained_head": verified.has_head,
        "labels": None if verified.labels is None else list(verified.labels),
        "parameters": parameters,
        "dtypes": sorted({tensor.dtype for tensor in verified.tensors.values()}),
        "bytes": sum(path.stat().st_size for path in verified.weights),
        "max_positions": verified.max_positions,
        "findings": list(verified.findings),
    }
    if as_json:
        console.emit(facts)
        return
    for name, value in facts.items():
        values = value if isinstance(value, list) else [value]
        more = f", and {len(values) - 20} more" if len(values) > 20 else ""
        console.show(f"{name:<14} {escape_terminal(', '.join(map(_text, values[:20])))}{more}")


def _text(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
