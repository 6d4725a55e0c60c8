"""Sentence embeddings, pooled and normalised as the checkpoint's sentence-transformers files say."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from warmstart.errors import CheckpointError, UsageError
from warmstart.features import Array, Batch, Feature, Pad
from warmstart.rows import Field, Row
from warmstart.tasks.contract import Scores, checked_options, text_of
from warmstart.tokenization import Tokenizer

Pooling = Literal["mean", "cls", "max", "mean_sqrt_len", "last"]

# The switches of sentence-transformers' Pooling module, and what we call them.
_POOLING_SWITCHES: Mapping[str, Pooling] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len",
    "pooling_mode_lasttoken": "last",
}
# What newer files write in the one key `pooling_mode`.
_POOLING_NAMES: Mapping[str, Pooling] = {
    "mean": "mean",
    "cls": "cls",
    "max": "max",
    "mean_sqrt_len_tokens": "mean_sqrt_len",
    "lasttoken": "last",
}
# Where it stands, by the family of the model in older checkpoints; the first that exists is read.
_FAMILIES = ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
_LIMIT_FILES = tuple(f"sentence_{family}_config.json" for family in _FAMILIES)


@dataclass(frozen=True)
class SentenceEmbedding:
    """One vector for a text. `embedding`: float32 values, as many as the model's width."""

    embedding: tuple[float, ...]
    tokens: int
    truncated: bool
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Embedding:
    """`pooling` says how token vectors become one; `normalize` scales it to length 1: a dot product is then a cosine.

    A text over the limit is cut, or covered by windows whose vectors are averaged, each weighted by its tokens.
    """

    tokenizer: Tokenizer
    pooling: Pooling = "mean"
    normalize: bool = False
    prompt: str = ""  # what the checkpoint was trained to read before every text
    long_text: Literal["truncate", "windows"] = "truncate"
    stride: int = 32

    name: ClassVar[str] = "sentence-embedding"
    auto_class: ClassVar[str] = "AutoModel"
    trainable: ClassVar[bool] = False
    couples_rows: ClassVar[bool] = False
    prediction: ClassVar[type[SentenceEmbedding]] = SentenceEmbedding
    fields: ClassVar[tuple[Field, ...]] = (
        Field("text", ("sentence", "content", "review", "tweet", "sentence1", "query"), doc="the text", text=True),
    )
    option_names: ClassVar[tuple[str, ...]] = ("long_text", "stride")

    @property
    def pads(self) -> Mapping[str, Pad]:
        return {"input_ids": Pad(self.tokenizer.pad_id), "attention_mask": Pad(0), "token_type_ids": Pad(0)}

    @classmethod
    def from_checkpoint(
        cls, tokenizer: Tokenizer, config: Mapping[str, Any], folder: Path, options: Mapping[str, Any]
    ) -> Embedding:
        chosen = checked_options(cls, options, {"long_text": ("truncate", "windows"), "stride": (int,)})
        tokenizer = dataclasses.replace(tokenizer, limit=min(tokenizer.limit, _read_limit(folder, tokenizer)))
        prompt = _read_prompt(folder / "config_sentence_transformers.json")
        pooling, normalize = _read_modules(folder, prompt)
        return cls(tokenizer, pooling=pooling, normalize=normalize, prompt=prompt, **chosen)

    def learn(self, rows: Sequence[Row]) -> Embedding:
        raise _not_trainable()

    def with_labels(self, labels: tuple[str, ...]) -> Embedding:
        raise UsageError(
            "task-has-no-labels", "a sentence embedding has no labels", value=labels, fix="leave labels out"
        )

    def head(self) -> dict[str, Any]:
        return {}

    def encode(self, rows: Sequence[Row], *, train: bool = False) -> Iterator[Feature]:
        if train:
            raise _not_trainable()
        texts = [self.prompt + (text_of(row, "text") or "") for row in rows]
        stride = self.stride if self.long_text == "windows" else None
        encoded = self.tokenizer.encode(texts, stride=stride, wheres=[row.where for row in rows])
        for index, code in enumerate(encoded):
            meta = {"truncated": code.truncated, "flags": code.flags}
            for part, piece in enumerate(code.pieces):
                inputs = self.tokenizer.inputs(piece)
                yield Feature(index, part, inputs, {}, meta, length=len(inputs["input_ids"]))

    def vary(self, feature: Feature, rng: np.random.Generator) -> Feature:
        return feature

    def forward(self, model: Any, batch: Batch) -> dict[str, Any]:
        states = model(**batch.inputs).last_hidden_state  # (B, T, H)
        return {"embedding": self._pool(states, batch.inputs["attention_mask"])}  # (B, H)

    infer = forward

    def loss(self, outputs: Mapping[str, Any], batch: Batch) -> tuple[Any, Any]:
        raise _not_trainable()

    def decode(
        self, row: Row, features: Sequence[Feature], outputs: Sequence[Mapping[str, Array]]
    ) -> SentenceEmbedding:
        if len(features) == 1:
            vector = outputs[0]["embedding"]
        else:
            lengths = np.array([feature.length for feature in features], dtype=np.float32)
            vector = lengths @ np.stack([output["embedding"] for output in outputs]) / lengths.sum()
        if self.normalize:
            vector = vector / max(float(np.linalg.norm(vector)), 1e-12)
        return SentenceEmbedding(
            embedding=tuple(vector.tolist()),
            tokens=sum(feature.length for feature in features),
            truncated=features[0].meta["truncated"],
            flags=features[0].meta["flags"],
        )

    def score(self, predictions: Sequence[SentenceEmbedding], rows: Sequence[Row]) -> Scores:
        raise _not_trainable()

    def _pool(self, states: Any, mask: Any) -> Any:
        """Token vectors (B, T, H) to one each (B, H); padding, where the mask (B, T) is 0, does not count."""
        weights = mask.unsqueeze(-1).to(states.dtype)
        if self.pooling == "cls":
            return states[:, 0]
        if self.pooling == "last":
            last = mask.sum(dim=1) - 1
            return states[last.new_tensor(range(len(states))), last]
        if self.pooling == "max":
            return states.masked_fill(weights == 0, float("-inf")).amax(dim=1)
        counts = weights.sum(dim=1).clamp(min=1e-9)
        return (states * weights).sum(dim=1) / (counts.sqrt() if self.pooling == "mean_sqrt_len" else counts)


