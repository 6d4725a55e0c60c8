"""A traced graph without padding: it is given padded batches, as any graph, and which of their positions are tokens.

The encoder stack runs on the tokens alone, as `unpad` has it run; attention alone sees padded blocks (B, S), which are
a small part of a layer's work.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from warmstart.engine import packed_attention
from warmstart.engine.architectures import STACKS
from warmstart.engine.first_token import first_token_heads
from warmstart.engine.packed_stack import AfterStack, BeforeStack
from warmstart.engine.packing import GraphPack
from warmstart.engine.unpad import base_models, why_padded


@dataclass
class Packing:
    """What a model that is traced shares with who traces it: `pack`, of the batch it is called with next."""

    pack: GraphPack | None = None


def pack_inside(model: nn.Module) -> Packing | None:
    """Let a padded `model`, in place, drop padding where it is traced; None where it cannot be.

    Nothing undoes it. It then wants a pack for every call, padding on the right, and `leave_unread_out`.
    """
    if why_padded(model) is not None:
        return None
    found = base_models(model)
    for base in found:
        config = base.config
        if config.model_type not in STACKS or config.output_attentions or config.output_hidden_states:
            return None
    heads = first_token_heads(model)
    packing = Packing()
    for base in found:
        _install(base, packing, first_token=any(head.base_model is base for head in heads))
    return packing


def _install(base: PreTrainedModel, packing: Packing, *, first_token: bool) -> None:
    packed_attention.register()
    base.forward = _TracedCall(base.forward, packing, first_token)
    base.set_attn_implementation(packed_attention.name_beside(base.config._attn_implementation))
    stack = base.get_submodule(STACKS[base.config.model_type])
    stack.register_forward_pre_hook(BeforeStack(), with_kwargs=True)
    stack.register_forward_hook(AfterStack(), with_kwargs=True)


@dataclass(frozen=True)
class _TracedCall:
    """Stands in for a base model's `forward`: hands the pack down by keyword, as `UnpaddedCall` does."""

    forward: Callable[..., Any]  # the base's own
    packing: Packing
    first_token: bool  # its head reads these alone: `leave_unread_out`

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.forward(*args, **kwargs, pack=self.packing.pack, first_token_only=self.first_token)
