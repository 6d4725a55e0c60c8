"""Options that several commands share."""

from __future__ import annotations

import json
from typing import Any

import click

from warmstart.errors import UsageError


def _pairs(ctx: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    return {name: text.strip() for name, text in _split(parameter, values).items()}


def _split(parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    pairs = {}
    for value in values:
        name, equals, rest = value.partition("=")
        if not equals or not name:
            raise UsageError(
                "pair-malformed", f"{parameter.opts[-1]} takes name=value", value=value, fix="write name=value"
            )
        pairs[name.strip()] = rest
    return pairs


def _typed_pairs(ctx: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, Any]:
    # Space around a text is part of it: "summarize: " is what T5 was trained with.
    return {name: _typed(text) for name, text in _split(parameter, values).items()}


def _typed(text: str) -> Any:
    """A number, a list or a truth value (as JSON or as Python writes it) where the text writes one, else the text."""
    if text in ("True", "False"):
        return text == "True"
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return text if isinstance(value, dict) else value  # no option is an object; "{}" is a template


task_option = click.option("--task", help="A task name; the checkpoint's own otherwise. See `warmstart tasks`.")
device_option = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N or mps.")
precision_option = click.option(
    "--precision",
    help="fp32, bf16, int8, or auto: what is measured to be fastest here. The checkpoint's own without it.",
)
columns_option = click.option(
    "--column", "columns", multiple=True, callback=_pairs, metavar="FIELD=COLUMN", help="Pin a column, e.g. text=body."
)
option_option = click.option(
    "--option",
    "options",
    multiple=True,
    callback=_typed_pairs,
    metavar="NAME=VALUE",
    help="A task option, e.g. long_text=windows or max_length=128.",
)
