"""Text classification: one label, several labels or a number, for a text or a pair of texts."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from warmstart.errors import CheckpointError, DataError, UsageError, Where
from warmstart.features import Array, Batch, Feature, Pad
from warmstart.rows import Field, Labels, Row, check_training_labels, infer_problem
from warmstart.tasks.class_loss import ClassLoss, count_labels
from warmstart.tasks.contract import Scores, checked_options, text_of
from warmstart.tasks.problems import PROBLEM_TYPES, Problem, ProblemName, make_problem, targets_of
from warmstart.tokenization import Text, Tokenizer

# Column names that data sets use for a text, and for the two texts of a pair.
TEXT_COLUMNS = ("sentence", "content", "review", "tweet")
FIRST_COLUMNS = ("sentence1", "premise", "text_a", "question", "question1")
SECOND_COLUMNS = ("sentence2", "hypothesis", "text_b", "context", "question2")


@dataclass(frozen=True)
class TextClass:
    """What a text was classified as.

    `label`: the best label; of several labels, the tuple of those at or above the threshold; of a number, its name.
    `score`: the probability of the best label; of a number, its value. `scores`: every label's, in the model's order.
    """

    label: str | tuple[str, ...]
    score: float
    scores: Mapping[str, float]
    tokens: int
    truncated: bool
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class TextClassification:
    """`labels` are in the model's order. A text over the limit is cut (`long_text="truncate"`), or covered by windows
    that share `stride` tokens and whose logits are averaged, each weighted by its tokens (`"windows"`)."""

    tokenizer: Tokenizer
    labels: tuple[str, ...] = ()
    problem: ProblemName = "single"
    long_text: Literal["truncate", "windows"] = "truncate"
    stride: int = 64
    threshold: float = 0.5
    class_loss: ClassLoss | None = None  # of training

    name: ClassVar[str] = "text-classification"
    auto_class: ClassVar[str] = "AutoModelForSequenceClassification"
    trainable: ClassVar[bool] = True
    couples_rows: ClassVar[bool] = False
    prediction: ClassVar[type[TextClass]] = TextClass
    fields: ClassVar[tuple[Field, ...]] = (
        Field("text", (*TEXT_COLUMNS, *FIRST_COLUMNS), doc="the text, or the first of a pair", text=True),
        Field(
            "text_pair",
            SECOND_COLUMNS,
            required=False,
            partner="text",
            partner_aliases=FIRST_COLUMNS,
            doc="the second text of a pair",
            text=True,
        ),
        Field(
            "label",
            ("labels", "target", "category", "class", "score"),
            required=False,
            target=True,
            doc="a label, a list of labels, or a number",
        ),
    )
    option_names: ClassVar[tuple[str, ...]] = ("long_text", "stride", "threshold")

    @property
    def pads(self) -> Mapping[str, Pad]:
        return {
            "input_ids": Pad(self.tokenizer.pad_id),
            "attention_mask": Pad(0),
            "token_type_ids": Pad(0),
            "labels": Pad(per_token=False),
        }

    @classmethod
    def from_checkpoint(
        cls, tokenizer: Tokenizer, config: Mapping[str, Any], folder: Path, options: Mapping[str, Any]
    ) -> TextClassification:
        chosen = checked_options(
            cls, options, {"long_text": ("truncate", "windows"), "stride": (int,), "threshold": (float,)}
        )
        named: Mapping[Any, str] = config.get("id2label") or {}
        labels = tuple(named[key] for key in sorted(named, key=int))
        problem: ProblemName = PROBLEM_TYPES.get(config.get("problem_type") or "", "single")
        if problem == "single" and len(labels) == 1:
            problem = "regression"
        if problem == "regression" and len(labels) > 1:
            raise CheckpointError(
                "regression-outputs",
                f"the checkpoint predicts {len(labels)} numbers for a text; this version predicts one",
                where=Where(source=str(folder / "config.json"), field="problem_type"),
                value=labels,
                fix="use a checkpoint with one output, or correct problem_type if the outputs are labels",
            )
        return cls(tokenizer, labels=labels, problem=problem, **chosen)

    def learn(self, rows: Sequence[Row]) -> TextClassification:
        """The task with the labels and the problem of these rows; itself, if its labels already cover theirs."""
        values = [row["label"] for row in rows]
        wheres = [dataclasses.replace(row.where, field="label") for row in rows]
        problem = infer_problem(values)
        if problem == "regression":
            if self.problem == "regression" and self.labels:
                return self
            return dataclasses.replace(self, labels=("score",), problem="regression")
        if problem == "single":
            check_training_labels(values, wheres=wheres)
        if problem == self.problem and _cover(self.labels, values):
            return self
        return dataclasses.replace(self, labels=Labels.learn(values, wheres).names, problem=problem)

    def with_labels(self, labels: tuple[str, ...]) -> TextClassification:
        """The task with these labels, in this order, for a fresh head; one label is a number's name.

        Raises UsageError "labels-empty", DataError "label-duplicate".
        """
        if not labels:
            raise UsageError("labels-empty", "there are no labels", value=labels, fix="name one label or more")
        names = Labels(labels).names
        several: ProblemName = "single" if self.problem == "regression" else self.problem
        return dataclasses.replace(self, labels=names, problem="regression" if len(names) == 1 else several)

    def head(self) -> dict[str, Any]:
        problem_type = {ours: theirs for theirs, ours in PROBLEM_TYPES.items()}[self.problem]
        return {
            "num_labels": len(self.labels),
            "id2label": dict(enumerate(self.labels)),
            "label2id": {label: i for i, label in enumerate(self.labels)},
            "problem_type": problem_type,
        }

    def encode(self, rows: Sequence[Row], *, train: bool = False) -> Iterator[Feature]:
        texts: list[Text] = [_text(row) for row in rows]
        stride = self.stride if self.long_text == "windows" else None
        encoded = self.tokenizer.encode(texts, stride=stride, wheres=[row.where for row in rows])
        every_target: Sequence[Array | None] = targets_of(self._answer, rows) if train else [None] * len(rows)
        for index, (code, target) in enumerate(zip(encoded, every_target, strict=True)):
            targets = {} if target is None else {"labels": target}
            meta = {"truncated": code.truncated, "flags": code.flags, "pieces": len(code.pieces)}
            for part, piece in enumerate(code.pieces):
                inputs = self.tokenizer.inputs(piece)
                yield Feature(index, part, inputs, targets, meta, length=len(inputs["input_ids"]))

    def vary(self, feature: Feature, rng: np.random.Generator) -> Feature:
        return feature

    def forward(self, model: Any, batch: Batch) -> dict[str, Any]:
        return {"logits": model(**batch.inputs).logits}  # (B, labels)

    infer = forward

    def loss(self, outputs: Mapping[str, Any], batch: Batch) -> tuple[Any, Any]:
        """Cross entropy, binary cross entropy averaged over labels, or squared error; each row weighs 1 in all, or what
        `class_loss` says of its label."""
        logits, targets = outputs["logits"], batch.targets["labels"]
        if self.class_loss is None:
            losses = self._answer.loss(logits, targets)
            weights = losses.new_ones(len(losses))
        else:
            losses, weights = self.class_loss.loss(logits, targets)
            losses = losses / weights
        return losses, weights * losses.new_tensor([1 / feature.meta["pieces"] for feature in batch.features])

    def count_labels(self, features: Iterable[Feature]) -> Array:
        self._check_single()
        return count_labels((feature for feature in features if feature.part == 0), len(self.labels))

    def with_class_loss(self, class_loss: ClassLoss) -> TextClassification:
        self._check_single()
        return dataclasses.replace(self, class_loss=class_loss)

    def _check_single(self) -> None:
        if self.problem != "single":
            raise UsageError(
                "loss-unsupported",
                "class weights and label smoothing are for rows with one label each",
                where=Where(field="loss"),
                value=self.problem,
                fix="leave the table loss out",
            )

    def decode(self, row: Row, features: Sequence[Feature], outputs: Sequence[Mapping[str, Array]]) -> TextClass:
        lengths = np.array([feature.length for feature in features], dtype=np.float64)
        stacked = np.stack([output["logits"] for output in outputs]).astype(np.float64)  # (parts, labels)
        label, scores = self._answer.decide(lengths @ stacked / lengths.sum())
        values = scores.tolist()
        first = features[0].meta
        return TextClass(
            label=label,
            score=max(values),
            scores=dict(zip(self.labels, values, strict=True)),
            tokens=int(lengths.sum()),
            truncated=first["truncated"],
            flags=first["flags"],
        )

    def score(self, predictions: Sequence[TextClass], rows: Sequence[Row]) -> Scores:
        """Accuracy, macro F1, MCC and AUROC; of several labels exact match and F1; of a number r, rho and MAE."""
        scores = np.array([list(prediction.scores.values()) for prediction in predictions])  # (N, labels)
        return self._answer.score(np.array(targets_of(self._answer, rows)), scores)

    @cached_property
    def _answer(self) -> Problem:
        """What the logits answer."""
        if not self.labels:
            raise UsageError(
                "labels-unknown",
                "the task has no labels yet",
                fix="train with ws.train, which learns them from the rows, or give labels to ws.load",
            )
        return make_problem(self.problem, self.labels, self.threshold)


def _cover(labels: tuple[str, ...], values: Sequence[Any]) -> bool:
    """Are all the values labels that the task has already."""
    known = Labels(labels)
    try:
        for value in values:
            for item in value if isinstance(value, list | tuple) else (value,):
                known.index(item)
    except DataError:
        return False
    return True


def _text(row: Row) -> Text:
    text, pair = text_of(row, "text"), text_of(row, "text_pair", optional=True)
    assert text is not None
    return text if pair is None else (text, pair)
