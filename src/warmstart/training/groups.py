"""The groups of parameters that an optimizer is given: what decays, and how fast each depth learns."""

from __future__ import annotations

from typing import Any

import torch

from warmstart.training.depth import depths


def parameter_groups(
    model: torch.nn.Module, *, learning_rate: float, weight_decay: float, factor: float | None = None
) -> list[dict[str, Any]]:
    """Groups of all parameters that ask for a gradient, for any torch optimizer.

    Weights of norms and biases, which are the parameters of one dimension, do not decay. `factor`: the learning rate at
    depth d is learning_rate · factor^(top - d), the top's the full one; the groups of the top come first. Raises
    UsageError "layers-unknown".
    """
    at, top = ({}, 0) if factor is None else depths(model, asked_by="layer_decay")
    split: dict[tuple[int, bool], list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            split.setdefault((top - at.get(name, 0), parameter.ndim <= 1), []).append(parameter)
    return [
        {
            "params": split[below, flat],
            "weight_decay": 0.0 if flat else weight_decay,
            "lr": learning_rate if factor is None else learning_rate * factor**below,
        }
        for below, flat in sorted(split)
    ]
