"""Tiny random models of every family and head that can run without padding, and batches of unequal rows for them."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast
from unittest import mock

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel
from transformers.models.auto import modeling_auto

from support.runs import without_dropout
from warmstart.engine import layer_inference, layer_training, products
from warmstart.engine.architectures import BY_LENGTH, STACKS, WHOLE
from warmstart.engine.by_length import ByLength, bands
from warmstart.engine.unpad import unpad

LENGTHS = (5, 17, 3, 20, 17, 1, 20, 2, 4)
PAD = 1  # as RoBERTa has it
SPECIAL = 5  # ids below are never text
MASK = 4
VOCABULARY = 60

_BERT: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}
_ESM = _BERT | {"attention_probs_dropout_prob": 0.0}  # no module, a number
_LLAMA = _BERT | {"num_key_value_heads": 2}
_DEBERTA = {"relative_attention": True, "pos_att_type": "p2c|c2p", "position_biased_input": False}
# Every variant of a family that takes another way through its layers: name → (model_type, what differs).
VARIANTS: Mapping[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, _BERT) for name in STACKS if name not in ("albert", "distilbert", "esm")},
    "albert": ("albert", _BERT | {"embedding_size": 16}),
    "distilbert": ("distilbert", {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48}),
    "bert-eager": ("bert", _BERT | {"attn_implementation": "eager"}),
    "esm-rotary": ("esm", _ESM | {"position_embedding_type": "rotary", "token_dropout": True}),
    "esm-absolute": ("esm", _ESM | {"position_embedding_type": "absolute", "emb_layer_norm_before": True}),
    "modernbert-cls": ("modernbert", _BERT | {"local_attention": 8, "num_hidden_layers": 4}),
    "modernbert-mean": (
        "modernbert",
        _BERT | {"local_attention": 8, "num_hidden_layers": 4, "classifier_pooling": "mean"},
    ),
    "gpt2": ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_inner": 48, "n_positions": 64}),
    "gpt2-scaled": (
        "gpt2",
        {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "scale_attn_by_inverse_layer_idx": True},
    ),
    "llama": ("llama", _LLAMA),
    "gemma": ("gemma", _LLAMA | {"head_dim": 8}),
    "gemma3": (
        "gemma3_text",
        _LLAMA | {"head_dim": 8, "sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "gemma3-bidirectional": (
        "gemma3_text",
        _LLAMA
        | {
            "head_dim": 8,
            "sliding_window": 6,
            "layer_types": ["sliding_attention", "full_attention"],
            "use_bidirectional_attention": True,
        },
    ),
    "mistral": ("mistral", _LLAMA | {"sliding_window": 6}),
    "qwen2": ("qwen2", _LLAMA),
    "qwen2-sliding": (
        "qwen2",
        _LLAMA | {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1},
    ),
    "qwen3": ("qwen3", _LLAMA | {"head_dim": 8}),
    "mpnet": ("mpnet", _BERT),
    "deberta": ("deberta", _BERT | _DEBERTA | {"max_relative_positions": 8}),
    "deberta-v2": (
        "deberta-v2",
        _BERT | _DEBERTA | {"position_buckets": 8, "norm_rel_ebd": "layer_norm", "share_att_key": True},
    ),
    "deberta-v2-conv": (
        "deberta-v2",
        _BERT | _DEBERTA | {"position_buckets": 8, "conv_kernel_size": 3, "conv_act": "gelu"},
    ),
}
HEADS: Mapping[str, Mapping[str, Any]] = {
    "AutoModel": modeling_auto.MODEL_MAPPING_NAMES,
    "AutoModelForSequenceClassification": modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    "AutoModelForTokenClassification": modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
    "AutoModelForQuestionAnswering": modeling_auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES,
    "AutoModelForMultipleChoice": modeling_auto.MODEL_FOR_MULTIPLE_CHOICE_MAPPING_NAMES,
    "AutoModelForMaskedLM": modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    "AutoModelForCausalLM": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
}
DECODERS = WHOLE - {"modernbert"}
_FEED_FORWARD = re.compile(r"(intermediate\.dense|albert_layers\.\d+\.ffn|ffn\.lin1|mlp\.(Wi|c_fc|up_proj))$")


def cases() -> list[tuple[str, str]]:
    """Every (variant, head) that transformers has. An encoder's causal head is a decoder, which is not unpadded."""
    return [
        (variant, head)
        for variant, (family, _) in VARIANTS.items()
        for head, families in HEADS.items()
        if family in families and (head != "AutoModelForCausalLM" or family in DECODERS)
    ]


def make(variant: str, head: str = "AutoModel", **settings: Any) -> PreTrainedModel:
    """A tiny random model without dropout, in eval mode; `settings` go into its config."""
    family, own = VARIANTS[variant]
    tokens = {"pad_token_id": PAD, "bos_token_id": 2, "eos_token_id": 3, "mask_token_id": MASK}
    tokens |= {"cls_token_id": 2, "sep_token_id": 3} if family == "modernbert" else {}
    config = AutoConfig.for_model(family, **{"vocab_size": VOCABULARY, **tokens, **own, **settings})
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(0)
        model = getattr(transformers, head).from_config(config, dtype=torch.float32)
        with torch.no_grad():  # the stock start is so small that a lost layer would hardly show
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    model = without_dropout(model)
    assert isinstance(model, PreTrainedModel)
    return model.eval()


def pair(variant: str, head: str = "AutoModel", **settings: Any) -> tuple[PreTrainedModel, PreTrainedModel]:
    """A padded and an unpadded model of the same weights."""
    unpadded = make(variant, head, **settings)
    return make(variant, head, **settings), cast(PreTrainedModel, unpad(unpadded))


