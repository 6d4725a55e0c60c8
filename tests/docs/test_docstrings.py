"""The examples in docstrings run: the prompts of every module, and the indented lines of the public names."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import pytest
from torch.utils.data import DataLoader

import warmstart as ws

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(ws.__path__, "warmstart.")
    if not module.ispkg and not module.name.endswith("__main__")
)


@pytest.mark.parametrize("name", MODULES)
def test_the_prompts_of_a_module_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that need a checkpoint say so by `# doctest: +SKIP`."""
    monkeypatch.chdir(tmp_path)
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    assert doctest.testmod(importlib.import_module(name), optionflags=flags).failed == 0


def _example(name: str) -> str:
    """The indented lines of a public name's docstring."""
    lines = (inspect.getdoc(getattr(ws, name)) or "").splitlines()
    return "\n".join(line.removeprefix("    ") for line in lines if line.startswith("    "))


@pytest.mark.usefixtures("workplace")
def test_the_examples_of_the_public_names_run_in_one_session() -> None:
    namespace = {"ws": ws, "DataLoader": DataLoader}
    for name in ("load", "Pipeline", "TrainConfig", "train", "evaluate"):
        exec(compile(_example(name), f"docstring of ws.{name}", "exec"), namespace)
    assert namespace["run"].metrics["accuracy"].value > 0.5  # type: ignore[attr-defined]
    fresh = ws.load("starter-encoder", task="text-classification", labels=["positive", "negative"])
    namespace["pipe"] = fresh
    exec(compile(_example("batches"), "docstring of ws.batches", "exec"), namespace)
    assert fresh.model.classifier.weight.grad is not None


def test_every_public_function_has_an_example() -> None:
    for name in ("load", "train", "evaluate", "batches"):
        assert re.search(r"\bws\.\w+\(", _example(name)), name
