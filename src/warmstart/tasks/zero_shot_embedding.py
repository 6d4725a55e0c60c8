"""Zero-shot classification by embeddings: the label whose text is nearest. Each label is embedded once."""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from warmstart.errors import UsageError
from warmstart.features import Array, Batch, Feature, Pad
from warmstart.rows import Field, Row
from warmstart.tasks.candidates import (
    FIELDS,
    OPTIONS,
    ZeroShot,
    answer,
    candidates_of,
    cross_entropy,
    judge,
    read_options,
    target_finder,
)
from warmstart.tasks.contract import Scores, text_of
from warmstart.tasks.embedding_settings import Pooling, read_settings
from warmstart.tasks.text_vectors import fitted, pool
from warmstart.tokenization import Tokenizer

log = logging.getLogger("warmstart")

# Cosines times this are taken as logits for the loss, as sentence-transformers' ranking losses do by default.
SCALE = 20.0

# Labels of rows whose vectors are kept from one call to the next: 12 MB of a model with 384 dimensions.
KEPT = 4096


class LabelVectors:
    """The vectors of the labels that were embedded last, by the text that was embedded. Threads may share it."""

    def __init__(self, most: int = KEPT) -> None:
        self._most, self._vectors, self._lock = most, dict[str, Array](), threading.Lock()

    def get(self, text: str) -> Array | None:
        with self._lock:
            vector = self._vectors.pop(text, None)
            if vector is not None:
                self._vectors[text] = vector  # now the youngest
            return vector

    def put(self, text: str, vector: Array) -> None:
        with self._lock:
            self._vectors[text] = vector
            while len(self._vectors) > self._most:
                del self._vectors[next(iter(self._vectors))]


