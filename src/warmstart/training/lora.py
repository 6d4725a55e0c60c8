"""From the recipe `LoRA` to adapters in a model."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from torch import nn

from warmstart.checkpoints import add_adapter
from warmstart.errors import UsageError, Where
from warmstart.training.depth import layers_of
from warmstart.training.recipes import LoRA

if TYPE_CHECKING:
    from warmstart.checkpoints.adapters import Adapter

log = logging.getLogger("warmstart")


def add_lora(model: Any, recipe: LoRA, *, seed: int) -> Adapter:
    """Put adapters into `model`, in place, before it is unpadded.

    Raises UsageError "lora-targets", "layers-unknown", "extra-missing".
    """
    adapter = add_adapter(
        model,
        rank=recipe.rank,
        alpha=recipe.alpha,
        dropout=recipe.dropout,
        targets=linear_modules(model, recipe.targets),
        seed=seed,
    )
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    log.info(
        "LoRA of rank %d: %s of %s numbers are trained", recipe.rank, f"{trained:,}", f"{model.num_parameters():,}"
    )
    return adapter


def linear_modules(model: Any, names: tuple[str, ...] | None) -> list[str]:
    """The full names of the linear modules in the layers, or of those that one of `names` stands at the end of.

    >>> linear_modules(model, ("query",))  # doctest: +SKIP
    ['bert.encoder.layer.0.attention.self.query', 'bert.encoder.layer.1.attention.self.query']
    """
    every = [name for name, module in model.base_model.named_modules(prefix=_prefix(model)) if _is_linear(module)]
    if names is None:
        stack, _ = layers_of(model, asked_by="lora without targets")
        return [name for name in every if name.startswith(f"{stack}.")]
    for wanted in names:
        if not any(_ends(name, wanted) for name in every):
            leaves = sorted({name.rpartition(".")[2] for name in every})
            raise UsageError(
                "lora-targets",
                f"no linear module of {type(model).__name__} is called {wanted!r}",
                where=Where(field="lora.targets"),
                value=wanted,
                fix=f"choose among {', '.join(leaves)}",
            )
    return [name for name in every if any(_ends(name, wanted) for wanted in names)]


def _prefix(model: Any) -> str:
    return "" if model.base_model is model else str(model.base_model_prefix)


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def _ends(name: str, wanted: str) -> bool:
    return name == wanted or name.endswith(f".{wanted}")
