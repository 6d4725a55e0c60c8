"""One call of a base model: whether its padding can be left out, and its arguments without padding."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from warmstart.engine import packed_attention
from warmstart.engine.packing import GraphPack, Pack

# Where one of these is given, the stock path is the only right one.
_STOCK_ONLY = ("past_key_values", "encoder_hidden_states", "output_attentions", "output_hidden_states")


@dataclass(frozen=True)
class UnpaddedCall:
    """Stands in for a base model's `forward`: decides whether a call is packed, and hands the pack down by keyword.

    No hook, because some callers, sentence-transformers among them, call `forward` itself.
    """

    forward: Callable[..., Any]  # the base's own
    base: PreTrainedModel
    attention: str  # the implementation that `pad` gives back
    whole: bool  # packed from the ids on, not from the stack on
    generates: bool
    first_is_read: bool  # heads read position 0, whatever stands there
    windowed: bool  # in some layer, tokens far apart do not see each other
    written_out: bool = False  # its layers have a quicker way on a pack, even where nothing is padding: `packed_layer`

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self.forward)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        first_token_only = kwargs.pop("first_token_only", False)
        # What is traced for export or compilation stays the stock graph, of any shape.
        if torch.compiler.is_compiling() or torch.jit.is_tracing():
            return self.forward(*args, **kwargs)
        given = dict(zip(_parameters(self.base.__class__), args, strict=False)) | kwargs
        mask = self._usable_mask(given, full_too=first_token_only)
        if mask is None:
            return self.forward(*args, **kwargs)
        pack = Pack.of(mask)
        if self.whole:
            return unpacked(self.forward(**_packed_inputs(given, pack) | {"use_cache": False}), pack)
        # ESM's embeddings read the mask; the others pass it on to an attention that no longer needs it.
        needed = {} if self.base.config.model_type == "esm" else {"attention_mask": None}
        return self.forward(**given | needed | {"pack": pack, "first_token_only": first_token_only})

    def __setstate__(self, state: dict[str, Any]) -> None:
        packed_attention.register()  # a process that is sent a model may not have unpadded any
        self.__dict__.update(state)

    def _keeps_cache(self, asked: bool | None) -> bool:
        if not self.whole or asked is not None:
            return self.whole and bool(asked)
        return self.generates and bool(self.base.config.use_cache) and not self.base.training

    def _is_quicker_packed(self, mask: Tensor) -> bool:
        exact = self.base.dtype in (torch.float32, torch.float64) and not torch.is_autocast_enabled("cpu")
        return self.written_out and mask.device.type == "cpu" and exact

    def _usable_mask(self, given: Mapping[str, Any], *, full_too: bool) -> Tensor | None:
        """The mask of shape (B, S) by which this call is packed, or None where it runs as it is: `full_too`, also where
        the mask hides nothing."""
        mask = given.get("attention_mask")
        inputs = given.get("input_ids") if given.get("input_ids") is not None else given.get("inputs_embeds")
        if not isinstance(mask, Tensor) or inputs is None or mask.shape != inputs.shape[:2]:
            return None
        if not mask.numel() or self._keeps_cache(given.get("use_cache")):
            return None
        wanted = (given.get(name) for name in _STOCK_ONLY)
        if any(value is not None and value is not False for value in wanted) or given.get("is_causal") is not None:
            return None
        config = self.base.config
        if config.output_attentions or config.output_hidden_states:
            return None
        # Someone has chosen another attention since, or undone this model's through a config that two models share.
        if config._attn_implementation not in packed_attention.NAMES:
            return None
        mask = mask.to(inputs.device)
        if mask.all():
            return mask if full_too or self._is_quicker_packed(mask) else None
        if not mask.any() or (self.first_is_read and not mask[:, 0].all()):
            return None
        # Across a hole, tokens of a pack stand nearer to each other than they are.
        return None if self.windowed and _has_holes(mask) else mask


def unpacked(output: Any, pack: Pack | GraphPack) -> Any:
    """A model's or stack's output with its first tensor (1, T, H) as (B, S, H), as the pack unpacks it."""
    if isinstance(output, tuple):
        return (pack.unpack(output[0]), *output[1:])
    output["last_hidden_state"] = pack.unpack(output["last_hidden_state"])
    return output


def _packed_inputs(given: Mapping[str, Any], pack: Pack) -> dict[str, Any]:
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
