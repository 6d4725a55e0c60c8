"""The public surface: which names there are, of what kind, and how they are called."""

from __future__ import annotations

import ast
import inspect
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import warmstart as ws

CLASSES = {
    "CheckpointError",
    "Checkpointer",
    "Comparison",
    "DataError",
    "Evaluation",
    "Export",
    "LayerDecay",
    "Limits",
    "LoRA",
    "Loss",
    "Pipeline",
    "Run",
    "Tolerance",
    "TopLayers",
    "TrainConfig",
    "TrainingError",
    "UsageError",
    "WarmstartError",
    "WeightAverage",
}
FUNCTIONS = {"batches", "compare", "evaluate", "export", "load", "load_for", "pad", "search", "serve", "train", "unpad"}
FUNCTIONS |= {"why_padded"}


def test_these_are_the_public_names() -> None:
    assert set(ws.__all__) == CLASSES | FUNCTIONS
    assert list(ws.__all__) == sorted(ws.__all__)
    assert {*ws.__all__, "__version__"} == set(dir(ws))
    assert ws.__version__.count(".") == 2


@pytest.mark.parametrize("name", sorted(CLASSES | FUNCTIONS))
def test_a_name_is_of_its_kind_and_says_what_it_is(name: str) -> None:
    value = getattr(ws, name)
    assert inspect.isclass(value) if name in CLASSES else isinstance(value, types.FunctionType)
    assert value.__name__ == name and inspect.getdoc(value)


def test_the_names_that_type_checkers_see_are_the_names_that_are_loaded() -> None:
    """`TYPE_CHECKING` imports and the table of homes are two lists of the same names."""
    tree = ast.parse(Path(ws.__file__).read_text())
    [block] = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {
        (alias.name, node.module) for node in block.body for alias in node.names if isinstance(node, ast.ImportFrom)
    }
    assert seen == set(ws._HOME.items()) and set(ws._HOME) == set(ws.__all__)


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_options_are_given_by_name_and_none_is_open_ended(name: str) -> None:
    parameters = list(inspect.signature(getattr(ws, name)).parameters.values())
    positional = [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert len(positional) <= 2
    assert all(p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) for p in parameters)
    assert all(p.annotation is not p.empty for p in parameters)


def test_signatures_are_those_of_the_documentation() -> None:
    def names(function: Callable[..., Any]) -> list[str]:
        return list(inspect.signature(function).parameters)

    assert names(ws.load) == ["name", "task", "labels", "options", "device", "dtype"]
    assert names(ws.train) == [
        "model", "data", "output", "task", "validation", "config", "columns", "options", "optimizer", "scheduler",
        "progress", "force",
    ]  # fmt: skip
    assert names(ws.evaluate) == ["pipeline", "data", "columns", "progress"]
    assert names(ws.compare) == ["a", "b"]
    assert names(ws.export) == [
        "model", "output", "format", "precision", "data", "columns", "task", "options", "tolerance",
    ]  # fmt: skip
    assert names(ws.serve) == ["models", "host", "port", "api_keys", "allowed_hosts", "limits"]
    assert names(ws.batches) == ["rows", "task", "max_tokens", "batch_size", "seed", "columns"]
    assert names(ws.Pipeline.__call__) == ["self", "inputs", "max_tokens"]


def test_errors_are_one_tree_with_exit_codes() -> None:
    tree = {ws.WarmstartError: 1, ws.UsageError: 2, ws.DataError: 3, ws.CheckpointError: 4, ws.TrainingError: 1}
    for kind, code in tree.items():
        assert issubclass(kind, ws.WarmstartError) and kind.exit_code == code


def test_results_are_frozen_values() -> None:
    for kind in (ws.Pipeline, ws.Run, ws.Evaluation, ws.Comparison, ws.Export):
        assert kind.__dataclass_params__.frozen  # type: ignore[attr-defined]
