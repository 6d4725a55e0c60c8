"""A stack of layers run once for each length of row, for attention that knows no pack."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class ByLength:
    """Stands in for a stack's `forward(hidden_states, attention_mask, …)`.

    Rows of equal length go through together, without padding. Worth its many small steps on a CPU only; elsewhere, and
    where a mask has holes or hides a row's first position, which poolers read, the padded batch goes through as it is.
    """

    forward: Callable[..., Any]  # the stack's own

    def __call__(self, hidden_states: Tensor, attention_mask: Tensor | None = None, **others: Any) -> Any:
        if attention_mask is None or not _worth_it(hidden_states, others):
            return self.forward(hidden_states, attention_mask, **others)
        kept = _kept(attention_mask)
        if kept is None or kept.shape != hidden_states.shape[:2] or not _pads_right_alone(kept):
            return self.forward(hidden_states, attention_mask, **others)
        rows, width = kept.shape
        lengths = kept.sum(1)
        outputs, indexes = [], []
        for length in lengths.unique().tolist():
            members = (lengths == length).nonzero()[:, 0]
            index = (members[:, None] * width + torch.arange(length)).flatten()
            same = hidden_states.flatten(0, 1)[index].unflatten(0, (len(members), length))
            outputs.append(self.forward(same, _all_kept(attention_mask, len(members), length), **others))
            indexes.append(index)
        return _merged(outputs, torch.cat(indexes), rows, width)


def _kept(mask: Tensor) -> Tensor | None:
    """(B, S) booleans from a mask of (B, S), or from an additive or boolean one of (B, 1, 1 or S, S) that hides the
    same keys from every query; None from any other."""
    if mask.ndim == 4:
        if mask.shape[1] > 1 or (mask != mask[:, :, :1]).any():
            return None
        mask = mask[:, 0, 0]
        return mask if mask.dtype == torch.bool else mask >= 0
    return mask.bool() if mask.ndim == 2 else None


def _all_kept(mask: Tensor, rows: int, length: int) -> Tensor | None:
    return mask.new_ones(rows, length) if mask.ndim == 2 else None


def _worth_it(hidden_states: Tensor, others: dict[str, Any]) -> bool:
    if hidden_states.device.type != "cpu" or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    return not others.get("output_attentions") and others.get("query_states") is others.get("relative_pos") is None


def _pads_right_alone(kept: Tensor) -> bool:
    """Whether there is padding, and every row begins with a token and has none after its first padding."""
    right_padded = torch.arange(kept.shape[1]) < kept.sum(1, keepdim=True)
    return bool(kept[:, 0].all() and (kept == right_padded).all() and not kept.all())


def _merged(outputs: list[Any], index: Tensor, rows: int, width: int) -> Any:
    """One output of the stack's own kind from those of each length: every tensor (n, L, H) of them to (B, S, H)."""

    def merge(parts: list[Any]) -> Any:
        if isinstance(parts[0], Tensor):
            flat = torch.cat([part.flatten(0, 1) for part in parts])
            return flat.new_zeros(rows * width, flat.shape[1]).index_copy(0, index, flat).unflatten(0, (rows, width))
        return tuple(merge([part[i] for part in parts]) for i in range(len(parts[0])))

    if isinstance(outputs[0], tuple):
        return merge(outputs)
    return type(outputs[0])(**{name: merge([output[name] for output in outputs]) for name in outputs[0]})
