"""The driving side of `attempt_server`: attempts at a run, each in a process of its own that may be killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from warmstart.errors import UsageError, WarmstartError


@dataclass(frozen=True)
class KillIn:
    """A kill so many seconds into the `count`-th phase of a name, counted from 1 in each attempt."""

    phase: str
    count: int = 1
    after: float = 0.0


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended. `code`: its exit code, negative for a signal; `within`: phases begun and not ended."""

    code: int
    seconds: float
    within: tuple[str, ...]
    log: str

    @property
    def killed(self) -> bool:
        return self.code == -signal.SIGKILL


class Attempter:
    """Makes attempts, one after the other. `opened` gives one."""

    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        self._process = process
        self._folder = folder
        self._made = 0

    def attempt(
        self, recipe: Path, output: Path, *, kill_after: float | None = None, kill_in: KillIn | None = None
    ) -> Outcome:
        """Train a recipe into `output` until the end, an error or the kill. Raises WarmstartError "attempt-lost"."""
        self._made += 1
        events, log = (self._folder / f"{self._made}.{kind}" for kind in ("events", "log"))
        answer = self._exchange(
            {
                "recipe": str(recipe),
                "output": str(output),
                "log": str(log),
                "events": str(events),
                "kill_after": kill_after,
                "kill_in": None if kill_in is None else asdict(kill_in),
            }
        )
        lines = events.read_text(encoding="utf-8").splitlines() if events.exists() else []
        return Outcome(answer["code"], answer["seconds"], _open_phases(lines), _text(log))

    def _exchange(self, request: Mapping[str, Any]) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise WarmstartError(
                "attempt-lost",
                "the process that makes the attempts has ended",
                where=str(self._folder),
                fix="look for messages about memory in the system's log, and run it again",
            )
        return json.loads(line)


@contextmanager
def opened() -> Iterator[Attempter]:
    """An `Attempter`, while the block lasts. Raises UsageError "fork-needed" on Windows."""
    if os.name != "posix":
        raise UsageError(
            "fork-needed",
            "killing and resuming is proved with forked processes, which this system does not have",
            value=os.name,
            fix="run it on Linux or macOS; training and resuming work here all the same",
        )
    with tempfile.TemporaryDirectory(prefix="warmstart-attempts-") as folder:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "warmstart.verbs.attempt_server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            start_new_session=True,  # Ctrl-C is for the driver, which then ends this
        )
        try:
            assert process.stdout is not None
            process.stdout.readline()  # it has imported everything
            yield Attempter(process, Path(folder))
        finally:
            _end(process)


def _end(process: subprocess.Popen[str]) -> None:
    """The server and the attempt it is at: its session is its own."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for stream in (process.stdin, process.stdout):
        assert stream is not None
        stream.close()


def _open_phases(lines: list[str]) -> tuple[str, ...]:
    """The phases that begin and do not end, the innermost last."""
    stack: list[str] = []
    for line in lines:
        kind, phase, _ = line.split(" ")
        if kind == "begins":
            stack.append(phase)
        elif phase in stack:
            del stack[len(stack) - 1 - stack[::-1].index(phase) :]
    return tuple(stack)


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
