"""Attention over a pack: no token sees another row's, and no padding is computed (but in a graph, in attention alone).

transformers calls the function its config names (`AttentionInterface`). Ours is stock SDPA for a padded batch; where
the call carries a `Pack` it chooses by device, as measured (docs/log.md): on a CPU one dense SDPA for each run of rows
of equal length; on a GPU torch's variable-length flash attention, or SDPA on a padded block where that cannot run.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, eager_mask, sdpa_mask

from warmstart.engine.packing import GraphPack, Pack

NAME = "warmstart_unpadded"  # as configs name it
_EAGER = "warmstart_unpadded_eager"  # the same for models whose own attention is eager, which can return its weights
NAMES = (NAME, _EAGER)


def register() -> None:
    """Tell transformers about the functions. Any number of calls is one."""
    AttentionInterface.register(NAME, packed_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    AttentionInterface.register(_EAGER, _packed_or_eager)
    AttentionMaskInterface.register(_EAGER, eager_mask)


def name_beside(own: str) -> str:
    """The name for a model whose own implementation is `own`. (A call without a pack runs as eager, or as SDPA.)"""
    return _EAGER if own == "eager" else NAME


def own_name(name: str) -> str:
    """A model's own implementation by what its config names, which is ours where it shares an unpadded one's config."""
    return {NAME: "sdpa", _EAGER: "eager"}.get(name, name)


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    pack: Pack | GraphPack | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: (1, heads, T, d) tensors of a pack → (1, T, heads, d), and no weights.

    Without a pack it is `sdpa_attention_forward`, on padded (B, heads, S, d).
    """
    if pack is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **others
        )
    causal = others.get("is_causal")
    call = _Call(
        module,
        dropout,
        query.shape[-1] ** -0.5 if scaling is None else scaling,
        others.get("sliding_window"),
        bool(module.is_causal) if causal is None else causal,
    )
    if isinstance(pack, GraphPack):  # padding inside attention alone, under the mask (B, 1, S, S) of the model
        q, k, v = (pack.unpack(tensor.transpose(1, 2)).transpose(1, 2) for tensor in (query, key, value))
        return pack.pack(call.dense(q, k, v, attention_mask)), None
    if query.device.type == "cpu":
        return _by_runs(call, query, key, value, pack), None
    if _varlen_can(call, query):
        return _varlen(call, query, key, value, pack), None
    return _padded_block(call, query, key, value, pack), None


def _packed_or_eager(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    pack: Pack | GraphPack | None = None,
    **others: Any,
) -> tuple[Tensor, Tensor | None]:
    if pack is not None:
        return packed_attention(module, query, key, value, attention_mask, pack=pack, **others)
    # What the layer's own code would have called: its file's function of this name.
    eager = inspect.unwrap(type(module).forward).__globals__["eager_attention_forward"]
    output: tuple[Tensor, Tensor] = eager(module, query, key, value, attention_mask, **others)
    return output


@dataclass(frozen=True)
class _Call:
    """What a layer asks of its attention, whatever computes it."""

    module: nn.Module
    dropout: float
    scaling: float
    window: int | None  # tokens further apart than window - 1 do not see each other
    causal: bool

    def band(self, length: int, device: torch.device) -> Tensor | None:
        """Which of `length` tokens sees which: (length, length), or None where the window hides nothing."""
        if self.window is None or length <= self.window:
            return None
        position = torch.arange(length, device=device)
        distance = position[:, None] - position
        seen = distance.abs() < self.window
        return seen & (distance >= 0) if self.causal else seen

    def dense(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """(n, heads, L, d) → (n, L, heads, d), as stock SDPA does it."""
        return sdpa_attention_forward(
            self.module,
            query,
            key,
            value,
            mask,
            dropout=self.dropout,
            scaling=self.scaling,
            is_causal=self.causal,
        )[0]


def _by_runs(call: _Call, query: Tensor, key: Tensor, value: Tensor, pack: Pack) -> Tensor:
    tokens = [tensor[0].transpose(0, 1) for tensor in (query, key, value)]  # (T, heads, d) each
    outputs = []
    for start, rows, length in pack.blocks():
        end = start + rows * length
        q, k, v = (tensor[start:end].unflatten(0, (rows, length)).transpose(1, 2) for tensor in tokens)
        mask = call.band(length, query.device)
        if call.dropout and mask is None and not call.causal and query.shape[1] == key.shape[1]:
            output = _with_dropout(call, q, k, v)
        else:
            output = call.dense(q, k, v, None if mask is None else mask[None, None])
        outputs.append(output.flatten(0, 1))
    return torch.cat(outputs)[None]


def _with_dropout(call: _Call, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The CPU's flash kernel has no dropout, and SDPA's own way round it costs more than the three steps."""
    weights = F.dropout((query * call.scaling @ key.transpose(-1, -2)).softmax(-1), call.dropout)
    return (weights @ value).transpose(1, 2)


def _varlen_can(call: _Call, query: Tensor) -> bool:
    half = query.dtype in (torch.float16, torch.bfloat16)
    flash = half and query.shape[-1] <= 256 and query.shape[-1] % 8 == 0 and not call.dropout
    if not flash or query.device.type != "cuda" or torch.cuda.get_device_capability(query.device) < (8, 0):
        return False
    return _is_complete(varlen_attn)


@lru_cache(maxsize=1)
def _is_complete(attend: Callable[..., Tensor]) -> bool:
    """Whether torch's function has all we ask of it: torch 2.10's has neither scale nor window, 2.11's no GQA."""
    return {"scale", "window_size", "enable_gqa"} <= inspect.signature(attend).parameters.keys()


def _varlen(call: _Call, query: Tensor, key: Tensor, value: Tensor, pack: Pack) -> Tensor:
    boundaries, longest = pack.boundaries(), pack.runs[0][1]
    reach = -1 if call.window is None else call.window - 1
    output = varlen_attn(
        query[0].transpose(0, 1),
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        boundaries,
        boundaries,
        longest,
        longest,
        scale=call.scaling,
        window_size=(reach, 0 if call.causal else reach),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return output[None]


def _padded_block(call: _Call, query: Tensor, key: Tensor, value: Tensor, pack: Pack) -> Tensor:
    """Padding inside attention alone; linear layers and norms still see none."""
    kept = pack.unpack(torch.ones_like(pack.index, dtype=torch.bool)[None])  # (B, S)
    mask = kept[:, None, None, :]
    band = call.band(pack.width, query.device)
    if band is None and call.causal:
        band = torch.ones(pack.width, pack.width, dtype=torch.bool, device=query.device).tril()
    if band is not None:
        mask = mask & band  # a padding token may see nothing: from torch 2.5 on SDPA gives zeros for it, not NaN
    q, k, v = (pack.unpack(tensor.transpose(1, 2)).transpose(1, 2) for tensor in (query, key, value))
    return pack.pack(call.dense(q, k, v, mask))
