"""The pipeline a command asks for, in the precision it names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from warmstart.cli import console
from warmstart.errors import UsageError

if TYPE_CHECKING:
    from warmstart.pipeline import Pipeline


def open_pipeline(
    model: str,
    *,
    precision: str | None,
    data: str | None = None,
    columns: Mapping[str, str] | None = None,
    task: str | None,
    options: Mapping[str, Any],
    device: str,
) -> Pipeline:
    """`ws.load`; with `precision`, `ws.load_for`, which tells its choice. `data`: rows that may calibrate int8."""
    from warmstart.verbs.load import load

    if precision is None:
        return load(model, task=task, options=options, device=device)
    from warmstart.verbs.choose import load_for

    try:
        pipe, choice = load_for(
            model, precision=precision, data=data, columns=columns, task=task, options=options, device=device
        )
    except UsageError as error:
        if error.code != "export-rows-needed":
            raise
        raise UsageError(
            "export-rows-needed",
            error.what,
            value=error.value,
            fix=f"make the graph once, of rows like yours: warmstart export -m {model} -o FOLDER --precision int8 "
            "-d ROWS; then give -m FOLDER",
        ) from None
    if choice is not None:
        console.say(f"{model}: {choice.chosen}: {choice.why}")
    return pipe
