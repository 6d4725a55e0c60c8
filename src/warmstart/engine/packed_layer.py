"""BERT's layers on a pack, on a CPU: written out in the stock layer's own parameters, as its mathematics are.

A layer that trains is one node of the graph (`layer_training.py`), one that only answers a few operations
(`layer_inference.py`). Calls that neither fits run as before: `why_stock`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules.module import _has_any_global_hook
from transformers.activations import GELUActivation

from warmstart.engine.layer_inference import infer
from warmstart.engine.layer_training import TrainedLayer
from warmstart.engine.layer_weights import read
from warmstart.engine.packing import Pack
from warmstart.engine.products import rounded_rows

# Every module of a layer, and its kind where it computes itself.
_MODULES: dict[str, type[nn.Module] | None] = {
    "attention": None,
    "attention.self": None,
    "attention.self.query": nn.Linear,
    "attention.self.key": nn.Linear,
    "attention.self.value": nn.Linear,
    "attention.self.dropout": nn.Dropout,
    "attention.output": None,
    "attention.output.dense": nn.Linear,
    "attention.output.LayerNorm": nn.LayerNorm,
    "attention.output.dropout": nn.Dropout,
    "intermediate": None,
    "intermediate.dense": nn.Linear,
    "intermediate.intermediate_act_fn": GELUActivation,
    "output": None,
    "output.dense": nn.Linear,
    "output.LayerNorm": nn.LayerNorm,
    "output.dropout": nn.Dropout,
}

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_PARAMETERS = ("weight", "bias")
_OTHER_MODULES = "its modules are not those of BERT's layers"
# Each module with its parent and its name there, parents first.
_PLACES = tuple((name, *name.rpartition(".")[::2], kind) for name, kind in _MODULES.items())


@dataclass(frozen=True)
class PackedLayer:
    """Stands in for a BERT layer's `forward`: (1, T, H) → (1, T, H), or the first tokens' (1, B, H) from the last one
    where the call asks for these alone."""

    forward: Callable[..., Tensor]  # what ran before
    layer: Any
    first_token: bool = False  # the last layer, under a head that reads the first token

    def __call__(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, *args: Any, **kwargs: Any
    ) -> Tensor:
        pack: Pack | None = kwargs.get("pack")
        if pack is None or why_stock(self.layer, hidden_states) is not None:
            return self.forward(hidden_states, attention_mask, *args, **kwargs)
        firsts = pack.firsts() if self.first_token and kwargs.get("first_token_only") else None
        shape, weights = read(self.layer, pack)
        # Somebody's own checkpointing runs without gradients first, and must draw the masks of the second run.
        if _trains(self.layer, hidden_states):
            output: Tensor = TrainedLayer.apply(hidden_states[0], firsts, shape, *weights)
            return output[None]
        return infer(hidden_states[0], firsts, shape, weights)[None]

    def rows_computed(self, states: Tensor, output: Tensor, *, packed: bool) -> int:
        """How many rows the feed-forward products had in a call from `states` to `output` that has just returned: those
        among them that it was rounded up by. A hook inside the layer would count others: it switches the layer back."""
        rows = output.shape[:-1].numel()
        if not packed or _trains(self.layer, states) or why_stock(self.layer, states) is not None:
            return rows
        return rounded_rows(output[0])


def why_stock(layer: Any, hidden: Tensor) -> str | None:
    """Why this call of the layer runs through its own code; None if it need not."""
    trains = _trains(layer, hidden)
    if layer.gradient_checkpointing and layer.training:
        return "it is computed twice to save memory (gradient checkpointing)"
    if hidden.device.type != "cpu" or hidden.dtype not in (torch.float32, torch.float64):
        return f"its states are {hidden.dtype} on {hidden.device.type}"
    if torch.is_autocast_enabled("cpu"):
        return "autocast is on"
    if _has_any_global_hook() or torch._C._are_functorch_transforms_active():
        return "somebody looks into every module"
    if forward_ad._current_level >= 0:
        return "derivatives are taken forward"
    modules = {"": layer}  # hooks on the layer itself are called as ever
    for name, parent, child, kind in _PLACES:
        module = modules[name] = modules[parent]._modules.get(child)
        if module is None:
            return _OTHER_MODULES
        inside = vars(module)  # what is asked at every call is not looked for by way of `Module.__getattr__`
        if inside["training"] is not layer.training:  # somebody wants dropout where there is none, or none where it is
            return f"{name} is in another mode than its layer"
        if type(module) is not kind if kind else not type(module).__module__.startswith("transformers.models."):
            return f"{name} is a {type(module).__name__}"
        if any(map(inside.__getitem__, _HOOKS)) or "forward" in inside:
            return f"{name} has a hook"
        if kind is nn.Dropout and module.p >= 1:
            return f"{name} drops everything"
        for parameter in map(inside["_parameters"].get, _PARAMETERS) if kind in (nn.Linear, nn.LayerNorm) else ():
            if type(parameter) not in (nn.Parameter, Tensor) or parameter.dtype != hidden.dtype:
                return f"{name} has no bias, or is of another type"
            if trains and not parameter.requires_grad:
                return f"{name} is frozen"
    if sum(len(module._modules) for module in modules.values()) != len(_PLACES):
        return _OTHER_MODULES
    return None


def _trains(layer: Any, hidden: Tensor) -> bool:
    """Whether dropout is drawn or a gradient may be asked for: a frozen layer in eval mode only answers."""
    if layer.training or not torch.is_grad_enabled():
        return bool(layer.training)
    return hidden.requires_grad or any(parameter.requires_grad for parameter in layer.parameters())
