"""Padding-free execution of unmodified transformers models.

A padded batch goes in, a padded output comes out, and in between no layer computes a padding position. Hooks on the
stock modules do it; the state of a pack travels in the call's own keyword arguments down to the attention function, so
that two forwards before one backward, gradient checkpointing, copies of the model and threads never share any.

Three ways in, by architecture:

- *stack*: the embeddings run on the padded batch, the encoder stack on the pack. Poolers and heads see padded states.
- *whole*: the ids are packed, with their positions; for models whose layers the base model calls itself.
- *by length* (DeBERTa, MPNet): attention of their own, which knows no pack: the stack runs in bands of rows of like
  length, which leaves some padding.

Sources: the attention interface of transformers, `integrations/sdpa_attention.py` and `masking_utils.py` there;
padding-free batches for BERT go back to Zeng et al. 2022, "Boosting Distributed Training Performance of the Unpadded
BERT Model".
"""

from __future__ import annotations

import logging
from typing import Any, TypeGuard

from torch import nn
from transformers import PreTrainedModel

from warmstart.engine import packed_attention
from warmstart.engine.architectures import BY_LENGTH, STACKS, WHOLE, WRITTEN_OUT
from warmstart.engine.by_length import ByLength
from warmstart.engine.first_token import FirstTokenLayer, first_token_heads
from warmstart.engine.packed_call import UnpaddedCall
from warmstart.engine.packed_layer import PackedLayer
from warmstart.engine.packed_stack import AfterStack, BeforeStack
from warmstart.errors import UsageError

log = logging.getLogger("warmstart")


def unpad(model: nn.Module) -> nn.Module:
    """Make `model` padding-free, in place, and return it. Same class, parameters and state dict; `pad` undoes it.

    `model` is a transformers model, or a module that holds some (an adapter, a sentence-transformers model). Its
    outputs stay what they were to rounding, in eval and in training, for whatever the attention mask keeps; hidden
    states and logits *at* padding positions are those of zeros instead of noise. Calls that pass the mask in another
    form than (B, S), a cache, or ask for attentions, hidden states or a cache run as before; so does a batch in which
    an encoder's row begins with padding, for heads read that position. A decoder gives no cache unless it is asked for
    one by `use_cache=True`; only a model that generates keeps it, in eval mode, unless told `use_cache=False`.

    Raises UsageError "unpad-unsupported", which says why; `ws.why_padded` asks without raising.

    >>> model = unpad(AutoModelForSequenceClassification.from_pretrained(folder))  # doctest: +SKIP
    >>> model(**tokenizer(texts, padding=True, return_tensors="pt")).logits  # doctest: +SKIP
    """
    reason = why_padded(model)
    if reason is not None:
        raise UsageError(
            "unpad-unsupported",
            f"{type(model).__name__} cannot run without padding: {reason}",
            value=type(model).__name__,
            fix="use it as it is: batches of texts of like length leave little padding (ws.batches makes them)",
        )
    packed_attention.register()
    for base in base_models(model):
        if not is_unpadded(base):
            generates = any(m.can_generate() for m in model.modules() if _heads(m, base))
            _install(base, generates)
    for head in first_token_heads(model):
        if not _asks_first_token(head):
            head.register_forward_pre_hook(_AskFirstToken(), with_kwargs=True)
            last = head.base_model.encoder.layer[-1]
            if isinstance(last.forward, PackedLayer):
                last.forward = PackedLayer(FirstTokenLayer(last.forward.forward), last, first_token=True)
            else:
                last.forward = FirstTokenLayer(last.forward)
    return model


def unpad_if_supported(model: nn.Module) -> nn.Module:
    """`unpad`, as the verbs use it: a model that cannot is returned as it is, which is said."""
    reason = why_padded(model)
    if reason is None:
        unpad(model)
        reason = _why_not_here(model)
    if reason is not None:
        log.info("%s runs on padded batches of like length: %s", type(model).__name__, reason)
    return model


def pad(model: nn.Module) -> nn.Module:
    """Undo `unpad`, in place, and return the model; one that is not unpadded is left as it is.

    >>> pad(unpad(model))  # doctest: +SKIP
    """
    for module in model.modules():
        for hooks, with_kwargs in _hook_tables(module):
            for key in [
                key for key, hook in hooks.items() if isinstance(hook, _AskFirstToken | BeforeStack | AfterStack)
            ]:
                del hooks[key]
                with_kwargs.pop(key, None)
        instead = vars(module).get("forward")
        if isinstance(instead, UnpaddedCall):
            instead.base.set_attn_implementation(instead.attention)
        if isinstance(instead, UnpaddedCall | ByLength | FirstTokenLayer | PackedLayer):
            del module.forward
    return model


