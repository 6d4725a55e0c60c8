"""Sentence embeddings, pooled and normalised as the checkpoint's sentence-transformers files say."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from warmstart.errors import CheckpointError, UsageError
from warmstart.features import Array, Batch, Feature, Pad
from warmstart.rows import Field, Row
from warmstart.tasks.contract import Scores, checked_options, text_of
from warmstart.tasks.embedding_settings import Pooling, read_settings
from warmstart.tokenization import Tokenizer


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
        settings = read_settings(folder)
        if settings.lower_case and not _lower_cases(tokenizer):
            raise CheckpointError(
                "embedding-config-unusable",
                "do_lower_case is set, and the tokenizer does not lower case",
                where=str(folder),
                fix="get the checkpoint from its publisher again, or use another one",
            )
        return cls(
            dataclasses.replace(tokenizer, limit=min(tokenizer.limit, settings.limit or tokenizer.limit)),
            pooling=settings.pooling,
            normalize=settings.normalize,
            prompt=settings.prompt,
            **chosen,
        )

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


def _lower_cases(tokenizer: Tokenizer) -> bool:
    normalizer = tokenizer.rust.normalizer
    return normalizer is not None and normalizer.normalize_str("A") == "a"


def _not_trainable() -> UsageError:
    return UsageError(
        "task-not-trainable",
        "sentence-embedding predicts only, in this version",
        value="sentence-embedding",
        fix='train with task="text-classification", or predict embeddings with ws.load(..., task="sentence-embedding")',
    )
