"""The rows of an export: those that calibrate int8, and those it is judged on."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from warmstart.checkpoints import STARTERS
from warmstart.errors import DataError, UsageError
from warmstart.pipeline import Pipeline
from warmstart.randomness import generator
from warmstart.rows import Row, read
from warmstart.tasks.contract import Generates
from warmstart.verbs.demo import movie_reviews
from warmstart.verbs.parity import Tolerance

log = logging.getLogger("warmstart")

_GATE_ROWS, _CALIBRATION_ROWS = 1024, 300  # at most; of more rows, some are drawn
_FEWER_ROWS = 256  # of the default ones, for decoders, which are larger than encoders


@dataclass(frozen=True)
class ExportRows:
    """What the gate judges on, and what int8 is calibrated with; the same rows only where there are too few."""

    gate: list[Row]
    calibration: list[Row]
    shared: bool

    @classmethod
    def choose(
        cls, pipe: Pipeline, data: Any, columns: Mapping[str, str] | None, precision: str, allowed: Tolerance
    ) -> ExportRows:
        calibrates = precision == "int8"
        if data is None:
            _check_default(pipe, precision)
            known = _reviews(pipe, "train") if calibrates else []
            most = _FEWER_ROWS if isinstance(pipe.task, Generates) else _GATE_ROWS
            return cls(_drawn(_reviews(pipe, "validation"))[:most], _drawn(known)[:_CALIBRATION_ROWS], False)
        rows = _drawn(list(read(data, fields=pipe.task.fields, columns=columns)))
        if not rows:
            raise DataError("no-rows", "there are no rows to export with", fix="check the file, and the columns it has")
        if not calibrates:
            return cls(rows[:_GATE_ROWS], [], False)
        size = min(_CALIBRATION_ROWS, len(rows) // 4)
        if len(rows) - size >= allowed.rows and size > 0:
            return cls(rows[size:][:_GATE_ROWS], rows[:size], False)
        log.warning("%d rows are too few to keep some for judging: the same ones calibrate and judge", len(rows))
        return cls(rows[:_GATE_ROWS], rows[:_CALIBRATION_ROWS], True)


def _drawn(rows: list[Row]) -> list[Row]:
    """The rows in an order that has nothing to do with the file's."""
    return [rows[i] for i in generator(0, "export").permutation(len(rows)).tolist()]


def _reviews(pipe: Pipeline, part: Any) -> list[Row]:
    return [_as_read(pipe, row) for row in movie_reviews(part)]


def _as_read(pipe: Pipeline, row: Row) -> Row:
    """A row with a text, under the name that the task has for its first one."""
    name = next((field.name for field in pipe.task.fields if field.text), "text")
    return Row({name: row["text"]}, row.where)


def reviews_fit(pipe: Pipeline, precision: str) -> bool:
    """Movie reviews say nothing about a task that reads more than a text, nor about texts they are unlike."""
    if precision == "int8" and pipe.name not in STARTERS:
        return False
    try:
        list(pipe.task.encode([_as_read(pipe, Row({"text": "a warm and funny film"}))]))
    except DataError:  # it needs more than a text, or a text of its own kind
        return False
    return True


def _check_default(pipe: Pipeline, precision: str) -> None:
    if reviews_fit(pipe, precision):
        return
    why = "int8 is calibrated" if precision == "int8" else f"an export for {pipe.task.name} is judged"
    raise UsageError(
        "export-rows-needed",
        f"{why} on rows like those it will see, and none are given",
        value=[field.name for field in pipe.task.fields if not field.target],
        fix="give a file of rows: -d ROWS on the command line, data= in Python",
    )
