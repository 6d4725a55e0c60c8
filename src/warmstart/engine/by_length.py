"""A stack of layers run in bands of rows of like length, for attention that knows no pack."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from warmstart.batching import plan


@dataclass(frozen=True)
class ByLength:
    """Stands in for a stack's `forward(hidden_states, attention_mask, …)`.

    Rows of like length go through together. A band costs something of its own, so lengths are parted only where the
    padding saved is more. Worth its smaller steps on a CPU only; elsewhere, and where padding is not on the right, the
    padded batch goes through as it is.
    """

    forward: Callable[..., Any]  # the stack's own
    band_tokens: int  # what one more band costs, in tokens through the stack

    def __call__(self, hidden_states: Tensor, attention_mask: Tensor | None = None, **others: Any) -> Any:
        kept = _kept(attention_mask) if attention_mask is not None and _worth_it(hidden_states, others) else None
        if attention_mask is None or kept is None or not kept.numel():
            return self.forward(hidden_states, attention_mask, **others)
        rows, width = kept.shape
        lengths = kept.sum(1)
        right_padded = torch.arange(width) < lengths[:, None]
        order = lengths.argsort(descending=True, stable=True)
        split = bands(lengths[order].tolist(), self.band_tokens)
        if not kept.equal(right_padded) or (len(split) == 1 and int(lengths.max()) == width):
            return self.forward(hidden_states, attention_mask, **others)
        outputs, indexes = [], []
        for members in order.split(split):
            length = max(1, int(lengths[members[0]]))
            mask = attention_mask[members][..., :length]
            if mask.ndim == 4 and mask.shape[2] > 1:
                mask = mask[:, :, :length]
            outputs.append(self.forward(hidden_states[members, :length], mask, **others))
            indexes.append((members[:, None] * width + torch.arange(length)).flatten())
        return _merged(outputs, torch.cat(indexes), rows, width)


def bands(lengths: Sequence[int], band_tokens: int) -> list[int]:
    """How many rows each band takes, of rows that stand longest first: a new one where the padding of the last would
    outgrow `band_tokens`.

    >>> bands([30, 29, 5, 5], band_tokens=20)
    [2, 2]
    """
    return [len(band) for band in plan(lengths, max_tokens=sys.maxsize, max_padding=band_tokens)]


def _kept(mask: Tensor) -> Tensor | None:
    """(B, S) booleans from a mask of (B, S), or from an additive or boolean one of (B, 1, 1 or S, S); None from one
    that lets each query see other keys."""
    if mask.ndim == 2:
        return mask.bool()
    if mask.ndim != 4 or mask.shape[1] > 1 or not mask.equal(mask[:, :, :1].expand_as(mask)):
        return None
    return mask[:, 0, 0] if mask.dtype == torch.bool else mask[:, 0, 0] >= 0


def _worth_it(hidden_states: Tensor, others: dict[str, Any]) -> bool:
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
    asked = others.get("output_attentions") or any(others.get(n) is not None for n in ("query_states", "relative_pos"))
    return hidden_states.device.type == "cpu" and not traced and not asked


def _merged(outputs: list[Any], index: Tensor, rows: int, width: int) -> Any:
    """One output of the stack's own kind from those of the bands: every tensor (n, L, H) of them to (B, S, H)."""

    def merge(parts: list[Any]) -> Any:
        if isinstance(parts[0], Tensor):
            flat = torch.cat([part.flatten(0, 1) for part in parts])
            return flat.new_zeros(rows * width, flat.shape[1]).index_copy(0, index, flat).unflatten(0, (rows, width))
        return tuple(merge([part[i] for part in parts]) for i in range(len(parts[0])))

    if isinstance(outputs[0], tuple):
        return merge(outputs)
    return type(outputs[0])(**{name: merge([output[name] for output in outputs]) for name in outputs[0]})
