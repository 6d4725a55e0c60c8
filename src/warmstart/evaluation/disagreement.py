"""The rows that two models decide differently."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from warmstart.evaluation.pairing import Pairing
from warmstart.evaluation.result import Evaluation, cell
from warmstart.tasks import as_dict

_BESIDE = {"tokens", "truncated", "flags"}  # what every prediction has and no decision is made of
_VECTOR = 32  # from so many numbers on, a list is a vector, which says nothing to a reader


@dataclass(frozen=True, slots=True)
class Disagreement:
    """A row: its number in either file, its fields, and either prediction with its per-example numbers (`loss` …)."""

    row_a: int
    row_b: int
    fields: Mapping[str, str]
    a: Mapping[str, Any]
    b: Mapping[str, Any]
    numbers_a: Mapping[str, float | bool]
    numbers_b: Mapping[str, float | bool]

    def as_dict(self) -> dict[str, Any]:
        """`fields`, and for `a` and `b` the row's number, the prediction (without long vectors) and its numbers."""
        return {
            "fields": dict(self.fields),
            "a": {"row": self.row_a, "prediction": dict(self.a), **self.numbers_a},
            "b": {"row": self.row_b, "prediction": dict(self.b), **self.numbers_b},
        }


def disagreements(a: Evaluation, b: Evaluation, paired: Pairing) -> tuple[Disagreement, ...]:
    """The rows on which one is right and the other wrong, or which they decide differently, largest change of the loss
    first. A task without decisions (a number, an embedding): all rows whose losses differ."""
    said = [(as_dict(a.predictions[i]), as_dict(b.predictions[j])) for i, j in _places(paired)]
    # Labels that are spelled in another case are the same, if the models' are.
    spelled = str.casefold if set(a.labels) != set(b.labels) else str
    differs = [spelled(json.dumps(decision(x))) != spelled(json.dumps(decision(y))) for x, y in said]
    if "correct" in paired.a and "correct" in paired.b:
        differs = [x or bool(y) for x, y in zip(differs, paired.a["correct"] != paired.b["correct"], strict=True)]
    elif not any(differs):
        differs = (paired.a["loss"] != paired.b["loss"]).tolist()
    change = abs(paired.b["loss"] - paired.a["loss"])
    # NaN (an unknown loss) comes last, as no number would.
    rows = sorted((i for i, here in enumerate(differs) if here), key=lambda i: (change[i] != change[i], -change[i]))
    return tuple(
        Disagreement(
            row_a=paired.rows_a[i],
            row_b=paired.rows_b[i],
            fields=_cells(a.examples[paired.rows_a[i]]),
            a=_without_vectors(said[i][0]),
            b=_without_vectors(said[i][1]),
            numbers_a=_numbers(paired.a, i),
            numbers_b=_numbers(paired.b, i),
        )
        for i in rows
    )


def decision(prediction: Any) -> Any:
    """What a prediction decides: its values without scores. Of ranked labels the first."""
    if isinstance(prediction, Mapping):
        labels, scores = prediction.get("labels"), prediction.get("scores")
        if isinstance(labels, Sequence) and isinstance(scores, Sequence) and len(labels) == len(scores) > 0:
            return {"label": labels[0]}
        return {
            name: decision(value)
            for name, value in prediction.items()
            if name not in _BESIDE and not isinstance(value, float)
        }
    if isinstance(prediction, list | tuple):
        return [decision(value) for value in prediction if not isinstance(value, float)]
    return prediction


def _places(paired: Pairing) -> list[tuple[int, int]]:
    return list(zip(paired.rows_a, paired.rows_b, strict=True))


def _numbers(columns: Mapping[str, Any], i: int) -> dict[str, Any]:
    """What is one finite number or truth value a row."""
    found = {name: values[i].item() for name, values in columns.items() if values.ndim == 1}
    return {name: value for name, value in found.items() if value == value}


def _cells(row: Mapping[str, Any]) -> dict[str, str]:
    return {name: text for name, value in row.items() if (text := cell(value)) is not None}


def _without_vectors(prediction: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: value
        for name, value in prediction.items()
        if not (isinstance(value, list) and len(value) >= _VECTOR and all(isinstance(each, float) for each in value))
    }
