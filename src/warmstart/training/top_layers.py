"""Training the upper layers and the head alone: what is below is frozen, without dropout, and computed once."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from warmstart.batching import collate
from warmstart.durable import is_unsupported
from warmstart.engine.lower_states import CACHED, LowerPart, LowerStates
from warmstart.engine.runtime_torch import to_tensors
from warmstart.errors import UsageError, Where
from warmstart.features import Array, Batch, Feature
from warmstart.training.batches import Batches
from warmstart.training.config import TrainConfig
from warmstart.training.depth import depths, layers_of
from warmstart.training.recipes import TopLayers

log = logging.getLogger("warmstart")
# What a file system says that has no room, or none for files as large.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

FILL_TOKENS = 2048  # a batch, as in prediction on a CPU


def freeze_below(model: Any, config: TrainConfig, batches: Batches[Batch]) -> None:
    """Let no parameter below the trained layers ask for a gradient.

    Raises UsageError "layers-number", "layers-unknown", "recipes-conflict"; "states-not-constant" where the hidden
    states below cannot be kept.
    """
    recipe = config.top_layers
    if recipe is None:
        return
    if config.lora is not None:
        raise UsageError(
            "recipes-conflict",
            "lora puts adapters into the layers that top_layers freezes",
            where=Where(field="top_layers"),
            fix="leave one of the two out",
        )
    found, top = depths(model, asked_by="top_layers")
    if recipe.layers >= top:
        raise UsageError(
            "layers-number",
            f"the model has {top - 1} layers",
            where=Where(field="top_layers.layers"),
            value=recipe.layers,
            fix=f"train {top - 1} at most; all of the model is trained without top_layers",
        )
    if recipe.cache != "off":
        reason = _not_constant(model, batches)
        if reason is not None:
            raise UsageError(
                "states-not-constant",
                f"the hidden states below the trained layers cannot be kept: {reason}",
                where=Where(field="top_layers.cache"),
                value=recipe.cache,
                fix="set top_layers.cache=off: they are computed at every step",
            )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(found[name] >= top - recipe.layers)


@contextmanager
def training_top(
    model: Any, batches: Batches[Batch], recipe: TopLayers | None, *, folder: Path, device: str
) -> Iterator[None]:
    """Train a model that `freeze_below` has frozen in a block of this; after it every parameter asks for a gradient.

    `cache="disk"` keeps the states in a nameless file in `folder`, which goes with the process. Raises UsageError
    "states-too-large".
    """
    if recipe is None:
        yield
        return
    stack, layers = layers_of(model, asked_by="top_layers")
    frozen = [*_before(model, stack), *layers[: len(layers) - recipe.layers]]
    with ExitStack() as installed:
        for module in frozen:
            module.eval()
            module.train = _StaysInEval(module)
            installed.callback(vars(module).pop, "train")
        if recipe.cache != "off":
            part = LowerPart(model, layers, recipe.layers)
            states = installed.enter_context(_room(part, batches, recipe, folder))
            _fill(part, states, batches, device)
            installed.enter_context(part.handing_on(states))
        yield
    model.requires_grad_(True)


@dataclass(frozen=True)
class _StaysInEval:
    """Stands in for `train` of a frozen module: it has no dropout."""

    module: nn.Module

    def __call__(self, mode: bool = True) -> nn.Module:
        return self.module


def _before(model: Any, stack: str) -> list[nn.Module]:
    """The modules that run before the layers: children of the base model up to the one that holds the stack."""
    base = model.base_model
    names = {module: name for name, module in model.named_modules()}
    found = []
    for child in base.children():
        if f"{stack}.".startswith(f"{names[child]}."):
            break
        found.append(child)
    return found


def _not_constant(model: Any, batches: Batches[Batch]) -> str | None:
    kind = model.config.model_type
    if kind not in CACHED:
        return f"the architecture {kind!r} is not among {', '.join(sorted(CACHED))}"
    if batches.varies():
        return f"{batches.task.name} changes its inputs in every epoch"
    return None


@contextmanager
def _room(part: LowerPart, batches: Batches[Batch], recipe: TopLayers, folder: Path) -> Iterator[LowerStates]:
    """Room for the states of all rows, where they are to be kept; its size is said."""
    features = [feature for row in batches.features for feature in row]
    tokens = len(features) if part.first_only else sum(feature.length for feature in features)
    shape = (tokens, part.model.config.hidden_size)
    size = tokens * shape[1] * 4
    log.info(
        "hidden states below the trained layers: %s of %d numbers, %.1f MB %s",
        f"{tokens:,}", shape[1], size / 1e6, "in memory" if recipe.cache == "memory" else f"in a file in {folder}",
    )  # fmt: skip
    free = _memory() // 2 if recipe.cache == "memory" else shutil.disk_usage(folder).free
    if size > free:
        raise _too_large(
            size, f"{free / 1e6:,.0f} MB {'are half of the memory' if recipe.cache == 'memory' else 'are free'}"
        )
    if recipe.cache == "memory":
        yield LowerStates(np.empty(shape, dtype=np.float32), part.first_only)
        return
    with tempfile.TemporaryFile(dir=folder) as file:
        _reserve(file.fileno(), size)
        values: Array = np.memmap(file, dtype=np.float32, mode="w+", shape=shape)
        yield LowerStates(values, part.first_only)


def _reserve(file: int, size: int) -> None:
    """Take the room on the disk at once: where it ends under a mapped file, the process dies of a signal.

    Raises UsageError "states-too-large" where there is none.
    """
    try:
        if sys.platform == "linux":  # elsewhere a file with holes has to do
            os.posix_fallocate(file, 0, size)
    except OSError as error:
        if error.errno in _FULL:
            raise _too_large(size, str(error.strerror)) from error
        if not is_unsupported(error):
            raise


def _too_large(size: int, there: str) -> UsageError:
    return UsageError(
        "states-too-large",
        f"the hidden states take {size / 1e6:,.0f} MB",
        where=Where(field="top_layers.cache"),
        value=there,
        fix="cache them on disk (top_layers.cache=disk), compute them anew (off), or shorten texts (max_length)",
    )


def _fill(part: LowerPart, states: LowerStates, batches: Batches[Batch], device: str) -> None:
    """Run the lower part once over all rows; in batches that are the same at every start of a run, so are the bits."""
    rows = sorted(batches.features, key=lambda row: (max(feature.length for feature in row), row[0].row))
    training = [module for module in part.model.modules() if module.training]
    part.model.eval()
    with torch.no_grad(), part.recording(states):
        waiting: list[Feature] = []
        for row in rows:
            longest = max(feature.length for feature in (*waiting, *row))
            if waiting and longest * (len(waiting) + len(row)) > FILL_TOKENS:
                batches.task.forward(part.model, to_tensors(collate(waiting, batches.task.pads), device))
                waiting = []
            waiting.extend(row)
        batches.task.forward(part.model, to_tensors(collate(waiting, batches.task.pads), device))
    for module in training:
        module.training = True


def _memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
