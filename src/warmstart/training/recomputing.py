"""Gradient checkpointing: what a layer computes inside is computed a second time, in place of being kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from warmstart.engine.stand_ins import Recomputed, standing_in
from warmstart.errors import UsageError
from warmstart.training.depth import stacks_of


def check_recomputable(model: Any) -> None:
    """Raises UsageError "checkpointing-unsupported" for a model without a stack of layers."""
    if not stacks_of(model):
        raise UsageError(
            "checkpointing-unsupported",
            f"{type(model).__name__} has no stack of layers that could be computed twice",
            value=model.config.model_type,
            fix="train without gradient_checkpointing; a smaller batch_size with accumulate takes less memory, too",
        )


@contextmanager
def recomputing(model: Any, asked: bool) -> Iterator[None]:
    """Train with gradient checkpointing in a block of this, if it was asked for. The gradients keep their bits.

    Source: Chen et al., "Training Deep Nets with Sublinear Memory Cost" (2016); torch's form without reentrance, which
    also gives the generators back the state they had, so that dropout masks are the same both times.
    """
    if not asked:
        yield
        return
    check_recomputable(model)
    told = vars(model.config).get("use_cache")
    if told is not None:
        model.config.use_cache = False  # a cache of keys and values would be filled a second time
    try:
        with standing_in([(layer, Recomputed(layer.forward)) for _, stack in stacks_of(model) for layer in stack]):
            yield
    finally:
        if told is not None:
            model.config.use_cache = told
