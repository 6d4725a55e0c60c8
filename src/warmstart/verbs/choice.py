"""What was chosen to run a checkpoint, and why: measured once, kept as JSON in the cache."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from warmstart.checkpoints import cache_folder
from warmstart.checkpoints.exported import FORMAT
from warmstart.durable import write_file
from warmstart.provenance import environment, folder_digest, json_digest

log = logging.getLogger("warmstart")

_REPEATS = 3
_WORTHWHILE = 1.05  # times the reference's speed, or the reference stays
_PACKAGES = ("warmstart", "torch", "transformers", "openvino", "onnxruntime")


@dataclass(frozen=True)
class Candidate:
    """A way to run a checkpoint. `format`: "torch", or a format of `ws.export`."""

    format: str
    precision: str

    @property
    def name(self) -> str:
        return f"{self.format} {self.precision}"


REFERENCE = Candidate("torch", "fp32")


@dataclass(frozen=True)
class Trial:
    """What was seen of a candidate. `speed`: times the reference's, the median of repeats; None if it was refused."""

    name: str
    rows_per_second: float | None
    speed: float | None
    agreement: float | None  # share of rows decided as the reference does
    refused: str | None  # why it cannot be chosen


@dataclass(frozen=True)
class Choice:
    """The candidate that was chosen, and the record of why.

    It holds for the `machine` and the `versions` it was measured on; where they change, it is measured again.
    """

    chosen: str
    why: str
    export: str | None  # folder of the chosen graph, in the cache; None where torch runs
    trials: tuple[Trial, ...]
    checkpoint: str  # digest of the folder
    task: str
    options: Mapping[str, Any]
    device: str
    machine: Mapping[str, Any]
    versions: Mapping[str, Any]
    rows: Mapping[str, Any]  # count and digests of the rows that were looked at
    own_rows: bool  # whether they were given; if not, they are movie reviews

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for the cache and `--json`."""
        return dataclasses.asdict(self)


def decide(trials: Sequence[Trial]) -> tuple[str, str]:
    """The name of the fastest, unless the reference is as good; and why.

    >>> decide([Trial("torch fp32", 100.0, 1.0, 1.0, None), Trial("torch bf16", 50.0, 0.5, 1.0, None)])
    ('torch fp32', 'nothing that answers the same was 1.05 times as fast')
    """
    best = max(trials, key=lambda trial: trial.speed or 0.0)
    if best.speed is None or best.name == REFERENCE.name or best.speed < _WORTHWHILE:
        return REFERENCE.name, f"nothing that answers the same was {_WORTHWHILE} times as fast"
    return best.name, f"{best.speed:.2f} times as fast as {REFERENCE.name}, with {best.agreement:.1%} of rows the same"


def race(runs: Mapping[str, Callable[[], object]]) -> dict[str, tuple[float, float]]:
    """Median seconds of each run, and the median over repeats of the reference's time divided by its own.

    Alternating, so that what else the machine does falls on all alike; a first round warms up.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(_REPEATS + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if repeat:
                seconds[name].append(time.perf_counter() - start)
    reference = seconds[REFERENCE.name]
    return {
        name: (median(own), median(theirs / ours for theirs, ours in zip(reference, own, strict=True)))
        for name, own in seconds.items()
    }


def choices_for(folder: Path) -> list[Choice]:
    """What has been chosen for the checkpoint in `folder`, for any task, options, device and versions."""
    places = sorted((cache_folder() / "choices").glob(f"{folder_digest(folder)[:16]}-*.json"))
    return [choice for choice in map(read_choice, places) if choice is not None]


def place_of(digest: str, *, task: str | None, options: Mapping[str, Any], device: str) -> Path:
    """Where the choice for a call is kept."""
    key = json_digest([task, dict(options), device, machine(), versions(), FORMAT])
    return cache_folder() / "choices" / f"{digest[:16]}-{key[:16]}.json"


def read_choice(path: Path) -> Choice | None:
    """A remembered choice; None where there is none, or none that this version can read."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return Choice(**{**values, "trials": tuple(Trial(**trial) for trial in values["trials"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None


def write_choice(path: Path, choice: Choice) -> None:
    """Remember a choice. A cache that takes none is warned about: the choice holds, and is measured again next time."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, (json.dumps(choice.as_dict(), indent=2) + "\n").encode())
    except OSError as error:
        log.warning("the choice is not remembered: %s cannot be written (%s)", path.parent, error.strerror or error)


def machine() -> dict[str, Any]:
    """What of this machine decides speed: processor, cores this process may use, threads it was told to use."""
    return {**environment([])["cpu"], "threads": os.environ.get("OMP_NUM_THREADS")}


def versions() -> dict[str, Any]:
    """The packages that compute, and their versions; None for one that is not installed."""
    packages: dict[str, Any] = environment([])["packages"]
    return {name: packages.get(name) for name in _PACKAGES}
