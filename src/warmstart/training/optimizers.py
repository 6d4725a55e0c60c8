"""The default optimizer and learning-rate schedules."""

from __future__ import annotations

import math

import torch

from warmstart.errors import TrainingError
from warmstart.training.config import TrainConfig
from warmstart.training.groups import parameter_groups
from warmstart.training.recipes import LayerDecay


def adamw(
    model: torch.nn.Module, *, learning_rate: float, weight_decay: float, layer_decay: LayerDecay | None = None
) -> torch.optim.AdamW:
    """AdamW with bias correction (Loshchilov and Hutter, "Decoupled Weight Decay Regularization", 2019).

    In the groups of `parameter_groups`. Raises TrainingError "nothing-to-train" for a model whose parameters are all
    frozen; UsageError "layers-unknown".
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained:
        raise TrainingError(
            "nothing-to-train",
            "no parameter of the model asks for a gradient",
            where=type(model).__name__,
            fix="unfreeze some: parameter.requires_grad_(True)",
        )
    factor = None if layer_decay is None else layer_decay.factor
    groups = parameter_groups(model, learning_rate=learning_rate, weight_decay=weight_decay, factor=factor)
    fused = all(p.device.type in ("cpu", "cuda") for p in trained)
    return torch.optim.AdamW(groups, lr=learning_rate, fused=fused)


def scaler_for(precision: str, device: str) -> torch.amp.GradScaler | None:
    """What scales the loss under fp16, whose smallest normal number is 6e-5; None for what needs no scaling."""
    return torch.amp.GradScaler(torch.device(device).type) if precision == "fp16" else None


def default_learning_rate(hidden_size: int, *, adapters: bool = False) -> float:
    """0.04 / width: 1.04e-4 for MiniLM (384), 5.2e-5 for base models (768), 3.9e-5 for large ones (1024).

    Low-rank adapters take ten times as much (Schulman et al., "LoRA Without Regret", 2025).
    """
    return (0.4 if adapters else 0.04) / hidden_size


def rate_at(step: int, *, total: int, warmup: float, schedule: str) -> float:
    """The factor on the peak learning rate during step `step` of `total` (from 0): up over the warm-up, then down."""
    rising = math.ceil(warmup * total)
    if step < rising:
        return (step + 1) / (rising + 1)
    if schedule == "constant":
        return 1.0
    remaining = (total - step) / max(1, total - rising)  # 1 at the top; the step after the last one would be at 0
    return remaining if schedule == "linear" else 0.5 * (1 - math.cos(math.pi * remaining))


def scheduler(optimizer: torch.optim.Optimizer, config: TrainConfig, total: int) -> torch.optim.lr_scheduler.LambdaLR:
    """Warm-up and decay as the config says, one `step()` an optimizer step."""

    def factor(step: int) -> float:
        return rate_at(step, total=total, warmup=config.warmup, schedule=config.schedule)

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
