"""The three problems a row of logits can answer: one label, several labels, a number.

Each says what its target is, its loss, how logits become a decision, and how decisions are judged; any task whose model
ends in one row of logits an input shares them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from warmstart.errors import Where
from warmstart.features import Array
from warmstart.metrics import Measure
from warmstart.rows import Labels, Row, number
from warmstart.tasks.contract import Scores, judged

ProblemName = Literal["single", "multi", "regression"]

# What transformers calls them in a config.
PROBLEM_TYPES: Mapping[str, ProblemName] = {
    "single_label_classification": "single",
    "multi_label_classification": "multi",
    "regression": "regression",
}


class Problem(Protocol):
    """What a kind of target asks of logits of shape (B, labels)."""

    def target(self, value: Any, where: Where) -> Array:
        """A row's label as the loss reads it. Raises DataError for a value that is none."""
        ...

    def loss(self, logits: Any, targets: Any) -> Any:
        """Each input's loss, shape (B,); torch in, torch out."""
        ...

    def decide(self, logits: Array) -> tuple[str | tuple[str, ...], Array]:
        """The decision for one row of logits (labels,), and each label's score (labels,)."""
        ...

    def score(self, truth: Array, scores: Array) -> Scores:
        """Judge scores (N, labels) by targets (N, …)."""
        ...


def make_problem(name: ProblemName, labels: tuple[str, ...], threshold: float) -> Problem:
    """The problem of this name over these labels."""
    if name == "single":
        return SingleLabel(Labels(labels))
    return MultiLabel(Labels(labels), threshold) if name == "multi" else Regression(labels[0])


def targets_of(problem: Problem, rows: Sequence[Row]) -> list[Array]:
    """Each row's target. Raises DataError that names the row's place and the field."""
    return [problem.target(row.get("label"), dataclasses.replace(row.where, field="label")) for row in rows]


@dataclass(frozen=True)
class SingleLabel:
    """Exactly one label: softmax, cross entropy; accuracy, macro F1, MCC and AUROC."""

    labels: Labels

    def target(self, value: Any, where: Where) -> Array:
        return np.array(self.labels.index(value, where), dtype=np.int64)  # ()

    def loss(self, logits: Any, targets: Any) -> Any:
        import torch.nn.functional as F

        return F.cross_entropy(logits, targets, reduction="none")

    def decide(self, logits: Array) -> tuple[str, Array]:
        powers = np.exp(logits - logits.max())
        scores = powers / powers.sum()
        return self.labels.names[int(scores.argmax())], scores

    def score(self, truth: Array, scores: Array) -> Scores:
        predicted = scores.argmax(axis=1)
        picked = scores[np.arange(len(truth)), truth]
        right = {"loss": _negative_log(picked), "correct": predicted == truth}
        return judged(
            {**right, "true": truth, "predicted": predicted, "scores": scores},
            {
                "accuracy": Measure("share", ("correct",)),
                "macro_f1": Measure("macro-f1", ("true", "predicted")),
                "mcc": Measure("mcc", ("true", "predicted")),
                "auroc": Measure("auroc", ("true", "scores")),
            },
            primary="accuracy",
            labels=self.labels.names,
            by_label=("true", "predicted", "scores"),
        )


@dataclass(frozen=True)
class MultiLabel:
    """Any number of labels: the logistic function and binary cross entropy, averaged over labels; F1 and AUROC."""

    labels: Labels
    threshold: float

    def target(self, value: Any, where: Where) -> Array:
        return np.array(self.labels.vector(value, where), dtype=np.float32)  # (labels,)

    def loss(self, logits: Any, targets: Any) -> Any:
        import torch.nn.functional as F

        return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(dim=-1)

    def decide(self, logits: Array) -> tuple[tuple[str, ...], Array]:
        scores = np.exp(-np.logaddexp(0, -logits))  # the logistic function, without overflow
        return tuple(n for n, score in zip(self.labels.names, scores, strict=True) if score >= self.threshold), scores

    def score(self, truth: Array, scores: Array) -> Scores:
        truth = truth.astype(np.int64)
        predicted = (scores >= self.threshold).astype(np.int64)
        likelihood = np.where(truth == 1, scores, 1 - scores)
        right = {"loss": _negative_log(likelihood).mean(axis=1), "correct": (predicted == truth).all(axis=1)}
        return judged(
            {**right, "true": truth, "predicted": predicted, "scores": scores},
            {
                "accuracy": Measure("share", ("correct",)),
                "micro_f1": Measure("micro-f1", ("true", "predicted")),
                "macro_f1": Measure("multilabel-macro-f1", ("true", "predicted")),
                "auroc": Measure("auroc", ("true", "scores")),
            },
            primary="accuracy",
            labels=self.labels.names,
            by_label=("true", "predicted", "scores"),
        )


@dataclass(frozen=True)
class Regression:
    """A number, as it is: squared error; Pearson, Spearman and mean absolute error."""

    name: str

    def target(self, value: Any, where: Where) -> Array:
        return np.array(number(value, where), dtype=np.float32)  # ()

    def loss(self, logits: Any, targets: Any) -> Any:
        import torch.nn.functional as F

        return F.mse_loss(logits.squeeze(-1), targets, reduction="none")

    def decide(self, logits: Array) -> tuple[str, Array]:
        return self.name, logits

    def score(self, truth: Array, scores: Array) -> Scores:
        predicted, truth = scores[:, 0], truth.astype(np.float64)
        error = predicted - truth
        return judged(
            {"loss": error**2, "error": error, "true": truth, "predicted": predicted},
            {
                "pearson": Measure("pearson", ("true", "predicted")),
                "spearman": Measure("spearman", ("true", "predicted")),
                "mae": Measure("mean-absolute", ("error",)),
            },
            primary="pearson",
        )


def _negative_log(likelihood: Array) -> Array:
    return -np.log(np.maximum(likelihood, 1e-300))
