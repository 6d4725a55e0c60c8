"""Sentence embeddings, pooled and normalised as the checkpoint's sentence-transformers files say."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from warmstart.errors import UsageError
from warmstart.features import Array, Batch, Feature, Pad
from warmstart.rows import Field, Row
from warmstart.tasks.contract import Scores, checked_options, for_score, text_of
from warmstart.tasks.embedding_objectives import (
    CoSent,
    CosineRegression,
    InBatchNegatives,
    Objective,
    ObjectiveName,
    Triplet,
    Vectors,
)
from warmstart.tasks.embedding_rows import FIELDS, TEXTS, merge_windows, scores_of, text_key
from warmstart.tasks.embedding_settings import EmbeddingSettings, Pooling, choose_prompt, read_settings, write_settings
from warmstart.tasks.text_vectors import fitted, pool
from warmstart.tokenization import Tokenizer

log = logging.getLogger("warmstart")


@dataclass(frozen=True)
class SentenceEmbedding:
    """One vector for a text. `embedding`: float32 values, as many as the model's width.

    `similarity`: of a pair, the cosine of its two texts' embeddings; None for a single text.
    """

    embedding: tuple[float, ...]
    tokens: int
    truncated: bool
    flags: tuple[str, ...] = ()
    similarity: float | None = None
    others: Any = for_score()  # slot -> the vector (H,) of the row's second text and of its negative


@dataclass(frozen=True)
class Embedding:
    """`pooling` says how token vectors become one; `normalize` scales it to length 1: a dot product is then a cosine.

    A text over the limit is cut, or covered by windows whose vectors are averaged, each weighted by its tokens.
    `prompt` stands before every `text`, `pair_prompt` before every `text_pair` and `negative`.

    `objective` is what training teaches: "auto" takes the cosine where rows have scores, and in-batch negatives where
    they have none. `scale` multiplies cosines in a softmax, `margin` is that of triplets, and a row's score over
    `max_score` is the cosine that it asks for.
    """

    tokenizer: Tokenizer
    pooling: Pooling = "mean"
    normalize: bool = False
    prompt: str = ""
    pair_prompt: str = ""
    long_text: Literal["truncate", "windows"] = "truncate"
    stride: int = 32
    objective: ObjectiveName = "auto"
    scale: int = 20
    margin: float = 0.2
    max_score: int = 1
    prompts: Mapping[str, str] = field(default_factory=dict)  # the checkpoint's own, by name
    pools_prompt: bool = True

    name: ClassVar[str] = "sentence-embedding"
    auto_class: ClassVar[str] = "AutoModel"
    trainable: ClassVar[bool] = True
    prediction: ClassVar[type[SentenceEmbedding]] = SentenceEmbedding
    fields: ClassVar[tuple[Field, ...]] = FIELDS
    option_names: ClassVar[tuple[str, ...]] = (
        "long_text", "stride", "objective", "scale", "margin", "max_score", "prompt", "pair_prompt",
    )  # fmt: skip

    @property
    def couples_rows(self) -> bool:
        """True where in-batch negatives or an order of rows are learned; and as long as no rows have told."""
        return self.objective not in ("cosine", "triplet")

    @property
    def pads(self) -> Mapping[str, Pad]:
        whole = Pad(per_token=False)
        tokens = {"input_ids": Pad(self.tokenizer.pad_id), "attention_mask": Pad(0), "token_type_ids": Pad(0)}
        return {**tokens, "row": whole, "slot": whole, "score": whole}

    @classmethod
    def from_checkpoint(
        cls, tokenizer: Tokenizer, config: Mapping[str, Any], folder: Path, options: Mapping[str, Any]
    ) -> Embedding:
        settings = read_settings(folder)
        given = {name: options[name] for name in ("prompt", "pair_prompt") if name in options}
        asked = {name: choose_prompt(name, value, settings) for name, value in given.items()}
        known = {
            "long_text": ("truncate", "windows"),
            "stride": (int,),
            "objective": ("auto", "in-batch-negatives", "cosine", "triplet", "cosent"),
            "scale": (int,),
            "margin": (float,),
            "max_score": (int,),
        }
        chosen = checked_options(cls, {name: value for name, value in options.items() if name not in asked}, known)
        return cls(
            fitted(tokenizer, settings, folder),
            pooling=settings.pooling,
            normalize=settings.normalize,
            prompt=asked.get("prompt", settings.prompt),
            pair_prompt=asked.get("pair_prompt", asked.get("prompt", settings.prompt)),
            prompts=settings.prompts,
            pools_prompt=settings.pools_prompt,
            **chosen,
        )

    def learn(self, rows: Sequence[Row]) -> Embedding:
        """The task with the objective that these rows allow, and the largest score they have.

        Raises DataError "score-missing", "field-missing" or "target-not-number", UsageError "objective-without-data".
        """
        for row in rows:
            self._slots(row, train=True)
        scores = scores_of(rows)
        objective = self.objective
        if objective == "auto":
            objective = "in-batch-negatives" if scores is None else "cosine"
            log.info("objective %s, as the rows have %s", objective, "no scores" if scores is None else "scores")
        lacking = {"cosine": scores is None, "cosent": scores is None}.get(objective, False)
        if lacking or (objective in ("triplet", "in-batch-negatives") and scores is not None):
            raise UsageError(
                "objective-without-data",
                f"the objective {objective!r} needs rows {'with' if lacking else 'without'} scores",
                value=objective,
                fix='leave objective out, or give objective="cosine" with scores, "in-batch-negatives" without',
            )
        highest = self._highest(scores)
        if highest != self.max_score:
            log.info("scores up to %s: a score of %d is a cosine of 1", np.abs(scores).max(), highest)  # type: ignore[arg-type]
        return dataclasses.replace(self, objective=objective, max_score=highest)

    def with_labels(self, labels: tuple[str, ...]) -> Embedding:
        raise UsageError(
            "task-has-no-labels", "a sentence embedding has no labels", value=labels, fix="leave labels out"
        )

    def head(self) -> None:
        return None

    def files(self, *, width: int) -> Mapping[str, bytes]:
        """What sentence-transformers reads beside the model."""
        asked = {"query": self.prompt, "document": self.pair_prompt} if self.prompt or self.pair_prompt else {}
        prompts = {**self.prompts, **asked}
        settings = EmbeddingSettings(
            self.pooling, self.normalize, self.prompt, self.tokenizer.limit, False, prompts, self.pools_prompt
        )
        return write_settings(settings, width=width)

    def encode(self, rows: Sequence[Row], *, train: bool = False) -> Iterator[Feature]:
        """To train, every row needs a `text_pair`; scores stand in all rows or in none."""
        places = [(i, slot) for i, row in enumerate(rows) for slot in self._slots(row, train=train)]
        scores = scores_of(rows) if train else None
        texts = [self._text(rows[i], slot) for i, slot in places]
        stride = self.stride if self.long_text == "windows" else None
        encoded = self.tokenizer.encode(texts, stride=stride, wheres=[rows[i].where for i, _ in places])
        part = 0
        for position, ((i, slot), code) in enumerate(zip(places, encoded, strict=True)):
            part = part if position and places[position - 1][0] == i else 0
            meta = {"slot": slot, "truncated": code.truncated, "flags": code.flags}
            targets: dict[str, Array] = (
                {"row": np.array(i, dtype=np.int64), "slot": np.array(slot, dtype=np.int64)} if train else {}
            )
            if scores is not None:
                targets["score"] = np.array(scores[i], dtype=np.float32)
            for piece in code.pieces:
                inputs = self.tokenizer.inputs(piece)
                yield Feature(i, part, inputs, targets, meta, length=len(inputs["input_ids"]))
                part += 1

    def apart(self, features: Sequence[Feature]) -> frozenset[bytes]:
        """The row's texts, where another row's are wrong answers to it; nothing where scores say what is right."""
        scored = any("score" in feature.targets for feature in features)
        return frozenset(map(text_key, features)) if self._objective(scored=scored).apart else frozenset()

    def lacks(self, features: Sequence[Feature]) -> str | None:
        scores = [float(feature.targets["score"]) for feature in features if "score" in feature.targets]
        candidates = {(feature.row, feature.meta["slot"]) for feature in features if feature.meta["slot"]}
        return self._objective(scored=bool(scores)).lacks(len(candidates), scores)

    def vary(self, feature: Feature, rng: np.random.Generator) -> Feature:
        return feature

    def forward(self, model: Any, batch: Batch) -> dict[str, Any]:
        states = model(**batch.inputs).last_hidden_state  # (B, T, H)
        return {"embedding": pool(states, batch.inputs["attention_mask"], self.pooling)}  # (B, H)

    infer = forward

    def loss(self, outputs: Mapping[str, Any], batch: Batch) -> tuple[Any, Any]:
        """One loss a row, in the order of the rows in the batch; each row weighs 1."""
        texts, slots, vectors = merge_windows(batch.features, outputs["embedding"])
        chosen = [[k for k, slot in enumerate(slots) if slot == wanted] for wanted in range(3)]
        scores = None
        if "score" in batch.targets:
            scores = batch.targets["score"][[texts[k] for k in chosen[0]]].to(vectors.dtype) / self.max_score
        first, second, negatives = (vectors[k] for k in chosen)
        losses = self._objective(scored=scores is not None).loss(Vectors(first, second, negatives, scores))
        return losses, losses.new_ones(len(losses))

    def decode(
        self, row: Row, features: Sequence[Feature], outputs: Sequence[Mapping[str, Array]]
    ) -> SentenceEmbedding:
        found = {slot: self._vector(slot, features, outputs) for slot in {f.meta["slot"] for f in features}}
        first, second = found[0], found.get(1)
        return SentenceEmbedding(
            embedding=tuple(first.tolist()),
            tokens=sum(feature.length for feature in features),
            truncated=any(feature.meta["truncated"] for feature in features),
            flags=tuple(dict.fromkeys(flag for feature in features for flag in feature.meta["flags"])),
            similarity=None if second is None else _cosine(first, second),
            others={slot: vector for slot, vector in found.items() if slot},
        )

    def score(self, predictions: Sequence[SentenceEmbedding], rows: Sequence[Row]) -> Scores:
        """Of scored pairs Spearman and Pearson; of others accuracy and, of in-batch negatives, the reciprocal rank.

        A row's `loss` is the squared error of its cosine; without scores, the objective's loss of all rows together.
        """
        scores = scores_of(rows)
        wanted = None if scores is None else scores / self._highest(scores)
        first = np.array([prediction.embedding for prediction in predictions], dtype=np.float32)
        second = np.stack([prediction.others[1] for prediction in predictions])
        with_negative = [i for i, prediction in enumerate(predictions) if 2 in prediction.others]
        negatives = np.array([predictions[i].others[2] for i in with_negative], dtype=np.float32)
        return self._objective(scored=scores is not None).score(
            Vectors(
                first,
                second,
                negatives,
                wanted,
                second_texts=[row["text_pair"] for row in rows],
                negative_texts=[rows[i]["negative"] for i in with_negative],
            )
        )

    def _objective(self, *, scored: bool) -> Objective:
        """What these rows are learned and judged by; scores, where there are any, are what counts."""
        if scored:
            return CoSent(self.scale) if self.objective == "cosent" else CosineRegression()
        return Triplet(self.margin) if self.objective == "triplet" else InBatchNegatives(self.scale)

    def _highest(self, scores: Array | None) -> int:
        """The score that means a cosine of 1: that of the task, or a whole number that no row exceeds."""
        return self.max_score if scores is None else max(self.max_score, math.ceil(np.abs(scores).max(initial=0)))

    def _slots(self, row: Row, *, train: bool) -> list[int]:
        needed = (0, 1, 2) if self.objective == "triplet" else (0, 1)
        return [
            slot
            for slot, name in enumerate(TEXTS)
            if text_of(row, name, optional=slot > 0 and not (train and slot in needed)) is not None
        ]

    def _text(self, row: Row, slot: int) -> str:
        return (self.pair_prompt if slot else self.prompt) + (text_of(row, TEXTS[slot]) or "")

    def _vector(self, slot: int, features: Sequence[Feature], outputs: Sequence[Mapping[str, Array]]) -> Array:
        """The embedding (H,) of one of the row's texts."""
        members = [i for i, feature in enumerate(features) if feature.meta["slot"] == slot]
        vector = outputs[members[0]]["embedding"]
        if len(members) > 1:
            lengths = np.array([features[i].length for i in members], dtype=np.float32)
            vector = lengths @ np.stack([outputs[i]["embedding"] for i in members]) / lengths.sum()
        return np.asarray(vector / max(float(np.linalg.norm(vector)), 1e-12)) if self.normalize else vector


def _cosine(first: Array, second: Array) -> float:
    one, other = first.astype(np.float64), second.astype(np.float64)
    return float(one @ other / max(float(np.linalg.norm(one) * np.linalg.norm(other)), 1e-12))
