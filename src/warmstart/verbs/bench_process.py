"""A contestant of a benchmark in a process of its own, seen from the process that drives it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from warmstart import errors
from warmstart.errors import WarmstartError
from warmstart.verbs.bench_worker import Fields


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

    def run(self, workload: str, setting: int | None, *, survey: bool = False) -> Any:
        """Run the workload: seconds, cpu_seconds, peak_mb; if asked for, its `survey` too."""
        return self._exchange({"ask": "run", "workload": workload, "setting": setting, "survey": survey})

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
