"""What is read off the trials of a benchmark: medians, ratios, agreement. Numbers in, numbers out."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from warmstart.verbs.bench_race import Trial

# Two runtimes round differently. Numbers and vectors that differ by less are the same answer.
SAME_NUMBER, SAME_COSINE = 1e-3, 0.999


@dataclass(frozen=True)
class Ratio:
    """How many times faster: the median over repeats of the ratio inside each repeat, and the least and the most."""

    value: float
    least: float
    most: float
    repeats: int

    def as_dict(self) -> dict[str, float]:
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.value:.2f} ({self.least:.2f} – {self.most:.2f})"


def of(trials: Sequence[Trial], workload: str, name: str) -> list[Trial]:
    """The trials of one contestant on one workload, in the order of the repeats."""
    found = [trial for trial in trials if (trial.workload, trial.name) == (workload, name)]
    return sorted(found, key=lambda trial: trial.repeat)


def rows_per_second(trials: Sequence[Trial]) -> float:
    """The median over trials of rows a second."""
    return statistics.median(trial.rows / trial.seconds for trial in trials)


def ratio(ours: Sequence[Trial], theirs: Sequence[Trial]) -> Ratio | None:
    """How many times faster `ours` was than `theirs`, over the repeats that both ran; None without one.

    >>> trial = lambda repeat, seconds: Trial("w", "n", None, repeat, 0, 10, seconds, seconds, None)
    >>> str(ratio([trial(0, 1.0), trial(1, 1.0)], [trial(0, 2.0), trial(1, 4.0)]))
    '3.00 (2.00 – 4.00)'
    """
    mine = {trial.repeat: trial.seconds for trial in ours}
    pairs = [trial.seconds / mine[trial.repeat] for trial in theirs if trial.repeat in mine]
    return Ratio(statistics.median(pairs), min(pairs), max(pairs), len(pairs)) if pairs else None


def agreement(answers: Sequence[Any], reference: Sequence[Any]) -> float:
    """The share of rows with the same answer: equal labels, numbers within 0.001, vectors with a cosine of 0.999.

    >>> agreement(["a", "b"], ["a", "c"])
    0.5
    """
    same = [_same(one, other) for one, other in zip(answers, reference, strict=True)]
    return sum(same) / len(same)


def disagreements(answers: Sequence[Any], reference: Sequence[Any]) -> list[int]:
    """The positions of the rows whose answers differ."""
    pairs = enumerate(zip(answers, reference, strict=True))
    return [position for position, (one, other) in pairs if not _same(one, other)]


def padding(positions: int | None, tokens: int | None) -> float | None:
    """The share of computed token positions that held no token; None if the positions are not known.

    Computing fewer positions than there are tokens, as for one row of the last layer only, is no padding either.
    """
    return None if not positions or tokens is None else max(0.0, 1 - tokens / positions)


def removed(positions: int | None, textbook: int | None) -> float | None:
    """The share of the textbook loop's token positions that are not computed."""
    return None if not positions or not textbook else 1 - positions / textbook


def undisturbed(trials: Sequence[Trial]) -> float:
    """The share of the wall time in which the trials, of one thread each, had their core: 1 on a quiet machine."""
    wall = sum(trial.seconds for trial in trials)
    return min(1.0, sum(trial.cpu_seconds for trial in trials) / wall) if wall else 1.0


def aligned(header: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    """A table as lines of text: the first column to the left, the others to the right.

    >>> aligned(["who", "texts/s"], [["us", "10"]])
    ['who  texts/s', 'us        10']
    """
    table = [list(header), *map(list, lines)]
    widths = [max(len(line[column]) for line in table) for column in range(len(header))]
    return [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in table
    ]


def markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    """A table as lines of Markdown.

    >>> markdown(["who", "texts/s"], [["us", "10"]])
    ['| who | texts/s |', '|---|---|', '| us | 10 |']
    """
    cells = [[cell.replace("|", "\\|") for cell in line] for line in (header, *lines)]
    written = [f"| {' | '.join(line)} |" for line in cells]
    return [written[0], "|" + "---|" * len(header), *written[1:]]


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Mapping) or isinstance(other, Mapping) or isinstance(one, str) or isinstance(other, str):
        return bool(one == other)
    if isinstance(one, Sequence) and isinstance(other, Sequence):
        if not one or not other or isinstance(one[0], str) or isinstance(other[0], str):
            return list(one) == list(other)
        return len(one) == len(other) and _cosine(np.asarray(one), np.asarray(other)) >= SAME_COSINE
    return math.isclose(one, other, rel_tol=SAME_NUMBER, abs_tol=SAME_NUMBER)


def _cosine(one: Any, other: Any) -> float:
    lengths = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float(one @ other) / lengths if lengths else float(not (one.any() or other.any()))
