"""What predictions.parquet says about the mistakes of a run, read in one pass with bounded memory."""

from __future__ import annotations

import heapq
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from warmstart.errors import DataError
from warmstart.report.records import finite
from warmstart.rows import Labels

HARDEST = 20  # rows shown
DOTS = 1500  # points of a scatter plot
_COMMON = {"tokens", "truncated", "flags"}  # what every task's prediction has
_OURS = {"row", "prediction", "loss", "correct", "error", "label"}  # columns that are no input field
_ABOUT = b"warmstart"  # where the file says what its columns are


@dataclass(frozen=True, slots=True)
class HardRow:
    """A row with a large loss: its input fields, what is true, what was predicted."""

    row: int
    fields: Mapping[str, str]
    true: str
    predicted: str
    score: float | None
    loss: float


@dataclass(frozen=True, slots=True)
class Judged:
    """The predictions of a run, counted. Which of `pairs`, `sets` and `numbers` is filled tells the kind of task."""

    rows: int
    labels: tuple[str, ...]  # in the model's order
    pairs: Counter[tuple[str, str]]  # (true, predicted) -> rows; one label a row
    sets: Mapping[str, tuple[int, int, int]]  # label -> rows with it, rows given it, rows right; several labels a row
    numbers: tuple[tuple[float, float], ...]  # (true, predicted); regression, at most DOTS of them
    hardest: tuple[HardRow, ...]  # by loss, largest first
    note: str = ""


def judge(path: Path) -> Judged | None:
    """Count predictions.parquet; None where there is none. A damaged file gives a `note` and whatever was readable."""
    if not path.is_file():
        return None
    tally = _Tally()
    tally.inputs = _inputs(path)
    note = ""
    try:
        for record in _records(path):
            tally.add(record)
    # Arrow reports damage by its own tree, and by OSError, ValueError or MemoryError where it notices late.
    except (pa.ArrowException, OSError, ValueError, MemoryError):
        note = f"{path.name} is damaged; what follows is from its first {tally.rows} rows."
    if tally.unread:
        note = f"{note} {tally.unread} rows without a readable prediction were left out.".strip()
    return tally.judged(note)


def _inputs(path: Path) -> set[str] | None:
    """The columns that are input fields; None where the file does not say it."""
    try:
        return set(json.loads((pq.read_schema(path).metadata or {})[_ABOUT])["fields"]) - {"label"}
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError, MemoryError):
        return None


def _records(path: Path) -> Iterator[dict[str, Any]]:
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=2048):
            yield from batch.to_pylist()


class _Tally:
    """The running counts of one pass."""

    def __init__(self) -> None:
        self.rows = 0
        self.unread = 0
        self.inputs: set[str] | None = None
        self.labels: tuple[str, ...] = ()
        self._known: Labels | None = None
        self.pairs: Counter[tuple[str, str]] = Counter()
        self.sets: dict[str, list[int]] = {}
        self.numbers: list[tuple[float, float]] = []
        self._stride = 1
        self.heap: list[tuple[float, int, HardRow]] = []

    def add(self, record: Mapping[str, Any]) -> None:
        self.rows += 1
        prediction = _json(record.get("prediction"))
        if not isinstance(prediction, dict):
            self.unread += 1
            return
        scores = prediction.get("scores")
        if not self.labels and isinstance(scores, dict):
            self.labels = tuple(map(str, scores))
        predicted, number = prediction.get("label"), finite(_json(record.get("label")))
        true: object = record.get("label")
        if isinstance(predicted, list):
            true = [self._name(label) for label in _as_list(_json(true))]
            self._add_set(true, [str(label) for label in predicted])
        elif len(self.labels) > 1 and predicted is not None and true is not None:
            true = self._name(true)
            self.pairs[true, str(predicted)] += 1
        elif number is not None and (value := finite(prediction.get("score"))) is not None:
            self._add_number(number, value)
            self._keep_if_hard(record, f"{number:.4g}", f"{value:.4g}", None)
            return
        shown = _said(predicted) if predicted is not None else _own_fields(prediction)
        self._keep_if_hard(record, _said(true), shown, finite(prediction.get("score")))

    def judged(self, note: str) -> Judged:
        hardest = tuple(row for _, _, row in sorted(self.heap, key=lambda entry: (-entry[0], entry[1])))
        sets = {label: (counts[0], counts[1], counts[2]) for label, counts in self.sets.items()}
        return Judged(self.rows, self.labels, self.pairs, sets, tuple(self.numbers), hardest, note)

    def _name(self, label: object) -> str:
        """A label of the data by the model's name for it, as evaluation reads it; one that is none stays as it is."""
        try:
            known = self._known = self._known or Labels(self.labels)
            return known.names[known.index(label)]
        except DataError:
            return str(label).strip()

    def _add_set(self, true: Sequence[str], predicted: Sequence[str]) -> None:
        for label in {*self.labels, *true, *predicted}:
            counts = self.sets.setdefault(label, [0, 0, 0])
            counts[0] += label in true
            counts[1] += label in predicted
            counts[2] += label in true and label in predicted

    def _add_number(self, true: float, predicted: float) -> None:
        # Every k-th row, k doubling: an even sample of a stream of unknown length.
        if self.rows % self._stride == 0:
            self.numbers.append((true, predicted))
        if len(self.numbers) > DOTS:
            self.numbers = self.numbers[::2]
            self._stride *= 2

    def _keep_if_hard(self, record: Mapping[str, Any], true: str, predicted: str, score: float | None) -> None:
        loss = finite(record.get("loss"))
        if loss is None or (len(self.heap) == HARDEST and loss <= self.heap[0][0]):
            return
        index = record.get("row")
        row = index if isinstance(index, int) else self.rows - 1
        shown = self.inputs if self.inputs is not None else record.keys() - _OURS
        fields = {name: str(value) for name, value in record.items() if name in shown and value is not None}
        entry = (loss, -self.rows, HardRow(row, fields, true, predicted, score, loss))
        (heapq.heappushpop if len(self.heap) == HARDEST else heapq.heappush)(self.heap, entry)


def _json(value: object) -> object:
    """A cell's value: `evaluate` writes text as it is and everything else as JSON."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def _as_list(value: object) -> list[object]:
    return list(value) if isinstance(value, list | tuple) else [] if value is None else [value]


def _own_fields(prediction: Mapping[str, Any]) -> str:
    """A prediction without a label, as its task's own fields."""
    own = {name: value for name, value in prediction.items() if name not in _COMMON}
    return json.dumps(own, ensure_ascii=False)[:400] if own else ""


def _said(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else "" if value is None else str(value)
