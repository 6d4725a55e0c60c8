"""Which architectures run without padding, in which way; read without torch."""

from __future__ import annotations

from collections.abc import Mapping

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


def way_of(model_type: str | None) -> str:
    """How a checkpoint of this architecture runs, in words.

    >>> way_of("bert"), way_of("mpnet"), way_of("longformer")
    ('no padding; layers written out', 'bands of like length (CPU only)', 'padded batches of like length')
    """
    if model_type in WRITTEN_OUT:
        return "no padding; layers written out"
    if model_type in STACKS or model_type in WHOLE:
        return "no padding"
    return "bands of like length (CPU only)" if model_type in BY_LENGTH else "padded batches of like length"
