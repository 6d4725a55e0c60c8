"""Candidate labels that a person names at the time of asking: where they come from, and how an answer is judged."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from warmstart.errors import DataError, UsageError
from warmstart.features import Array
from warmstart.metrics import Measure
from warmstart.rows import Field, Labels, Row
from warmstart.tasks.contract import Scores, checked_options, judged

OUTSIDE = -1  # the target of a row whose label is none of the candidates

# The fields of every zero-shot task.
FIELDS = (
    Field("text", ("sentence", "content", "review", "tweet", "question"), doc="the text", text=True),
    Field("labels", ("candidate_labels",), required=False, doc="the row's own candidates: a list, or a,b,c"),
    Field("label", ("target", "category", "class", "intent"), required=False, target=True, doc="the right one of them"),
)
OPTIONS = ("labels", "hypothesis_template", "multi_label", "out_of_scope", "long_text", "stride")


@dataclass(frozen=True)
class ZeroShot:
    """Candidate labels for a text. `labels`: the best first; `scores`: theirs, in the same order."""

    labels: tuple[str, ...]
    scores: tuple[float, ...]
    tokens: int
    truncated: bool
    flags: tuple[str, ...] = ()


def read_options(task: type[Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """A person's options, with `labels` as a tuple. Raises UsageError "option-unknown" or "option-value"."""
    known = {
        "labels": (object,),
        "hypothesis_template": (str,),
        "multi_label": (bool,),
        "out_of_scope": (str,),
        "long_text": ("truncate", "windows"),
        "stride": (int,),
    }
    labels = _split(options["labels"]) if "labels" in options else ()
    if labels is None:
        raise _option_value(
            "labels", options["labels"], 'a list of different names, or a text such as "sports,politics"'
        )
    chosen = checked_options(task, {name: value for name, value in options.items() if name != "labels"}, known)
    template = chosen.get("hypothesis_template", "{}")
    if template.count("{}") != 1:
        raise _option_value("hypothesis_template", template, "a text with {} in the place of the label")
    return {**chosen, **({"labels": labels} if labels else {})}


def candidates_of(row: Row, named: tuple[str, ...]) -> tuple[str, ...]:
    """A row's candidates: its own, else those named for all rows.

    Raises DataError "field-not-labels" for a field `labels` that is no list of names, UsageError "labels-missing".
    """
    own = row.get("labels")
    if own is None or (isinstance(own, str) and not own.strip()):
        if named:
            return named
        raise UsageError(
            "labels-missing",
            "no candidate labels are named, and the row has none",
            where=dataclasses.replace(row.where, field="labels"),
            fix='give options={"labels": ["sports", "politics"]}, --option labels=sports,politics, or a field "labels"',
        )
    labels = _split(own)
    if labels is None and isinstance(own, str) and "," not in own:
        labels = (own.strip(),)
    if labels is None:
        raise DataError(
            "field-not-labels",
            "a row's candidate labels are a list of different names",
            where=dataclasses.replace(row.where, field="labels"),
            value=own,
            fix='write them as ["sports", "politics"], or in one text, separated by commas',
        )
    return labels


def answer(labels: Sequence[str], scores: Array) -> dict[str, tuple[Any, ...]]:
    """`labels` and `scores` of a prediction: the best first, equal ones in their order."""
    order = np.argsort(-scores, kind="stable")
    return {"labels": tuple(labels[i] for i in order), "scores": tuple(scores[order].tolist())}


def target_finder(named: tuple[str, ...], out_of_scope: str) -> Callable[[Row], int]:
    """What finds the position of a row's label among its candidates, or OUTSIDE.

    It raises what `candidates_of` does, and DataError "label-unknown", "label-missing" or "label-unusable".
    """
    known: dict[tuple[str, ...], Labels] = {}

    def find(row: Row) -> int:
        value, candidates = row.get("label"), candidates_of(row, named)
        if out_of_scope and isinstance(value, str) and value.strip() == out_of_scope:
            return OUTSIDE
        if candidates not in known:
            known[candidates] = Labels(candidates)
        return known[candidates].index(value, dataclasses.replace(row.where, field="label"))

    return find


def judge(
    predictions: Sequence[ZeroShot],
    rows: Sequence[Row],
    *,
    named: tuple[str, ...],
    out_of_scope: str,
    loss: Callable[[Array, int], float],
) -> Scores:
    """Accuracy over the rows that have their label among the candidates; with others, also how well the best score
    tells the two apart (`in_scope_auroc`).

    `loss` of a row takes the scores in the order of the candidates, and the target's position there.
    """
    losses, correct, best = np.zeros(len(rows)), np.zeros(len(rows), bool), np.zeros(len(rows))
    inside, target_of = np.zeros(len(rows), bool), target_finder(named, out_of_scope)
    for i, (prediction, row) in enumerate(zip(predictions, rows, strict=True)):
        candidates, target = candidates_of(row, named), target_of(row)
        found = dict(zip(prediction.labels, prediction.scores, strict=True))
        losses[i] = loss(np.array([found[label] for label in candidates]), target)
        inside[i] = target != OUTSIDE
        correct[i] = inside[i] and prediction.labels[0] == candidates[target]
        best[i] = prediction.scores[0]
    return judged(
        {"loss": losses, "correct": correct, "in_scope": inside, "best_score": best},
        {
            "accuracy": Measure("share", ("correct", "in_scope")),
            "in_scope_auroc": Measure("auroc", ("in_scope", "best_score")),
        },
        primary="accuracy",
        labels=named,
    )


def cross_entropy(probabilities: Array, target: int) -> float:
    """-log of the target's probability; where no label is right, the mean over all: from the even distribution.

    The second is the loss of D. Hendrycks et al., "Deep anomaly detection with outlier exposure", ICLR 2019.
    """
    logs = -np.log(np.maximum(probabilities, 1e-300))
    return float(logs.mean() if target == OUTSIDE else logs[target])


def binary_cross_entropy(probabilities: Array, target: int) -> float:
    """The mean over labels that are each right or wrong on their own; only the target is right."""
    right = np.arange(len(probabilities)) == target
    return float(-np.log(np.maximum(np.where(right, probabilities, 1 - probabilities), 1e-300)).mean())


def _split(value: Any) -> tuple[str, ...] | None:
    """Labels from a list, or from a text with commas; None for anything else, for none, and for a name twice."""
    if isinstance(value, str) and "," in value:
        value = [name for name in value.split(",") if name.strip()]
    if not isinstance(value, list | tuple | np.ndarray):
        return None
    names = tuple(name.strip() for name in value if isinstance(name, str) and name.strip())
    return names if names and len(names) == len(value) == len(set(names)) else None


def _option_value(name: str, value: object, wanted: str) -> UsageError:
    return UsageError("option-value", f"{name} must be {wanted}", value=value, fix=f"set {name} to {wanted}")
