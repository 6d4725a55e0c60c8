"""What stands in for the `forward` of modules for a while: layers computed twice, and layers not computed at all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


@contextmanager
def standing_in(stand_ins: Sequence[tuple[nn.Module, Callable[..., Any]]]) -> Iterator[None]:
    """In a block of this each module's `forward` is the one beside it; after it, what it was."""
    before = [vars(module).get("forward") for module, _ in stand_ins]
    for module, forward in stand_ins:
        module.forward = forward
    try:
        yield
    finally:
        for (module, _), own in zip(stand_ins, before, strict=True):
            del module.forward
            if own is not None:
                module.forward = own


@dataclass(frozen=True)
class Recomputed:
    """A layer whose activations are computed again in the backward pass. transformers' own switch would not reach what
    stands in for a layer already."""

    forward: Callable[..., Any]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return self.forward(*args, **kwargs)
        return checkpoint(self.forward, *args, use_reentrant=False, **kwargs)


@dataclass(frozen=True)
class PassedBy:
    """A module that gives on what it is given: embeddings their `inputs_embeds`, a layer its hidden states.

    `last`: the last layer, which gives first tokens alone where the call asks for them (see `first_token`). `forward`
    runs while `base` is in eval mode; None: never.
    """

    base: nn.Module
    forward: Callable[..., Any] | None = None
    last: bool = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.forward is not None and not self.base.training:
            return self.forward(*args, **kwargs)
        given = (value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        states = next(value for value in given if value.is_floating_point())
        if self.last and kwargs.get("first_token_only"):
            return states.index_select(1, kwargs["pack"].firsts())
        return states
