"""How deep in a model a parameter stands: the embeddings at 0, the n-th layer at n, all that follows on top."""

from __future__ import annotations

from typing import Any

from torch import nn

from warmstart.errors import UsageError

_COUNTS = ("num_hidden_layers", "num_decoder_layers", "decoder_layers")


def stacks_of(model: Any) -> list[tuple[str, nn.ModuleList]]:
    """The stacks of layers in a transformers model, with their names: lists of modules of one class, as many as its
    config counts layers."""
    counts = {model.config.to_dict().get(model.config.attribute_map.get(name, name)) for name in _COUNTS}
    found = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) in counts and len({type(layer) for layer in module}) == 1
    ]
    inside = {name for name, _ in found for other, _ in found if name.startswith(f"{other}.")}
    return [(name, module) for name, module in found if name not in inside]


def layers_of(model: Any, *, asked_by: str) -> tuple[str, nn.ModuleList]:
    """The name and the layers, from the lowest, of the one stack of a transformers model.

    Raises UsageError "layers-unknown" for a model with several stacks, shared layers or none; `asked_by`: the setting
    that needs them.

    >>> layers_of(model, asked_by="layer_decay")[0]  # doctest: +SKIP
    'bert.encoder.layer'
    """
    stacks = stacks_of(model)
    if len(stacks) != 1:
        raise UsageError(
            "layers-unknown",
            f"{asked_by} needs a model with one stack of layers, and {type(model).__name__} has {len(stacks)}",
            value=[name for name, _ in stacks] or model.config.model_type,
            fix=f"train it without {asked_by}",
        )
    return stacks[0]


def depths(model: Any, *, asked_by: str) -> tuple[dict[str, int], int]:
    """Each parameter's depth by its name, and that of the top: the layers and one more.

    Embeddings, and what the model computes before its layers, have depth 0. Raises UsageError "layers-unknown".
    """
    name, layers = layers_of(model, asked_by=asked_by)
    top = len(layers) + 1
    embeddings = {id(p) for module in model.modules() if isinstance(module, nn.Embedding) for p in module.parameters()}
    found: dict[str, int] = {}
    outside = 0  # before the layers, as modules are registered in the order in which they run
    for parameter, values in model.named_parameters():
        if parameter.startswith(f"{name}."):
            found[parameter] = 1 + int(parameter.removeprefix(f"{name}.").partition(".")[0])
            outside = top
        else:
            found[parameter] = 0 if id(values) in embeddings else outside
    return found, top
