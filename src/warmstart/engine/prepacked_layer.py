"""BERT's layers for a model that only answers from here on, their weights laid out for the products once.

oneDNN multiplies by weights in a layout of its own, and brings them into it at every call: a third of what the products
of a text alone take (docs/decisions/0026). Copies in that layout do not follow a weight that changes, so they are for
models that nobody trains or edits: a server's.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from warmstart.engine.layer_inference import infer
from warmstart.engine.layer_weights import Shape, Weights, shape_of, weights_of
from warmstart.engine.packed_layer import PackedLayer, why_stock
from warmstart.engine.packing import Pack
from warmstart.engine.products import is_prepackable, laid_out

_MULTIPLIED = frozenset({"wq", "wk", "wv", "wo", "wi", "wf"})


@dataclass(frozen=True)
class PrepackedLayer:
    """Stands in for a BERT layer's `forward`, as `PackedLayer` does, which answers what this does not fit."""

    forward: PackedLayer
    shape: Shape  # of no pack yet
    weights: Weights  # those in `_MULTIPLIED` for `affine` alone

    def __call__(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, *args: Any, **kwargs: Any
    ) -> Tensor:
        pack: Pack | None = kwargs.get("pack")
        only_answers = not (self.forward.layer.training or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"))
        if pack is None or not only_answers or not is_prepackable(hidden_states):
            return self.forward(hidden_states, attention_mask, *args, **kwargs)
        firsts = pack.firsts() if self.forward.first_token and kwargs.get("first_token_only") else None
        return infer(hidden_states[0], firsts, self.shape._replace(blocks=pack.blocks()), self.weights)[None]


def prepacked(model: nn.Module) -> nn.Module:
    """A model with the parameters of `model`, whose layers answer from copies of their weights; `model` itself where no
    layer gains by it. What is changed in `model` afterwards, the copies do not follow."""
    with torch.no_grad():
        if not any(map(_gains, model.modules())):
            return model
        shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
        twin: nn.Module = copy.deepcopy(model, shared)
        for layer in filter(_gains, twin.modules()):
            weights = {
                name: laid_out(weight) if name in _MULTIPLIED else weight
                for name, weight in weights_of(layer)._asdict().items()
            }
            layer.forward = PrepackedLayer(vars(layer)["forward"], shape_of(layer, ()), Weights(**weights))
        return twin


def _gains(layer: nn.Module) -> bool:
    """Whether a layer of a model that only answers would be computed as written out, and by oneDNN."""
    forward = vars(layer).get("forward")
    if not isinstance(forward, PackedLayer):
        return False
    states = next(layer.parameters())
    return is_prepackable(states) and why_stock(layer, states) is None