@dataclass(frozen=True)
class ZeroShotByEmbedding:
    """Scores are cosines, from -1 to 1, each of which depends on its own label alone, with `multi_label` or without.

    `vectors` are those of labels that are embedded already (`prepare`); a row's own labels are embedded with the first
    row that names them, once for all rows that are encoded together, and the last `KEPT` are `recent`: known to later
    calls. Options are those of `ZeroShotClassification`; a window's vector counts by its tokens.
    """

    tokenizer: Tokenizer
    labels: tuple[str, ...] = ()
    pooling: Pooling = "mean"
    prompt: str = ""
    hypothesis_template: str = "{}"
    multi_label: bool = False
    out_of_scope: str = ""
    long_text: Literal["truncate", "windows"] = "truncate"
    stride: int = 32
    vectors: Mapping[str, Array] = field(default_factory=dict, repr=False, compare=False)  # label -> (H,), length 1
    recent: LabelVectors = field(default_factory=LabelVectors, repr=False, compare=False)

    name: ClassVar[str] = "zero-shot-classification"
    auto_class: ClassVar[str] = "AutoModel"
    trainable: ClassVar[bool] = False
    couples_rows: ClassVar[bool] = False
    prediction: ClassVar[type[ZeroShot]] = ZeroShot
    fields: ClassVar[tuple[Field, ...]] = FIELDS
    option_names: ClassVar[tuple[str, ...]] = OPTIONS

    @property
    def pads(self) -> Mapping[str, Pad]:
        tokens = {"input_ids": Pad(self.tokenizer.pad_id), "attention_mask": Pad(0), "token_type_ids": Pad(0)}
        return {**tokens, "labels": Pad(per_token=False)}

    @classmethod
    def from_checkpoint(
        cls, tokenizer: Tokenizer, config: Mapping[str, Any], folder: Path, options: Mapping[str, Any]
    ) -> ZeroShotByEmbedding:
        settings = read_settings(folder)
        if not (folder / "modules.json").exists():
            log.warning("%s was not made for sentence embeddings: labels may be told apart badly", folder.name)
        return cls(
            fitted(tokenizer, settings, folder),
            pooling=settings.pooling,
            prompt=settings.prompt,
            **read_options(cls, options),
        )

    def prepare(self, run: Callable[[Sequence[Feature]], Sequence[Mapping[str, Array]]]) -> ZeroShotByEmbedding:
        """The task that knows the vectors of its labels."""
        labels = [label for label in self.labels if label not in self.vectors]
        codes = self.tokenizer.encode([self._hypothesis(label) for label in labels])
        if cut := [label for label, code in zip(labels, codes, strict=True) if code.truncated]:
            log.warning("%d labels are longer than %d tokens and were cut", len(cut), self.tokenizer.limit)
        features = [self._feature(row, 0, code.pieces[0], {}, {}) for row, code in enumerate(codes)]
        found = {label: _unit(output["embedding"]) for label, output in zip(labels, run(features), strict=True)}
        return dataclasses.replace(self, vectors={**self.vectors, **found}, recent=LabelVectors())

    def learn(self, rows: Sequence[Row]) -> ZeroShotByEmbedding:
        raise _not_trainable()

    def with_labels(self, labels: tuple[str, ...]) -> ZeroShotByEmbedding:
        raise UsageError(
            "task-has-no-labels",
            "the model has no classes; candidate labels are an option",
            value=labels,
            fix='give options={"labels": […]} instead',
        )

    def head(self) -> dict[str, Any] | None:
        return None

    def encode(self, rows: Sequence[Row], *, train: bool = False) -> Iterator[Feature]:
        """A feature for each window of a text, and then one for each label that no earlier row has and that is new.

        Its vector reaches the other rows through their features' meta, as `decode` goes through the rows in order.
        """
        candidates = [candidates_of(row, self.labels) for row in rows]
        stride = self.stride if self.long_text == "windows" else None
        texts = [self.prompt + (text_of(row, "text") or "") for row in rows]
        encoded = self.tokenizer.encode(texts, stride=stride, wheres=[row.where for row in rows])
        own = list(dict.fromkeys(name for names in candidates for name in names if name not in self.vectors))
        codes = dict(zip(own, self.tokenizer.encode([self._hypothesis(name) for name in own]), strict=True))
        found = {name: self.recent.get(self._hypothesis(name)) for name in own}
        vectors = {name: vector for name, vector in found.items() if vector is not None}
        new = {name for name in own if name not in vectors}
        target_of = target_finder(self.labels, self.out_of_scope)
        for index, (row, code, names) in enumerate(zip(rows, encoded, candidates, strict=True)):
            target = {"labels": np.array(target_of(row))} if train else {}
            truncated = code.truncated or any(codes[name].truncated for name in names if name in codes)
            meta = {"truncated": truncated, "flags": code.flags, "label": None, "vectors": vectors}
            pieces = [(piece, meta) for piece in code.pieces]
            pieces += [(codes[name].pieces[0], {**meta, "label": name}) for name in names if name in new]
            new.difference_update(names)
            for part, (piece, told) in enumerate(pieces):
                yield self._feature(index, part, piece, target, told)

    def vary(self, feature: Feature, rng: np.random.Generator) -> Feature:
        return feature

    def forward(self, model: Any, batch: Batch) -> dict[str, Any]:
        states = model(**batch.inputs).last_hidden_state  # (B, T, H)
        return {"embedding": pool(states, batch.inputs["attention_mask"], self.pooling)}  # (B, H)

    infer = forward

    def loss(self, outputs: Mapping[str, Any], batch: Batch) -> tuple[Any, Any]:
        raise _not_trainable()

    def decode(self, row: Row, features: Sequence[Feature], outputs: Sequence[Mapping[str, Array]]) -> ZeroShot:
        text: Array = np.zeros(len(outputs[0]["embedding"]))
        own: dict[str, Array] = features[0].meta["vectors"]  # of all rows that were encoded with this one
        tokens = 0
        for feature, output in zip(features, outputs, strict=True):
            label = feature.meta["label"]
            if label is None:
                text = text + feature.length * output["embedding"].astype(np.float64)
                tokens += feature.length
            else:
                own[label] = _unit(output["embedding"])
                self.recent.put(self._hypothesis(label), own[label])
        labels = candidates_of(row, self.labels)
        vectors = np.stack([own[label] if label in own else self.vectors[label] for label in labels])  # (labels, H)
        return ZeroShot(
            **answer(labels, vectors @ _unit(text)),
            tokens=tokens,
            truncated=features[0].meta["truncated"],
            flags=features[0].meta["flags"],
        )

    def score(self, predictions: Sequence[ZeroShot], rows: Sequence[Row]) -> Scores:
        """Accuracy, and the AUROC of rows in scope by their best cosine."""
        return judge(predictions, rows, named=self.labels, out_of_scope=self.out_of_scope, loss=_loss)

    def _hypothesis(self, label: str) -> str:
        return self.prompt + self.hypothesis_template.replace("{}", label)

    def _feature(self, row: int, part: int, piece: Any, targets: Mapping[str, Array], meta: dict[str, Any]) -> Feature:
        inputs = self.tokenizer.inputs(piece)
        return Feature(row, part, inputs, targets, meta, length=len(inputs["input_ids"]))


def _unit(vector: Array) -> Array:
    """A vector (H,) of length 1, in double precision."""
    wide = vector.astype(np.float64)
    return wide / max(float(np.linalg.norm(wide)), 1e-12)


def _loss(cosines: Array, target: int) -> float:
    powers = np.exp(SCALE * (cosines - cosines.max()))
    return cross_entropy(powers / powers.sum(), target)


def _not_trainable() -> UsageError:
    return UsageError(
        "task-not-trainable",
        "zero-shot-classification compares embeddings, and has nothing of its own to train",
        value="zero-shot-classification",
        fix='train task="sentence-embedding" with options={"objective": "triplet"} on rows of text, text_pair '
        "(its label) and negative (another label), and load the result for this task",
    )