def differ(one: Any, other: Any, mask: Tensor) -> float:
    """The largest difference between two calls' main outputs where the mask keeps tokens."""
    return float((kept(main_output(one), mask) - kept(main_output(other), mask)).abs().max())


def batch(lengths: Sequence[int] = LENGTHS, *, left: bool = False, seed: int = 0) -> dict[str, Tensor]:
    """Token ids and mask of shape (len(lengths), max(lengths)), padded on the right, or on the `left`."""
    ids = torch.full((len(lengths), max(lengths)), PAD)
    mask = torch.zeros_like(ids)
    chance = torch.Generator().manual_seed(seed)
    for row, length in enumerate(lengths):
        place = slice(ids.shape[1] - length, None) if left else slice(length)
        ids[row, place] = torch.randint(SPECIAL, VOCABULARY, (length,), generator=chance)
        mask[row, place] = 1
    return {"input_ids": ids, "attention_mask": mask}


def drawn_lengths(seed: str) -> list[int]:
    """Six to nine rows of 1 to 40 tokens, so unlike that more than 100 places are padding."""
    chance = random.Random(seed)
    while True:
        lengths = [chance.randint(1, 40) for _ in range(chance.randint(6, 9))]
        if len(lengths) * max(lengths) - sum(lengths) > 100:
            return lengths


def main_output(outputs: Any) -> Tensor:
    """What the head is for: logits, scores of starts and ends (B, S, 2), or hidden states."""
    if "start_logits" in outputs:
        return torch.stack((outputs["start_logits"], outputs["end_logits"]), dim=-1)
    for name in ("logits", "last_hidden_state"):
        if name in outputs:
            tensor: Tensor = outputs[name]
            return tensor
    raise AssertionError(f"an output of another kind: {list(outputs)}")


def kept(output: Tensor, mask: Tensor) -> Tensor:
    """An output with a vector for each token, without those of padding; another as it is."""
    return output[mask.bool()] if output.shape[: mask.ndim] == mask.shape else output


def gradients(model: nn.Module, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
    """The gradient of every parameter that has one, of a sum that weighs what the mask keeps."""
    model.zero_grad()
    output = kept(main_output(model(**inputs)), inputs["attention_mask"])
    (output.sin() * torch.arange(1, output.numel() + 1).view_as(output).cos()).sum().backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def worst(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """The largest difference between gradients, as a share of the largest gradient. (A key's bias has none but noise:
    no softmax changes by it.) One that has none on one side counts as zeros."""
    largest = max(float(gradient.abs().max()) for gradient in one.values())
    names = one.keys() | other.keys()
    nothing = torch.zeros(())
    return max(float((one.get(n, nothing) - other.get(n, nothing)).abs().max()) for n in names) / largest


def relative_error(found: Mapping[str, Tensor], exact: Mapping[str, Tensor]) -> float:
    """How far gradients are from `exact` ones, as a share of these."""
    difference = sum(float((found[n].double() - g.double()).square().sum()) for n, g in exact.items())
    return (difference / sum(float(g.double().square().sum()) for g in exact.values())) ** 0.5


@dataclass
class FeedForward:
    """How many tokens passed the first linear map of all feed-forward layers, while `counted` was open."""

    calls: list[int] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        return sum(self.calls)


@contextmanager
def counted(model: nn.Module) -> Iterator[FeedForward]:
    """By hooks. Layers written out run their own code under them: see `multiplied`."""
    found = FeedForward()
    linear = [module for name, module in model.named_modules() if _FEED_FORWARD.search(name)]
    assert linear, "no feed-forward layer found"
    hooks = [
        module.register_forward_pre_hook(lambda module, args: found.calls.append(args[0].shape[:-1].numel()))
        for module in linear
    ]
    yield found
    for hook in hooks:
        hook.remove()


@contextmanager
def multiplied(model: nn.Module) -> Iterator[FeedForward]:
    """How many rows the first feed-forward products of layers written out have, without a hook on the model."""
    found = FeedForward()
    inner = {id(module.weight) for name, module in model.named_modules() if name.endswith("intermediate.dense")}

    def affine(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if id(weight) in inner:
            found.calls.append(x.shape[0])
        return products.affine(x, weight, bias)

    def affine_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        assert id(weight) in inner
        found.calls.append(x.shape[0])
        return products.affine_gelu(x, weight, bias)

    with (
        mock.patch.object(layer_training, "affine", affine),
        mock.patch.object(layer_inference, "affine_gelu", affine_gelu),
    ):
        yield found


def tokens_per_pass(model: PreTrainedModel, lengths: Sequence[int] = LENGTHS) -> int:
    """How many tokens a layer of an unpadded model computes: those of the rows, or of bands of rows of like length."""
    if model.config.model_type not in BY_LENGTH:
        return sum(lengths)
    instead = vars(model.base_model.get_submodule(BY_LENGTH[model.config.model_type]))["forward"]
    assert isinstance(instead, ByLength)
    longest_first, tokens = sorted(lengths, reverse=True), 0
    for rows in bands(longest_first, instead.band_tokens):
        tokens += rows * longest_first[0]
        longest_first = longest_first[rows:]
    return tokens


def stock(model: nn.Module) -> bool:
    """Whether nothing of ours is left on the model: no attribute, no hook of any module."""
    return all(
        "forward" not in vars(module)
        and not any(
            type(hook).__module__.startswith("warmstart")
            for hooks in (module._forward_pre_hooks, module._forward_hooks)
            for hook in hooks.values()
        )
        for module in model.modules()
    )


assert {family for family, _ in VARIANTS.values()} == {*STACKS, *WHOLE, *BY_LENGTH}
