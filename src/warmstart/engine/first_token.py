"""The last layer of a classifier, for the rows' first tokens alone.

A head that reads the first token leaves the rest of the last layer unread: its queries, its output projection and its
feed-forward network need one token a row, and only keys and values need all. The result is the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from warmstart.engine.packing import Pack

# Classes whose forward reads nothing of the encoder but the first token, and whose layers are built as BERT's are.
HEADS = frozenset(
    {
        "BertForSequenceClassification",
        "CamembertForSequenceClassification",
        "Data2VecTextForSequenceClassification",
        "ElectraForSequenceClassification",
        "ErnieForSequenceClassification",
        "RobertaForSequenceClassification",
        "XLMRobertaForSequenceClassification",
    }
)


@dataclass(frozen=True)
class FirstTokenLayer:
    """Stands in for the `forward` of a BERT layer: (1, T, H) → (1, B, H) where the call asks for first tokens alone."""

    forward: Callable[..., Tensor]  # the layer's own, bound to it

    def __call__(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, *args: Any, **kwargs: Any
    ) -> Tensor:
        if not kwargs.get("first_token_only"):
            return self.forward(hidden_states, attention_mask, *args, **kwargs)
        layer: Any = self.forward.__self__  # type: ignore[attr-defined]
        pack: Pack = kwargs["pack"]
        first = hidden_states.index_select(1, pack.firsts())
        attended = _attend(layer.attention.self, first[0], hidden_states[0], pack)
        output: Tensor = layer.feed_forward_chunk(layer.attention.output(attended[None], first))
        return output


def _attend(attention: Any, first: Tensor, hidden: Tensor, pack: Pack) -> Tensor:
    """Queries of (B, H), keys and values of (T, H) → (B, H)."""
    width = attention.attention_head_size
    query, key, value = (
        project(states).unflatten(-1, (-1, width))
        for project, states in ((attention.query, first), (attention.key, hidden), (attention.value, hidden))
    )
    outputs, row = [], 0
    for start, rows, length in pack.blocks():
        end = start + rows * length
        q = query[row : row + rows, :, None]  # (rows, heads, 1, d)
        k, v = (t[start:end].unflatten(0, (rows, length)).transpose(1, 2) for t in (key, value))
        weights = (q * attention.scaling @ k.transpose(-1, -2)).softmax(-1)
        weights = F.dropout(weights, attention.dropout.p, attention.training)
        outputs.append((weights @ v).flatten(1))
        row += rows
    return torch.cat(outputs)


@dataclass(frozen=True)
class TracedFirstTokenLayer:
    """Stands in for the `forward` of a BERT layer that is traced for a graph: (B, S, H) → (B, 1, H), and of a pack
    (1, T, H) → (1, B, H)."""

    forward: Callable[..., Tensor]  # the layer's own, bound to it

    def __call__(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, *args: Any, **kwargs: Any
    ) -> Tensor:
        layer: Any = self.forward.__self__  # type: ignore[attr-defined]
        attention, pack = layer.attention.self, kwargs.get("pack")
        # (B, H): a graph knows by its two axes what runs once a text
        first = hidden_states[:, 0] if pack is None else hidden_states.squeeze(0).index_select(0, pack.firsts())
        query = attention.query(first)[:, None]
        key, value = attention.key(hidden_states), attention.value(hidden_states)
        if pack is not None:
            key, value = pack.unpack(key), pack.unpack(value)
        width = attention.attention_head_size
        q, k, v = (t.unflatten(-1, (-1, width)).transpose(1, 2) for t in (query, key, value))  # (B, heads, 1 or S, d)
        seen = None if attention_mask is None else attention_mask[:, :, :1]  # (B, 1, 1, S)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=attention.scaling)
        output: Tensor = layer.feed_forward_chunk(layer.attention.output(attended.flatten(1), first))
        return output[:, None] if pack is None else output[None]


def leave_unread_out(model: nn.Module) -> None:
    """Let the last layer of a `model` that `pad` has been to, in place, compute what its head reads and no more.

    For a copy that is traced: nothing undoes it, and its hidden states end with (B, 1, H).
    """
    for head in first_token_heads(model):
        last = head.base_model.encoder.layer[-1]
        last.forward = TracedFirstTokenLayer(last.forward)


def first_token_heads(model: nn.Module) -> list[Any]:
    """The modules of `model` that read first tokens alone."""
    return [module for module in model.modules() if reads_first_token_alone(module)]


def reads_first_token_alone(model: nn.Module) -> bool:
    """Whether `model` is one of `HEADS`, of transformers itself: a subclass may read more."""
    kind = type(model)
    return kind.__name__ in HEADS and kind.__module__.startswith("transformers.models.")
