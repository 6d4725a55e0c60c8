"""Reading a run directory. A part that is missing or damaged becomes a sentence, never a crash."""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from warmstart.errors import UsageError

PARTS = ("config.toml", "provenance.json", "metrics.jsonl", "predictions.parquet")


@dataclass(frozen=True, slots=True)
class Records:
    """What a run directory holds. `notes` are sentences, for the page, about what it does not."""

    name: str
    config: Mapping[str, Any]
    provenance: Mapping[str, Any]
    steps: tuple[Mapping[str, Any], ...]  # one mapping an optimizer step, in the file's order
    evaluations: tuple[Mapping[str, Any], ...]  # {"step", "epoch", "validation": {...}}
    notes: tuple[str, ...]


def read_records(run: Path) -> Records:
    """The records of a run directory, predictions aside (they may be large: `predictions.judge` streams them).

    Raises UsageError `run-not-found` if there is no such folder, `run-empty` if it holds no part of a run.
    """
    if not run.is_dir():
        raise UsageError(
            "run-not-found", "there is no run directory here", where=str(run), fix="give the folder that train -o wrote"
        )
    if not any((run / part).exists() for part in PARTS):
        raise UsageError(
            "run-empty",
            f"the folder holds no part of a run ({', '.join(PARTS)})",
            where=str(run),
            fix="give the folder that train -o wrote, not one above or below it",
        )
    notes: list[str] = []
    config = _mapping(run / "config.toml", tomllib.loads, notes)
    provenance = _mapping(run / "provenance.json", json.loads, notes)
    lines = _lines(run / "metrics.jsonl", notes)
    return Records(
        name=run.resolve().name,
        config=config,
        provenance=provenance,
        steps=tuple(line for line in lines if "loss" in line),
        evaluations=tuple(line for line in lines if isinstance(line.get("validation"), dict)),
        notes=tuple(notes),
    )


def finite(value: object) -> float | None:
    """The value if it is a finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _mapping(path: Path, parse: Any, notes: list[str]) -> Mapping[str, Any]:
    text = _text(path, notes)
    if text is None:
        return {}
    try:
        value = parse(text)
    except (ValueError, RecursionError):  # both formats' errors are ValueErrors
        value = None
    if not isinstance(value, dict):
        notes.append(f"{path.name} is damaged and was left out.")
        return {}
    return value


def _lines(path: Path, notes: list[str]) -> list[dict[str, Any]]:
    text = _text(path, notes)
    good: list[dict[str, Any]] = []
    bad = 0
    for line in (text or "").split("\n"):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            value = None
        if isinstance(value, dict):
            good.append(value)
        else:
            bad += 1
    if bad:  # the last line is torn when a run is killed while it writes
        notes.append(f"{path.name}: {bad} damaged line{'s were' if bad > 1 else ' was'} left out.")
    return good


def _text(path: Path, notes: list[str]) -> str | None:
    if not path.is_file():
        notes.append(f"{path.name} is not there (yet).")
        return None
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        notes.append(f"{path.name} could not be read: {error.strerror}.")
        return None
