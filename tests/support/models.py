"""Tiny, randomly initialised checkpoints of the text families, each with a small tokenizer made in place."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging as transformers_logging

_LABELLED = ("classification", "tokens")
_HEADS = {
    "base": AutoModel,
    "classification": AutoModelForSequenceClassification,
    "generation": AutoModelForCausalLM,
    "masks": AutoModelForMaskedLM,
    "question-answering": AutoModelForQuestionAnswering,
    "text-to-text": AutoModelForSeq2SeqLM,
    "tokens": AutoModelForTokenClassification,
}
FAMILIES = ("bert", "distilbert", "roberta", "modernbert", "gpt2")
ENCODER_DECODERS = ("t5", "bart", "marian")
POSITIONS = 128  # tokens a text may have, in every family

_CORPUS = [
    "I love this film, it is wonderful and warm.",
    "A dull, tired plot; the worst two hours of my life!",
    "The cast is great but the story never begins?",
    "Good, bad, happy, sad: 0123456789 words that are said.",
    "LangChain and transformers are fun to learn.",
]
_DECODER = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2} | {
    "intermediate_size": 64, "head_dim": 8
}  # fmt: skip
DECODERS = ("gpt2", "llama", "qwen2", "gemma")
CHAT_TEMPLATE = (
    "{% for message in messages %}<s>{{ message['role'] }}: {{ message['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant: {% endif %}"
)
_ENCODER_DECODER = {
    **{f"{part}_layers": 2 for part in ("encoder", "decoder")},
    **{f"{part}_attention_heads": 4 for part in ("encoder", "decoder")},
    **{f"{part}_ffn_dim": 64 for part in ("encoder", "decoder")},
    "d_model": 32,
}
_SIZES: dict[str, dict[str, Any]] = {
    "bert": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64},
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64},
    "roberta": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64},
    "modernbert": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4},
    **dict.fromkeys(("llama", "qwen2", "gemma"), _DECODER),
    "t5": {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4},
    "bart": _ENCODER_DECODER,
    "marian": _ENCODER_DECODER,
}


def tiny_checkpoint(
    root: Path, family: str, head: str = "classification", labels: Sequence[str] = ("NEGATIVE", "POSITIVE")
) -> Path:
    """A checkpoint folder below `root`: `family` of FAMILIES or ENCODER_DECODERS, `head` of _HEADS. Made once per call
    with the same arguments. The GPT-2 one has no padding token, as the real one."""
    folder = root / f"{family}-{head}-{'-'.join(labels) if head in _LABELLED else 'none'}"
    if folder.is_dir():
        return folder
    tokenizer = tiny_tokenizer(family)
    config = AutoConfig.for_model(
        family,
        vocab_size=len(tokenizer),
        **_SIZES[family],
        **_positions(family),
        **_token_ids(tokenizer, family),
        **(_label_tables(labels) if head in _LABELLED else {}),
    )
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(0)
        model = _HEADS[head].from_config(config, dtype=torch.float32)
    transformers_logging.disable_progress_bar()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    transformers_logging.enable_progress_bar()
    return folder


def _positions(family: str) -> dict[str, int]:
    if family in ("gpt2", "t5"):
        return {"n_positions": POSITIONS}
    return {"max_position_embeddings": POSITIONS + (2 if family == "roberta" else 0)}


def _token_ids(tokenizer: PreTrainedTokenizerFast, family: str) -> dict[str, int | None]:
    modern = {"cls_token_id": tokenizer.cls_token_id, "sep_token_id": tokenizer.sep_token_id}
    return (modern if family == "modernbert" else {}) | {
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id if tokenizer.bos_token else tokenizer.cls_token_id,
        "eos_token_id": tokenizer.eos_token_id if tokenizer.eos_token else tokenizer.sep_token_id,
        **_decoder_ids(tokenizer, family),
    }


def _decoder_ids(tokenizer: PreTrainedTokenizerFast, family: str) -> dict[str, int | None]:
    """Where decoding starts, and how BART's must end, as these families' checkpoints have it."""
    if family == "bart":
        return {"decoder_start_token_id": tokenizer.eos_token_id, "forced_eos_token_id": tokenizer.eos_token_id}
    return {"decoder_start_token_id": tokenizer.pad_token_id} if family in ENCODER_DECODERS else {}


def _label_tables(labels: Sequence[str]) -> dict[str, Any]:
    return {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}


def tiny_tokenizer(family: str) -> PreTrainedTokenizerFast:
    """A tokenizer of the family's kind: WordPiece, or byte-level BPE; a few hundred tokens, the same at every call."""
    if family in ("bert", "distilbert"):
        return _word_piece()
    return _byte_level(family)


def _word_piece() -> PreTrainedTokenizerFast:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [chr(code) for code in range(ord("!"), ord("~") + 1) if not chr(code).isupper()]
    pieces = [*special, *letters, *(f"##{letter}" for letter in letters), *(w for w in _words() if len(w) > 1)]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    ids = {token: tokenizer.token_to_id(token) for token in special}
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=POSITIONS,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


def _words() -> list[str]:
    """The corpus's words in lower case, each once, in order."""
    return list(dict.fromkeys(re.findall(r"[a-z]+", " ".join(_CORPUS).lower())))


def _byte_level(family: str) -> PreTrainedTokenizerFast:
    special = ["<|endoftext|>"] if family == "gpt2" else ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    # Words are merged letter by letter from the left: w + a, wa + r, … Training would break ties at random.
    merges = dict.fromkeys((word[:i], word[i]) for word in _words() for i in range(1, len(word)))
    pieces = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet()), *(left + right for left, right in merges)]
    tokenizer = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, list(merges)))
    tokenizer.add_special_tokens(special)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if family == "gpt2":
        end = "<|endoftext|>"
        return PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, model_max_length=POSITIONS, bos_token=end, eos_token=end, unk_token=end
        )
    begun = {"llama": "<s> $A", "gemma": "<s> $A", "qwen2": "$A", "t5": "$A </s>", "marian": "$A </s>"}.get(family)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=begun or "<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=POSITIONS,
        bos_token="<s>",
        eos_token="</s>",
        cls_token="<s>",
        sep_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token="<mask>",
        model_input_names=["input_ids", "attention_mask"],
        **({"chat_template": CHAT_TEMPLATE} if begun else {}),
    )
