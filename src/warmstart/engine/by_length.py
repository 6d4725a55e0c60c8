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
    where a mask has holes, the padded batch goes through as it is.
    """

    forward: Callable[..., Any]  # the stack's own

    def __call__(self, hidden_states: Tensor, attention_mask: Tensor | None = None, **others: Any) -> Any:
        kept = None if attention_mask is None else _kept(attention_mask)
        if kept is None or not _worth_it(hidden_states, kept, others):
            return self.forward(hidden_states, attention_mask, **others)
        assert attention_mask is not None
        rows, width = kept.shape
        lengths, starts = kept.sum(1), kept.int().argmax(1)
        outputs, indexes = [], []
        for length in lengths.unique().tolist():
            if not length:
                continue
            members = (lengths == length).nonzero()[:, 0]
            index = (members[:, None] * width + starts[members, None] + torch.arange(length)).flatten()
            same = hidden_states.flatten(0, 1)[index].unflatten(0, (len(members), length))
            outputs.append(self.forward(same, _all_kept(attention_mask, len(members), length), **others))
            indexes.append(index)
        return _merged(outputs, torch.cat(indexes), rows, width)


def _kept(mask: Tensor) -> Tensor | None:
    """(B, S) booleans from a mask of (B, S), or from an additive or boolean one of (B, 1, 1 or S, S)."""
    if mask.ndim == 4:
        mask = mask[:, 0, 0]
        return mask if mask.dtype == torch.bool else mask >= 0
    return mask.bool() if mask.ndim == 2 else None


def _all_kept(mask: Tensor, rows: int, length: int) -> Tensor | None:
    return mask.new_ones(rows, length) if mask.ndim == 2 else None


def _worth_it(hidden_states: Tensor, kept: Tensor, others: dict[str, Any]) -> bool:
    if hidden_states.device.type != "cpu" or kept.shape != hidden_states.shape[:2] or kept.all():
        return False
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or others.get("output_attentions"):
        return False
    if others.get("query_states") is not None or others.get("relative_pos") is not None:
        return False
    edges = kept.int().diff(dim=1, prepend=torch.zeros(len(kept), 1, dtype=torch.int32)) == 1
    return bool((edges.sum(1) <= 1).all())  # each row's tokens stand together


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
