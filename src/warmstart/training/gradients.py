"""The sum of gradients over the micro-batches of one optimizer step."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from warmstart.engine.runtime_torch import to_tensors
from warmstart.features import Batch
from warmstart.tasks import Task

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Sums:
    """What the micro-batches of a step add up to. `losses`: a tensor a micro-batch, (features,), before weighting."""

    loss: float  # each loss times its weight
    weight: float
    losses: tuple[torch.Tensor, ...]


def add_gradients(
    model: torch.nn.Module,
    task: Task,
    batches: Iterable[Batch],
    *,
    seed: int,
    device: str,
    precision: str,
    scale: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> Sums:
    """Add to the parameters' gradients those of the weighted sum of losses, as `scale` scales it, of all micro-batches.

    Dropout is a function of `seed`, of the micro-batches' shapes and their order. `precision`: "fp32", or autocast to
    "bf16" or "fp16".
    """
    torch.manual_seed(seed)
    loss, weight, losses = 0.0, 0.0, []
    kind = torch.device(device).type
    for arrays in batches:
        batch = to_tensors(arrays, device)
        with torch.autocast(kind, dtype=_AUTOCAST.get(precision), enabled=precision in _AUTOCAST):
            outputs = task.forward(model, batch)
            each, weights = task.loss(outputs, batch)
        total = (each.float() * weights).sum()
        (total if scale is None else scale(total)).backward()
        loss, weight = loss + total.item(), weight + weights.sum().item()
        losses.append(each.detach())
    return Sums(loss, weight, tuple(losses))