def why_padded(model: nn.Module) -> str | None:
    """Why `unpad` would refuse the model, as a clause in words; None if it would not. Changes nothing.

    `model` as for `unpad`. Single calls of an unpadded model may run padded still: those that `unpad` names, and those
    of `deberta`, `deberta-v2` and `mpnet` on another device than a CPU.

    >>> why_padded(nn.Linear(2, 2))
    'it holds no transformers model'
    """
    bases = base_models(model)
    if not bases:
        return "it holds no transformers model"
    for base in bases:
        config = base.config
        told = vars(config)  # not every config has each of these
        if told.get("attn_logit_softcapping"):  # Gemma 2's, and few others'
            return "it caps attention logits (attn_logit_softcapping), which attention over packs does not"
        if config.model_type not in (*STACKS, *WHOLE, *BY_LENGTH):
            return f"the architecture {config.model_type!r} is not among {', '.join(supported())}"
        if config.model_type in STACKS and (told.get("is_decoder") or told.get("add_cross_attention")):
            return f"it is a decoder of the encoder architecture {config.model_type!r}"
        if not _is_stock(base):
            return f"the code of {type(base).__name__} is not transformers' own"
        if told.get("chunk_size_feed_forward"):
            return "its feed-forward layers run in chunks (chunk_size_feed_forward), which need padded lengths"
    return None


def _why_not_here(model: nn.Module) -> str | None:
    """Why an unpadded model computes padding all the same on the device it is on; None if it does not."""
    for base in base_models(model):
        if base.config.model_type in BY_LENGTH and base.device.type != "cpu":
            return f"the attention of {base.config.model_type!r} knows no pack, and bands of rows pay on a CPU only"
    return None


def supported() -> list[str]:
    """The `model_type`s that run without padding.

    >>> "bert" in supported()
    True
    """
    return sorted((*STACKS, *WHOLE, *BY_LENGTH))


def is_unpadded(model: nn.Module) -> bool:
    """Whether `unpad` has been here: on all of the transformers models it holds."""
    bases = base_models(model)
    return bool(bases) and all(_marked(base) for base in bases)


def _marked(base: PreTrainedModel) -> bool:
    if base.config.model_type in BY_LENGTH:
        return isinstance(vars(base.get_submodule(BY_LENGTH[base.config.model_type])).get("forward"), ByLength)
    return isinstance(vars(base).get("forward"), UnpaddedCall)


def base_models(model: nn.Module) -> list[PreTrainedModel]:
    """The transformers models without a head inside `model`, itself included."""
    return [m for m in model.modules() if isinstance(m, PreTrainedModel) and m.base_model is m]


def _heads(module: nn.Module, base: PreTrainedModel) -> TypeGuard[PreTrainedModel]:
    """Whether `module` is a transformers model with a head over `base`."""
    return isinstance(module, PreTrainedModel) and module is not base and module.base_model is base


def _is_stock(base: PreTrainedModel) -> bool:
    """Whether the code that runs is transformers' own: others' architectures go by the name of BERT, too."""
    stack = {**STACKS, **BY_LENGTH}.get(base.config.model_type)
    parts = [base] if stack is None else [base, base.get_submodule(stack)]
    return all(type(part).forward.__module__.startswith("transformers.models.") for part in parts)


def _asks_first_token(head: PreTrainedModel) -> bool:
    return any(isinstance(hook, _AskFirstToken) for hook in head._forward_pre_hooks.values())


def _hook_tables(module: nn.Module) -> list[tuple[dict[int, Any], dict[int, Any]]]:
    return [
        (module._forward_pre_hooks, module._forward_pre_hooks_with_kwargs),
        (module._forward_hooks, module._forward_hooks_with_kwargs),
    ]


def _install(base: PreTrainedModel, generates: bool) -> None:
    kind = base.config.model_type
    if kind in BY_LENGTH:
        stack = base.get_submodule(BY_LENGTH[kind])
        stack.forward = ByLength(stack.forward, _band_tokens(base))
        return
    own = packed_attention.own_name(base.config._attn_implementation)
    base.forward = UnpaddedCall(
        base.forward,
        base,
        own,
        whole=kind in WHOLE,
        generates=generates,
        first_is_read=kind in (*STACKS, "modernbert"),
        windowed=kind == "modernbert" or vars(base.config).get("sliding_window") is not None,
        written_out=kind in WRITTEN_OUT and base.config.hidden_act == "gelu",
    )
    base.set_attn_implementation(packed_attention.name_beside(own))
    if kind in STACKS:
        stack = base.get_submodule(STACKS[kind])
        for layer in stack.get_submodule("layer").children() if kind in WRITTEN_OUT else ():
            layer.forward = PackedLayer(layer.forward, layer)
        stack.register_forward_pre_hook(BeforeStack(), with_kwargs=True)
        stack.register_forward_hook(AfterStack(), with_kwargs=True)


class _AskFirstToken:
    """Tells the base model, in the call's keyword arguments, that this head reads the first tokens alone."""

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return args, kwargs | {"first_token_only": True}


def _band_tokens(base: PreTrainedModel) -> int:
    """What a call of the stack costs beside its tokens: DeBERTa projects every relative position in each layer."""
    relative = [m.num_embeddings for n, m in base.named_modules() if n == "encoder.rel_embeddings"]
    return 48 + sum(relative)
