"""The parent side of a benchmark: contestants in processes of their own, run in turn on the same rows.

Each has the same cores and the same number of threads, and waits while another runs. They alternate, so that what the
machine does meanwhile meets all of them, and a ratio is taken inside each repeat before the median of the ratios is.
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from warmstart import errors
from warmstart.errors import WarmstartError
from warmstart.verbs.bench_worker import Fields

T = TypeVar("T")
Found = tuple[int | None, Mapping[int, Sequence[float]]]  # a best setting, and the seconds of each that was tried

# A setting whose first time is within this share of the best is timed again before the best is named.
CLOSE = 1.15
WARM_UP_ROWS = 32


@dataclass(frozen=True)
class Contestant:
    """Who runs: a module with `start(settings)`, its settings, and the batch sizes among which its best is to be found.

    `path`: a folder to import `module` from; None for a module of this package.
    """

    name: str
    module: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    choices: tuple[int, ...] = ()
    path: str | None = None


@dataclass(frozen=True)
class Place:
    """Where all of them run: the same cores, the same number of threads. No cores: wherever the system likes."""

    threads: int = 1
    cores: tuple[int, ...] = ()


@dataclass(frozen=True)
class Entry:
    """A contestant with a setting, on a workload, for so many repeats."""

    contestant: Contestant
    workload: str
    setting: int | None = None
    repeats: int = 5

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


class Worker:
    """A contestant in a process of its own. `facts` are what it says about itself."""

    def __init__(self, contestant: Contestant, place: Place) -> None:
        self.contestant = contestant
        self._noise = tempfile.TemporaryFile()  # noqa: SIM115 – lives as long as the process
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "warmstart.verbs.bench_worker", contestant.module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._noise,
            text=True,
            encoding="utf-8",
            env=_environment(place, contestant.path),
        )
        settings = {**contestant.settings, "threads": place.threads, "cores": list(place.cores)}
        self.facts: Mapping[str, Any] = self._exchange(settings)["facts"]

    def load(self, workload: str, rows: Sequence[Fields]) -> None:
        """Hand over a workload's rows, once."""
        self._exchange({"ask": "rows", "workload": workload, "rows": list(rows)})

    def run(self, workload: str, setting: int | None, *, first: int | None = None) -> Any:
        """Run the workload (or its `first` rows): seconds, cpu_seconds, peak_mb."""
        return self._exchange({"ask": "run", "workload": workload, "setting": setting, "first": first})

    def survey(self, workload: str, setting: int | None) -> Any:
        """One untimed run that warms up: answers; tokens and token positions computed, None where it cannot tell."""
        return self._exchange({"ask": "survey", "workload": workload, "setting": setting})

    def gemm_peak(self) -> float | None:
        """GFLOP/s of this process's best matrix product of the model's largest layer, if the contestant can tell."""
        found: float | None = self._exchange({"ask": "peak"})["gflops"]
        return found

    def close(self) -> None:
        """End the process and wait for it."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()
        self._noise.close()

    def _exchange(self, message: Mapping[str, Any]) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        reply = json.loads(line) if line else {"error": {"kind": "", "what": self._last_words()}}
        if "error" in reply:
            error = _rebuilt(self.contestant.name, reply["error"])
            self.close()
            raise error
        return reply

    def _last_words(self) -> str:
        self._process.wait()
        self._noise.seek(0)
        lines = self._noise.read().decode("utf-8", "replace").strip().splitlines()
        ended = f"its process ended with code {self._process.returncode}"
        return f"{ended}: {lines[-1][:400]}" if lines else ended


@contextmanager
def working(contestants: Sequence[Contestant], place: Place) -> Iterator[dict[str, Worker]]:
    """A worker for each contestant, by name; they end with the block.

    Raises the contestant's own error, or WarmstartError "contestant-failed".
    """
    with ExitStack() as stack:
        workers = {}
        for contestant in contestants:
            workers[contestant.name] = Worker(contestant, place)
            stack.callback(workers[contestant.name].close)
        yield workers


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
) -> Iterator[Trial]:
    """Run the entries in turn, workload by workload and repeat by repeat. `rows`: the number of rows of a workload."""
    for workload in dict.fromkeys(entry.workload for entry in entries):
        here = [entry for entry in entries if entry.workload == workload]
        for repeat in range(max(entry.repeats for entry in here)):
            running = [entry for entry in here if repeat < entry.repeats]
            for turn, entry in enumerate(turns(running, repeat)):
                if progress is not None:
                    progress(f"{workload}: repeat {repeat + 1}, {entry.name}")
                measured = workers[entry.name].run(workload, entry.setting)
                yield Trial(workload, entry.name, entry.setting, repeat, turn, rows[workload], **measured)


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
            worker.run(name, contestant.choices[0], first=WARM_UP_ROWS)
            found[name] = best_setting(partial(_seconds, worker, name), contestant.choices)
    return found


def _seconds(worker: Worker, workload: str, setting: int) -> float:
    seconds: float = worker.run(workload, setting)["seconds"]
    return seconds


def spare_cores(count: int) -> tuple[int, ...]:
    """The last `count` cores this process may use; none where the system does not say."""
    usable = sorted(os.sched_getaffinity(0)) if sys.platform == "linux" else []
    return tuple(usable[-count:]) if len(usable) >= count else ()


def usable_cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _environment(place: Place, path: str | None) -> dict[str, str]:
    threads = str(place.threads)
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")
    # What is measured lies on this machine already: no library may look for a newer one meanwhile.
    own = dict.fromkeys(names, threads) | {
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": str(place.threads > 1).lower(),
    }
    found = {**os.environ, **own}
    if path is not None:
        found["PYTHONPATH"] = os.pathsep.join(part for part in (path, os.environ.get("PYTHONPATH", "")) if part)
    return found


def _rebuilt(name: str, error: Mapping[str, Any]) -> WarmstartError:
    """The child's error as the parent's own."""
    kinds = {kind.__name__: kind for kind in (errors.UsageError, errors.DataError, errors.CheckpointError)}
    if "code" in error:
        kind = kinds.get(error["kind"], WarmstartError)
        return kind(error["code"], error["what"], fix=error["next"], where=error["where"] or None, value=error["value"])
    return WarmstartError(
        "contestant-failed",
        f"{name} could not run: {': '.join(part for part in (error['kind'], error['what']) if part)}",
        where=name,
        fix="try the checkpoint with warmstart predict; fewer rows (--rows) need less memory",
    )
