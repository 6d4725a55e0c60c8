"""The hidden states that a model's frozen lower part gives, computed once and kept.

Where the lower part is frozen and has no dropout, its output is a function of a row's tokens. It is kept by these
tokens, without padding, and while the model trains a stand-in for the base model's `forward` hands it on as
`inputs_embeds`, past embeddings and frozen layers. In eval mode everything runs as ever.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from warmstart.engine.first_token import reads_first_token_alone
from warmstart.engine.stand_ins import PassedBy, standing_in
from warmstart.errors import TrainingError
from warmstart.features import Array

# Base models in which nothing but `embeddings` and `embeddings_project` stands before the first layer.
CACHED = frozenset(
    {"bert", "camembert", "data2vec-text", "distilbert", "electra", "ernie", "roberta", "xlm-roberta"}
)  # fmt: skip


@dataclass
class LowerStates:
    """States of shape (tokens, width), and where those of each row begin. `first_only`: those of first tokens alone."""

    values: Array
    first_only: bool
    places: dict[bytes, slice] = field(default_factory=dict)
    used: int = 0

    def add(self, given: Mapping[str, Any], states: Tensor) -> None:
        """Take in a call's states (B, S, H), of rows that are not here yet."""
        kept = self._kept(given)
        for row, key in enumerate(_keys(given)):
            if key not in self.places:
                own = states[row][kept[row]].float().cpu().numpy()
                self.places[key] = slice(self.used, self.used + len(own))
                self.values[self.places[key]] = own
                self.used += len(own)

    def of(self, given: Mapping[str, Any]) -> Tensor:
        """The states (B, S, H) of a call's rows, zeros where padding stands (and behind first tokens, if `first_only`).

        Raises TrainingError "states-missing" for a row that was never added.
        """
        try:
            found = [self.values[self.places[key]] for key in _keys(given)]
        except KeyError:
            raise TrainingError(
                "states-missing",
                "a row of a batch has other tokens than before the first step, so its hidden states are not kept",
                fix="train with top_layers.cache=off, which computes them at every step",
            ) from None
        kept = self._kept(given)
        states = torch.zeros(*kept.shape, self.values.shape[1], device=kept.device)
        states[kept] = torch.from_numpy(np.concatenate(found)).to(kept.device)
        return states

    def _kept(self, given: Mapping[str, Any]) -> Tensor:
        mask: Tensor = given["attention_mask"].bool()
        return mask & (mask.cumsum(1) == 1) if self.first_only else mask


@dataclass(frozen=True)
class LowerPart:
    """A model whose embeddings and lowest layers are frozen. `layers`: all of them; `trained`: how many learn."""

    model: Any
    layers: Sequence[nn.Module]
    trained: int

    @property
    def first_only(self) -> bool:
        """Is nothing read of the kept states but first tokens."""
        return self.trained == 0 and reads_first_token_alone(self.model)

    @contextmanager
    def recording(self, states: LowerStates) -> Iterator[None]:
        """In a block of this, calls of the model in eval mode add their states, and leave the upper layers out."""
        base = self.model.base_model
        upper = self.layers[len(self.layers) - self.trained :]
        caught: list[Tensor] = []
        with ExitStack() as installed:
            # The states are what enters the first trained layer, or what the last layer gives.
            if upper:
                hook = upper[0].register_forward_pre_hook(_catch_input(caught), with_kwargs=True)
            else:
                hook = self.layers[-1].register_forward_hook(_catch_output(caught), with_kwargs=True)
            installed.callback(hook.remove)
            stand_ins = [(layer, PassedBy(base, last=layer is self.layers[-1])) for layer in upper]
            recorder = _Recorder(base.forward, _names(base), states, caught)
            installed.enter_context(standing_in([*stand_ins, (base, recorder)]))
            yield

    @contextmanager
    def handing_on(self, states: LowerStates) -> Iterator[None]:
        """In a block of this, calls of the model in training mode have the states for what the lower part computes."""
        base = self.model.base_model
        lower = self.layers[: len(self.layers) - self.trained]
        before = [module for name, module in base.named_children() if name in ("embeddings", "embeddings_project")]
        skipped = [
            (module, PassedBy(base, module.forward, last=module is self.layers[-1])) for module in (*before, *lower)
        ]
        with standing_in([*skipped, (base, _FromStates(base.forward, base, _names(base), states))]):
            yield


@dataclass(frozen=True)
class _Recorder:
    forward: Callable[..., Any]
    names: tuple[str, ...]
    states: LowerStates
    caught: list[Tensor]

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self.forward)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.caught.clear()
        output = self.forward(*args, **kwargs)
        self.states.add(dict(zip(self.names, args, strict=False)) | kwargs, self.caught[0])
        return output


@dataclass(frozen=True)
class _FromStates:
    forward: Callable[..., Any]
    base: nn.Module
    names: tuple[str, ...]
    states: LowerStates

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self.forward)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self.base.training:
            return self.forward(*args, **kwargs)
        given = dict(zip(self.names, args, strict=False)) | kwargs
        return self.forward(**given | {"input_ids": None, "inputs_embeds": self.states.of(given)})


def _names(base: nn.Module) -> tuple[str, ...]:
    return tuple(inspect.signature(type(base).forward).parameters)[1:]


def _catch_input(caught: list[Tensor]) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        pack = kwargs.get("pack")
        states = args[0] if args else kwargs["hidden_states"]
        caught.append(states if pack is None else pack.unpack(states))

    return hook


def _catch_output(caught: list[Tensor]) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        pack = kwargs.get("pack")
        if pack is not None:
            output = (pack.of_firsts() if kwargs.get("first_token_only") else pack).unpack(output)
        caught.append(output)

    return hook


def _keys(given: Mapping[str, Any]) -> list[bytes]:
    """Each row's tokens, and their types where a model has types: all that the lower part reads."""
    mask = given["attention_mask"].bool().cpu().numpy()
    parts = [given[name] for name in ("input_ids", "token_type_ids") if given.get(name) is not None]
    arrays = [part.cpu().numpy() for part in parts]
    return [b"|".join(array[row][mask[row]].tobytes() for array in arrays) for row in range(len(mask))]
