"""What a benchmark found: a standing for each contestant, and every trial behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from warmstart.provenance import environment
from warmstart.verbs.bench_figures import Ratio, agreement, aligned, of, padding, ratio, removed, rows_per_second
from warmstart.verbs.bench_race import Entry, Survey, Trial

OURS, TEXTBOOK = "warmstart", "textbook loop"


@dataclass(frozen=True)
class Standing:
    """One contestant's figures. `ratio`: how many times faster warmstart was; None for warmstart itself.

    `padding`: share of the computed token positions that held no token. `removed`: share of the textbook loop's
    positions that it does not compute. `agreement`: share of rows with warmstart's answer. None: not known.
    """

    name: str
    batch_size: int | None
    rows_per_second: float
    ratio: Ratio | None
    padding: float | None
    removed: float | None
    agreement: float | None
    peak_mb: float | None

    def as_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "batch_size": self.batch_size,
            "rows_per_second": self.rows_per_second,
            "ratio": None if self.ratio is None else self.ratio.as_dict(),
            "padding": self.padding,
            "removed": self.removed,
            "agreement": self.agreement,
            "peak_mb": self.peak_mb,
        }


@dataclass(frozen=True)
class Bench:
    """What `bench` measured: a standing for each contestant, ours first, and every trial behind it.

    `searched`: seconds of each batch size tried, by peer. `failed`: peers that could not run, and why.
    """

    model: str
    task: str
    rows: int
    tokens: int
    threads: int
    device: str
    standings: tuple[Standing, ...]
    trials: tuple[Trial, ...] = field(repr=False)
    searched: Mapping[str, Mapping[int, Sequence[float]]] = field(repr=False, default_factory=dict)
    failed: Mapping[str, str] = field(default_factory=dict)
    precision: str = "torch fp32"  # what we ran in
    undisturbed: float | None = None  # the share of the time in which they had their core, where it can be known

    def as_dict(self) -> dict[str, Any]:
        """The JSON shape of `warmstart bench --json`: the ratios, and the raw repeats behind them."""
        return {
            "model": self.model,
            "task": self.task,
            "rows": self.rows,
            "tokens": self.tokens,
            "threads": self.threads,
            "device": self.device,
            "precision": self.precision,
            "undisturbed": self.undisturbed,
            "ratios": {each.name: each.ratio.value for each in self.standings if each.ratio is not None},
            "standings": [standing.as_dict() for standing in self.standings],
            "failed": dict(self.failed),
            "searched": {name: {str(k): list(v) for k, v in times.items()} for name, times in self.searched.items()},
            "trials": [trial.as_dict() for trial in self.trials],
            "environment": {key: value for key, value in environment([]).items() if key != "command"},
        }

    def table(self) -> list[str]:
        """The standings as lines of text."""
        header = ("", "batch", "rows/s", "warmstart is", "padding", "removed", "same answers", "peak MB")
        return aligned(header, [_cells(standing) for standing in self.standings])


def standing(
    workload: str, entry: Entry, trials: Sequence[Trial], surveys: Mapping[tuple[str, str], Survey]
) -> Standing:
    """A contestant's figures on a workload, from what `race` returns."""
    own, mine = of(trials, workload, OURS), of(trials, workload, entry.name)
    survey, reference, textbook = (surveys.get((workload, name)) for name in (entry.name, OURS, TEXTBOOK))
    assert survey is not None and reference is not None
    ours = entry.name == OURS
    return Standing(
        name=entry.name,
        batch_size=entry.setting,
        rows_per_second=rows_per_second(mine),
        ratio=None if ours else ratio(own, mine),
        padding=padding(survey.positions, reference.tokens),
        removed=removed(survey.positions, None if textbook is None else textbook.positions),
        agreement=None if ours else agreement(survey.answers, reference.answers),
        peak_mb=max((trial.peak_mb for trial in mine if trial.peak_mb is not None), default=None),
    )


def _cells(standing: Standing) -> list[str]:
    return [
        standing.name,
        "" if standing.batch_size is None else str(standing.batch_size),
        f"{standing.rows_per_second:.1f}",
        "" if standing.ratio is None else f"{standing.ratio.value:.2f}x",
        _percent(standing.padding),
        _percent(standing.removed),
        _percent(standing.agreement),
        "" if standing.peak_mb is None else f"{standing.peak_mb:.0f}",
    ]


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"
