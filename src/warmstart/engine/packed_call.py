"""One call of a base model: whether its padding can be left out, and its arguments without padding."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from warmstart.engine import packed_attention
from warmstart.engine.packing import Pack

# Where one of these is given, the stock path is the only right one.
_STOCK_ONLY = ("past_key_values", "encoder_hidden_states", "output_attentions", "output_hidden_states")


def by_name(module: PreTrainedModel, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call to `module.forward`, all by name."""
    return dict(zip(_parameters(module.__class__), args, strict=False)) | kwargs


def usable_mask(
    module: PreTrainedModel, given: Mapping[str, Any], *, full_too: bool, first_is_read: bool, windowed: bool
) -> Tensor | None:
    """The mask of shape (B, S) by which this call is packed, or None where it runs as it is.

    `full_too`: pack also where the mask hides nothing. `first_is_read`: heads read position 0, whatever stands there.
    `windowed`: in some layer, tokens far apart do not see each other.
    """
    mask = given.get("attention_mask")
    inputs = given.get("input_ids") if given.get("input_ids") is not None else given.get("inputs_embeds")
    if not isinstance(mask, Tensor) or inputs is None or mask.shape != inputs.shape[:2]:
        return None
    # What is traced for export or compilation stays the stock graph, of any shape; a meta tensor hides nothing.
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or mask.is_meta or not mask.numel():
        return None
    wanted = (given.get(name) for name in _STOCK_ONLY)
    if any(value is not None and value is not False for value in wanted) or given.get("is_causal") is not None:
        return None
    config = module.config
    if config.output_attentions or config.output_hidden_states:
        return None
    # Someone has chosen another attention since, or undone this model's through a config that two models share.
    if config._attn_implementation not in packed_attention.NAMES:
        return None
    mask = mask.to(inputs.device)
    if mask.all():
        return mask if full_too else None
    if not mask.any() or (first_is_read and not mask[:, 0].all()):
        return None
    # Across a hole, tokens of a pack stand nearer to each other than they are.
    return None if windowed and _has_holes(mask) else mask


def packed_inputs(given: Mapping[str, Any], pack: Pack) -> dict[str, Any]:
    """The call's arguments for (1, T): every token-wise tensor packed, positions spelled out."""
    packed = dict(given)
    for name in ("input_ids", "inputs_embeds", "token_type_ids"):
        if given.get(name) is not None:
            packed[name] = pack.pack(given[name])
    positions = given.get("position_ids")
    if positions is None:
        positions = torch.arange(pack.width, device=pack.index.device)[None]
    packed["position_ids"] = pack.pack(positions)
    # A mask of four dimensions is passed on as it is; without any, transformers would build one of (T, T).
    packed["attention_mask"] = torch.zeros(1, 1, 1, 1, dtype=torch.bool, device=pack.index.device)
    packed["pack"] = pack
    return packed


def _has_holes(mask: Tensor) -> bool:
    """Whether the kept positions of some row do not stand together."""
    kept = mask.bool().int()
    starts = kept[:, 0] + (kept.diff(dim=1) == 1).sum(dim=1)
    return bool((starts > 1).any())


@lru_cache(maxsize=64)
def _parameters(kind: type) -> tuple[str, ...]:
    """The names of forward's positional parameters."""
    return tuple(inspect.signature(kind.forward).parameters)[1:]  # type: ignore[attr-defined]
