"""Zero-shot classification by entailment: does the text entail "This example is sports."?

Source: W. Yin, J. Hay, D. Roth, "Benchmarking zero-shot text classification", EMNLP 2019. A checkpoint that was not
trained on entailment compares embeddings instead: `zero_shot_embedding.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from warmstart.errors import CheckpointError, UsageError, Where
from warmstart.features import Array, Batch, Feature, Pad
from warmstart.rows import Field, Row
from warmstart.tasks.candidates import (
    FIELDS,
    OPTIONS,
    ZeroShot,
    answer,
    binary_cross_entropy,
    candidates_of,
    cross_entropy,
    judge,
    read_options,
    target_finder,
)
from warmstart.tasks.contract import Scores, Task, text_of
from warmstart.tasks.zero_shot_embedding import ZeroShotByEmbedding
from warmstart.tokenization import Tokenizer

_PAIRS = 1024  # pairs of text and label that are encoded together


@dataclass(frozen=True)
class ZeroShotClassification:
    """`labels` are the candidates for rows that bring none. `entailment` and `contradiction` are the model's classes.

    The scores of a text's labels sum to 1; with `multi_label`, and for a single label, each is the probability of
    entailment against contradiction, whatever the others are. A text over the limit is cut, and the hypothesis never;
    or the text is covered by windows that share `stride` tokens, whose logits are averaged, weighted by their tokens.
    `out_of_scope` is the label that rows to evaluate on have where no candidate is right.
    """

    tokenizer: Tokenizer
    labels: tuple[str, ...] = ()
    entailment: int = 0
    contradiction: int = 1
    hypothesis_template: str = "This example is {}."
    multi_label: bool = False
    out_of_scope: str = ""
    long_text: Literal["truncate", "windows"] = "truncate"
    stride: int = 64

    name: ClassVar[str] = "zero-shot-classification"
    auto_class: ClassVar[str] = "AutoModelForSequenceClassification"
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
    ) -> Task:
        """This task for a classifier, which must know entailment; for any other checkpoint, `ZeroShotByEmbedding`.

        Raises CheckpointError "entailment-missing".
        """
        architecture = (config.get("architectures") or [""])[0]
        if not architecture.endswith("ForSequenceClassification"):
            return ZeroShotByEmbedding.from_checkpoint(tokenizer, config, folder, options)
        chosen = read_options(cls, options)
        named: Mapping[Any, str] = config.get("id2label") or {}
        classes = [named[key] for key in sorted(named, key=int)]
        entailment = _find(classes, "entail")
        if entailment is None:
            raise CheckpointError(
                "entailment-missing",
                "the checkpoint is a classifier none of whose labels is entailment: it knows no labels but its own",
                where=Where(source=str(folder / "config.json"), field="id2label"),
                value=classes,
                fix="use a checkpoint trained on entailment (NLI), or one for embeddings such as starter-encoder",
            )
        # Where no class is called so, the first or the last is it, as transformers' pipeline has it.
        contradiction = _find(classes, "contradict")
        if contradiction is None:
            contradiction = len(classes) - 1 if entailment == 0 else 0
        return cls(tokenizer, entailment=entailment, contradiction=contradiction, **chosen)

    def learn(self, rows: Sequence[Row]) -> Task:
        raise _not_trainable()

    def with_labels(self, labels: tuple[str, ...]) -> Task:
        raise UsageError(
            "task-has-no-labels",
            "the model's classes are entailment and its opposites; candidate labels are an option",
            value=labels,
            fix='give options={"labels": […]} instead',
        )

    def head(self) -> dict[str, Any] | None:
        return None

    def encode(self, rows: Sequence[Row], *, train: bool = False) -> Iterator[Feature]:
        """A feature for each label and window, labels in their order. Rows are encoded as they are taken."""
        target_of = target_finder(self.labels, self.out_of_scope)
        start = 0
        while start < len(rows):
            stop = start + max(1, _PAIRS // len(candidates_of(rows[start], self.labels)))
            targets = [{"labels": np.array(target_of(row))} if train else {} for row in rows[start:stop]]
            for feature in self._encode(rows[start:stop], targets):
                yield dataclasses.replace(feature, row=start + feature.row)
            start = stop

    def _encode(self, rows: Sequence[Row], targets: Sequence[Mapping[str, Array]]) -> Iterator[Feature]:
        texts = [text_of(row, "text") or "" for row in rows]
        candidates = [candidates_of(row, self.labels) for row in rows]
        pairs = [
            (text, self.hypothesis_template.replace("{}", name))
            for text, names in zip(texts, candidates, strict=True)
            for name in names
        ]
        stride = self.stride if self.long_text == "windows" else None
        encoded = self.tokenizer.encode_as_taken(
            pairs,
            stride=stride,
            shorten="first",
            wheres=[row.where for row, names in zip(rows, candidates, strict=True) for _ in names],
        )
        alone = self.tokenizer.encode(texts)  # for the flags: beside a hypothesis no text is empty
        for index, (names, target, text) in enumerate(zip(candidates, targets, alone, strict=True)):
            part = 0
            for choice in range(len(names)):
                code = next(encoded)
                meta = {"truncated": code.truncated, "flags": text.flags, "choice": choice}
                for piece in code.pieces:
                    inputs = self.tokenizer.inputs(piece)
                    yield Feature(index, part, inputs, target, meta, length=len(inputs["input_ids"]))
                    part += 1

    def vary(self, feature: Feature, rng: np.random.Generator) -> Feature:
        return feature

    def forward(self, model: Any, batch: Batch) -> dict[str, Any]:
        return {"logits": model(**batch.inputs).logits}  # (B, classes)

    infer = forward

    def loss(self, outputs: Mapping[str, Any], batch: Batch) -> tuple[Any, Any]:
        raise _not_trainable()

    def decode(self, row: Row, features: Sequence[Feature], outputs: Sequence[Mapping[str, Array]]) -> ZeroShot:
        labels = candidates_of(row, self.labels)
        logits, lengths = np.zeros((len(labels), len(outputs[0]["logits"]))), np.zeros(len(labels))
        for feature, output in zip(features, outputs, strict=True):
            logits[feature.meta["choice"]] += feature.length * output["logits"].astype(np.float64)
            lengths[feature.meta["choice"]] += feature.length
        logits /= lengths[:, None]  # (labels, classes)
        if self.multi_label or len(labels) == 1:
            # Softmax over the two classes, which is the logistic function of their difference.
            scores = np.exp(-np.logaddexp(0, logits[:, self.contradiction] - logits[:, self.entailment]))
        else:
            powers = np.exp(logits[:, self.entailment] - logits[:, self.entailment].max())
            scores = powers / powers.sum()
        return ZeroShot(
            **answer(labels, scores),
            tokens=sum(feature.length for feature in features),
            truncated=any(feature.meta["truncated"] for feature in features),
            flags=features[0].meta["flags"],
        )

    def score(self, predictions: Sequence[ZeroShot], rows: Sequence[Row]) -> Scores:
        """Accuracy, and the AUROC of rows in scope by their best score."""
        loss = binary_cross_entropy if self.multi_label else cross_entropy
        return judge(predictions, rows, named=self.labels, out_of_scope=self.out_of_scope, loss=loss)


def _find(classes: Sequence[str], beginning: str) -> int | None:
    return next((i for i, name in enumerate(classes) if name.lower().startswith(beginning)), None)


def _not_trainable() -> UsageError:
    return UsageError(
        "task-not-trainable",
        "zero-shot-classification has nothing to train: it asks a model that knows entailment, or compares embeddings",
        value="zero-shot-classification",
        fix='train task="text-classification" on pairs with the labels entailment and contradiction, or '
        'task="sentence-embedding", and load the result for this task',
    )
