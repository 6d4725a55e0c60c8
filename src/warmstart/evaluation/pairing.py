"""Two evaluations, row by row: the same rows in one order, whatever order either had; other rows are refused."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from warmstart.errors import DataError, UsageError, shorten
from warmstart.evaluation.result import Evaluation, cell
from warmstart.features import Array
from warmstart.provenance import canonical_json
from warmstart.rows import Labels
from warmstart.tasks import find_task

SHOWN = 3  # rows that an error names on each side


@dataclasses.dataclass(frozen=True)
class Pairing:
    """Row i of the pairing is row `rows_a[i]` of one evaluation and `rows_b[i]` of the other.

    `a` and `b` are their per-example arrays in this order, labels numbered as in `a`. The order is that of the rows'
    contents, so it depends on the order of neither file.
    """

    rows_a: tuple[int, ...]
    rows_b: tuple[int, ...]
    a: Mapping[str, Array]
    b: Mapping[str, Array]


def pair(a: Evaluation, b: Evaluation, names: tuple[str, str]) -> Pairing:
    """Pair equal rows: those whose fields, as the task reads them, are the same. `names` are shown in errors.

    Raises UsageError "comparison-tasks" or "comparison-labels", DataError "comparison-rows".
    """
    if a.task != b.task:
        raise UsageError(
            "comparison-tasks",
            f"one result is of {a.task}, the other of {b.task}",
            where=f"{names[0]} and {names[1]}",
            fix="compare results of one task",
        )
    places = _places(a, b, names)
    keys_a, keys_b = _keys(a), _keys(b)
    if Counter(keys_a) != Counter(keys_b):
        raise _other_rows(a, b, keys_a, keys_b, names)
    rows_a, rows_b = _order(a, keys_a), _order(b, keys_b)
    first = {name: values[list(rows_a)] for name, values in a.per_example.items()}
    second = {
        name: _in_labels(values, places) if name in b.by_label else values
        for name, values in ((name, values[list(rows_b)]) for name, values in b.per_example.items())
    }
    for unit in {measure.unit for measure in a.measures.values() if measure.unit is not None}:
        # The groups are the same, since the rows are; their numbers follow the order of either file.
        first[unit] = second[unit] = _numbered(first[unit])
    return Pairing(rows_a, rows_b, first, second)


def _numbered(groups: Array) -> Array:
    """Groups (N,) numbered in the order in which they occur."""
    _, begins, group = np.unique(groups, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(begins))[group]


def _keys(evaluation: Evaluation, *, inputs_only: bool = False) -> list[str]:
    """What tells a row from others: the fields that the task reads."""
    names = [field.name for field in find_task(evaluation.task).fields if not (inputs_only and field.target)]
    return [
        canonical_json({name: text for name in names if (text := cell(example.get(name))) is not None})
        for example in evaluation.examples
    ]


def _order(evaluation: Evaluation, keys: Sequence[str]) -> tuple[int, ...]:
    losses = evaluation.per_example["loss"].tolist()
    return tuple(sorted(range(len(keys)), key=lambda i: (keys[i], repr(losses[i]))))


def _places(a: Evaluation, b: Evaluation, names: tuple[str, str]) -> list[int]:
    """For each label of `b` its place among those of `a`, in whatever case either writes it."""
    known, places, unknown = Labels(a.labels), [], []
    for label in b.labels:
        try:
            places.append(known.index(label))
        except DataError:
            unknown.append(label)
    if unknown or len(set(places)) < len(a.labels):
        missing = [label for i, label in enumerate(a.labels) if i not in places]
        raise UsageError(
            "comparison-labels",
            "the two models have different labels, so their metrics measure different things",
            where=f"{names[0]} and {names[1]}",
            value=f"only in A: {missing}, only in B: {unknown}",
            fix="compare models with the same labels",
        )
    return places


def _in_labels(values: Array, places: Sequence[int]) -> Array:
    """An array over the labels of one model, by its `by_label`, in the order of the other's."""
    if list(places) == list(range(len(places))):
        return values
    return np.array(places)[values] if values.ndim == 1 else values[:, np.argsort(places)]


def _other_rows(
    a: Evaluation, b: Evaluation, keys_a: Sequence[str], keys_b: Sequence[str], names: tuple[str, str]
) -> DataError:
    only_a, only_b = _beyond(keys_a, keys_b), _beyond(keys_b, keys_a)
    inputs_a, inputs_b = _keys(a, inputs_only=True), _keys(b, inputs_only=True)
    common = Counter(inputs_a[i] for i in only_a) & Counter(inputs_b[i] for i in only_b)
    lines = [f"the two were judged on different rows: {len(only_a):,} only in A, {len(only_b):,} only in B"]
    if common:
        lines[0] += f"; {common.total():,} of them differ in nothing but what is true of them"
    for side, evaluation, only in (("A", a, only_a), ("B", b, only_b)):
        for i in only[:SHOWN]:
            lines.append(f"  only in {side}, row {i}: {shorten(dict(evaluation.examples[i]), 90)}")
        if len(only) > SHOWN:
            lines.append(f"  only in {side}, {len(only) - SHOWN:,} more: rows {shorten(only[SHOWN:], 70)}")
    return DataError(
        "comparison-rows",
        "\n".join(lines),
        where=f"{names[0]} and {names[1]}",
        fix="evaluate both on one file: warmstart evaluate -m … -d FILE -o FOLDER",
    )


def _beyond(keys: Sequence[str], others: Sequence[str]) -> list[int]:
    """The rows that `others` has not, or not as often."""
    left, beyond = Counter(others), []
    for i, key in enumerate(keys):
        if left[key] > 0:
            left[key] -= 1
        else:
            beyond.append(i)
    return beyond
