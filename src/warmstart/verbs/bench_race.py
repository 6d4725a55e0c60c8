"""Contestants run in turn on the same rows, and the search for a contestant's best setting.

Each has the same cores and the same number of threads, and waits while another runs. They alternate, so that what the
machine does meanwhile meets all of them, and a ratio is taken inside each repeat before the median of the ratios is.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from warmstart.verbs.bench_process import Contestant, Place, Worker, working
from warmstart.verbs.bench_worker import Fields

T = TypeVar("T")
Found = tuple[int | None, Mapping[int, Sequence[float]]]  # a best setting, and the seconds of each that was tried

# A setting whose first time is within this share of the best is timed again before the best is named.
CLOSE = 1.15


@dataclass(frozen=True)
class Entry:
    """A contestant with a setting, on a workload, for so many repeats. `runner_up`: one that came close to it."""

    contestant: Contestant
    workload: str
    setting: int | None = None
    repeats: int = 5
    runner_up: int | None = None

    @property
    def name(self) -> str:
        return self.contestant.name


@dataclass(frozen=True)
class Trial:
    """One timed run over all rows of a workload."""

    workload: str
    name: str
    setting: int | None
    repeat: int
    turn: int  # the position in its repeat, from 0
    rows: int
    seconds: float
    cpu_seconds: float
    peak_mb: float | None

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Survey:
    """A contestant's answers on a workload; the tokens it read and the token positions it computed, None if unknown."""

    answers: Sequence[Any]
    tokens: int | None
    positions: int | None


def turns(entries: Sequence[T], repeat: int) -> list[T]:
    """The order of one repeat: everybody once, and each time another one begins.

    >>> turns(["a", "b", "c"], 0), turns(["a", "b", "c"], 1)
    (['a', 'b', 'c'], ['b', 'c', 'a'])
    """
    if not entries:
        return []
    shift = repeat % len(entries)
    return [*entries[shift:], *entries[:shift]]


def race(
    entries: Sequence[Entry],
    workers: Mapping[str, Worker],
    rows: Mapping[str, int],
    *,
    progress: Callable[[str], None] | None = None,
) -> tuple[list[Trial], dict[tuple[str, str], Survey]]:
    """Run the entries in turn, workload by workload and repeat by repeat, after each ran the whole workload once.

    Runtimes prepare for every shape they meet, so only who has met them all is warm; where there is a runner-up, the
    quicker of the two then races. `rows`: the number of rows of each workload, which the workers hold already. Returns
    every trial, and what the first, untimed runs found out, by workload and name.
    """
    trials: list[Trial] = []
    surveys: dict[tuple[str, str], Survey] = {}
    for workload in dict.fromkeys(entry.workload for entry in entries):
        here = [entry for entry in entries if entry.workload == workload]
        for i, entry in enumerate(here):
            if progress is not None:
                progress(f"{workload}: warming up, {entry.name}")
            here[i], surveys[workload, entry.name] = _warm(entry, workers[entry.name])
        for repeat in range(max(entry.repeats for entry in here)):
            running = [entry for entry in here if repeat < entry.repeats]
            for turn, entry in enumerate(turns(running, repeat)):
                if progress is not None:
                    progress(f"{workload}: repeat {repeat + 1}, {entry.name}")
                measured = workers[entry.name].run(workload, entry.setting)
                trials.append(Trial(workload, entry.name, entry.setting, repeat, turn, rows[workload], **measured))
    return trials, surveys


def _warm(entry: Entry, worker: Worker) -> tuple[Entry, Survey]:
    """The entry with the setting it races with, which is a matter of the process too: of what memory it keeps."""
    settings = [entry.setting] if entry.runner_up is None else [entry.setting, entry.runner_up]
    surveys = [Survey(**worker.run(entry.workload, setting, survey=True)["survey"]) for setting in settings]
    seconds = [worker.run(entry.workload, setting)["seconds"] for setting in settings] if len(settings) > 1 else [0.0]
    best = seconds.index(min(seconds))
    return dataclasses.replace(entry, setting=settings[best], runner_up=None), surveys[best]


def runner_up(times: Mapping[int, Sequence[float]]) -> int | None:
    """The second best setting of a search, where it came within `CLOSE` of the best.

    >>> runner_up({1: [3.0], 8: [1.0, 1.0], 64: [1.1, 1.0]}), runner_up({1: [3.0], 8: [1.0]})
    (64, None)
    """
    medians = sorted((statistics.median(seconds), choice) for choice, seconds in times.items())
    return medians[1][1] if len(medians) > 1 and medians[1][0] <= CLOSE * medians[0][0] else None


def best_setting(
    time: Callable[[int], float], choices: Sequence[int], *, again: int = 2
) -> tuple[int, dict[int, list[float]]]:
    """The choice with the lowest median time, and all times. `time(choice)` runs once and gives the seconds.

    Each is timed once; those that come within `CLOSE` of the best are timed `again` times more, in turn.

    >>> best_setting({1: 3.0, 8: 1.0, 64: 2.0}.__getitem__, (1, 8, 64))
    (8, {1: [3.0], 8: [1.0, 1.0, 1.0], 64: [2.0]})
    """
    times = {choice: [time(choice)] for choice in choices}
    fastest = min(seconds[0] for seconds in times.values())
    close = [choice for choice in choices if times[choice][0] <= CLOSE * fastest]
    for _ in range(again):
        for choice in close:
            times[choice].append(time(choice))
    return min(close, key=lambda choice: statistics.median(times[choice])), times


def find_setting(contestant: Contestant, place: Place, workloads: Mapping[str, Sequence[Fields]]) -> dict[str, Found]:
    """Each workload's best setting, where there is a choice, and all times.

    Found in a process that ends with it: what the search leaves in memory is not held against the contestant later.
    """
    if len(contestant.choices) < 2:
        return {name: (next(iter(contestant.choices), None), {}) for name in workloads}
    found: dict[str, Found] = {}
    with working([contestant], place) as workers:
        worker = workers[contestant.name]
        for name, rows in workloads.items():
            worker.load(name, rows)
            for choice in contestant.choices:
                worker.run(name, choice)  # warm, as in the race
            found[name] = best_setting(partial(_seconds, worker, name), contestant.choices)
    return found


def _seconds(worker: Worker, workload: str, setting: int) -> float:
    seconds: float = worker.run(workload, setting)["seconds"]
    return seconds
