"""Which architectures run without padding, in which way; read without torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# model_type → the stack's name in the base model.
STACKS: Mapping[str, str] = {
    "albert": "encoder",
    "bert": "encoder",
    "camembert": "encoder",
    "data2vec-text": "encoder",
    "distilbert": "transformer",
    "electra": "encoder",
    "ernie": "encoder",
    "esm": "encoder",
    "roberta": "encoder",
    "roberta-prelayernorm": "encoder",
    "xlm-roberta": "encoder",
    "xlm-roberta-xl": "encoder",
}
WHOLE = frozenset({"gemma", "gemma3_text", "gpt2", "llama", "mistral", "modernbert", "qwen2", "qwen3"})
BY_LENGTH: Mapping[str, str] = {"deberta": "encoder", "deberta-v2": "encoder", "mpnet": "encoder"}
# Stacks whose layers are BERT's, module by module: on a CPU they run as `packed_layer` has them written out.
WRITTEN_OUT = frozenset({"bert", "camembert", "electra", "roberta", "xlm-roberta"})
_GELU = ("gelu", "gelu_python")  # the names under which transformers gives the exact one


def way_of(model_type: str | None, config: Mapping[str, Any] | None = None) -> str:
    """How a checkpoint of this architecture runs, in words. `config`: its config.json, where there is one.

    >>> way_of("bert"), way_of("mpnet"), way_of("longformer")
    ('no padding; layers written out', 'bands of like length (CPU only)', 'padded batches of like length')
    """
    if model_type in WRITTEN_OUT:
        reason = why_own_layers(config or {})
        return "no padding; layers written out" if reason is None else f"no padding; the layers' own code: {reason}"
    if model_type in STACKS or model_type in WHOLE:
        return "no padding"
    return "bands of like length (CPU only)" if model_type in BY_LENGTH else "padded batches of like length"


def why_own_layers(config: Mapping[str, Any]) -> str | None:
    """Why layers of `WRITTEN_OUT` always run through their own code, by config.json; None if they need not.

    What only a model or a call shows (hooks, frozen weights, autocast) is seen by `packed_layer.why_stock`.

    >>> why_own_layers({"hidden_act": "relu"})
    'the activation is relu, no exact GELU'
    """
    activation = config.get("hidden_act", "gelu")
    if activation not in _GELU:
        return f"the activation is {activation}, no exact GELU"
    for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
        share = config.get(name, 0.1)
        if isinstance(share, int | float) and share >= 1:
            return f"{name} is {share}, which drops everything"
    if config.get("is_decoder") and config.get("add_cross_attention"):
        return "the layers attend to an encoder, too"
    return None