def _read_limit(folder: Path, tokenizer: Tokenizer) -> int:
    """The length limit of sentence-transformers' file, which may be lower than the model's and the tokenizer's."""
    path = next((path for name in _LIMIT_FILES if (path := folder / name).exists()), folder / _LIMIT_FILES[0])
    config = _read_object(path)
    limit = config.get("max_seq_length")
    if limit is not None and (type(limit) is not int or limit <= 0):
        raise _unreadable(path, "max_seq_length is no positive whole number", limit)
    normalizer = tokenizer.rust.normalizer
    if config.get("do_lower_case") and (normalizer is None or normalizer.normalize_str("A") != "a"):
        raise _unreadable(path, "do_lower_case is set, and the tokenizer does not lower case", True)
    return limit or tokenizer.limit


def _read_prompt(path: Path) -> str:
    """The prompt that sentence-transformers puts before a text where none is asked for by name."""
    config = _read_object(path)
    name, prompts = config.get("default_prompt_name"), config.get("prompts") or {}
    if name is None:
        return ""
    prompt = prompts.get(name) if isinstance(prompts, dict) else None
    if not isinstance(prompt, str):
        raise _unreadable(path, f"default_prompt_name {name!r} is none of the prompts", prompts)
    return prompt


def _read_modules(folder: Path, prompt: str) -> tuple[Pooling, bool]:
    """Pooling and normalisation from `modules.json`; without that file, the mean of the token vectors as it is."""
    listing = folder / "modules.json"
    modules = _read_json(listing, default=[])
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise _unreadable(listing, "this is no list of modules", modules)
    pooling: Pooling = "mean"
    normalize = False
    for module in modules:
        kind = str(module.get("type", "")).rsplit(".", 1)[-1]
        if kind == "Pooling":
            pooling = _read_pooling(_inside(folder, str(module.get("path", "")), listing) / "config.json", prompt)
        elif kind == "Normalize":
            normalize = True
        elif kind != "Transformer":
            raise CheckpointError(
                "embedding-module-unknown",
                f"the checkpoint has a {kind} module, which this version cannot run",
                where=str(listing),
                value=module,
                fix="use a checkpoint of Transformer, Pooling and Normalize modules",
            )
    return pooling, normalize


def _inside(folder: Path, name: str, listing: Path) -> Path:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise _unreadable(listing, "the path of a module must be the name of a folder beside it", name)
    return folder / name


def _read_pooling(path: Path, prompt: str) -> Pooling:
    config = _read_object(path)
    named = config.get("pooling_mode")
    switched_on = [_POOLING_SWITCHES.get(key) for key, on in config.items() if on is True and "pooling_mode_" in key]
    chosen = [_POOLING_NAMES.get(str(named))] if named else switched_on
    if len(chosen) != 1 or chosen[0] is None:
        raise CheckpointError(
            "embedding-pooling-unknown",
            "the checkpoint's pooling is not one way this version knows",
            where=str(path),
            value=config,
            fix=f"use a checkpoint that pools by one of: {', '.join(_POOLING_NAMES)}",
        )
    if prompt and config.get("include_prompt") is False:
        raise _unreadable(path, "include_prompt is false, and the checkpoint has a default prompt", prompt)
    return chosen[0]


def _read_object(path: Path) -> dict[str, Any]:
    content = _read_json(path, default={})
    if not isinstance(content, dict):
        raise _unreadable(path, "this is no JSON object", content)
    return content


def _read_json(path: Path, *, default: Any) -> Any:
    if not path.exists():
        return default
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _unreadable(path, f"the file cannot be read: {error}", None) from None


def _unreadable(path: Path, what: str, value: object) -> CheckpointError:
    return CheckpointError(
        "embedding-config-unusable",
        what,
        where=str(path),
        value=value,
        fix="get the sentence-transformers files from the checkpoint's publisher again, or use another checkpoint",
    )


def _not_trainable() -> UsageError:
    return UsageError(
        "task-not-trainable",
        "sentence-embedding predicts only, in this version",
        value="sentence-embedding",
        fix='train with task="text-classification", or predict embeddings with ws.load(..., task="sentence-embedding")',
    )
