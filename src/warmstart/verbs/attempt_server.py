"""Attempts at a run in processes that can be killed: a server that has imported everything forks one for each.

    python -P -m warmstart.verbs.attempt_server

One JSON object a line comes in on stdin, one goes out on stdout for each:

    {"recipe": "run.toml", "output": "runs/a", "log": "a.log", "events": "a.events",
     "kill_after": 1.5, "kill_in": {"phase": "save", "count": 2, "after": 0.003}}
        → {"code": -9, "seconds": 1.5}

The process is killed (SIGKILL) after so many seconds of its life, or so many seconds into the so-many-th phase of a
kind (`training.phases`), or not at all; `code` is its exit code, negative for a signal. `events` gets a line
"begins|ends PHASE STEP" for each start and end of a phase. What the process prints goes to `log`. An import of torch
takes seconds; a fork takes none.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from warmstart.errors import UsageError, WarmstartError
from warmstart.training.recipe import Recipe, read_recipe
from warmstart.verbs.train import Run, train


def train_recipe(recipe: Recipe, output: Path, *, force: bool = False) -> Run:
    """`train` with a recipe's arguments. Raises UsageError "recipe-incomplete" for one without a model or data."""
    for name, value in (("model", recipe.model), ("data", recipe.data)):
        if value is None:
            raise UsageError(
                "recipe-incomplete",
                f"the recipe does not say what the {name} is",
                value=name,
                fix=f'write {name} = "…" at its top; rows that came from no file cannot be named there',
            )
    assert recipe.model is not None
    return train(
        recipe.model,
        recipe.data,
        output=output,
        task=recipe.task,
        validation=recipe.validation,
        config=recipe.config,
        columns=recipe.columns,
        options=recipe.options,
        force=force,
    )


@dataclass
class _Events:
    """A log handler's `emit`: writes phases down, and kills this process in the one it is told to."""

    file: int
    kill: Mapping[str, Any] | None
    seen: int = 0

    def emit(self, record: logging.LogRecord) -> bool:
        phase = record.__dict__.get("phase")
        if phase is None:
            return True
        begins = record.__dict__["begins"]
        os.write(self.file, f"{'begins' if begins else 'ends'} {phase} {record.__dict__['step']}\n".encode())
        if begins and self.kill is not None and phase == self.kill["phase"]:
            self.seen += 1
            if self.seen == self.kill["count"] and not self.kill["after"]:
                _die(0)
            elif self.seen == self.kill["count"]:
                threading.Thread(target=_die, args=(self.kill["after"],), daemon=True).start()
        return False  # not for people


def _die(seconds: float) -> None:
    if seconds:
        time.sleep(seconds)
    os.kill(os.getpid(), signal.SIGKILL)


def _attempt(request: Mapping[str, Any]) -> int:
    """In the forked process: one attempt; returns the exit code."""
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    for stream in (1, 2):
        os.dup2(log, stream)
    events = os.open(request["events"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    logger, handler = logging.getLogger("warmstart"), logging.StreamHandler(sys.stderr)
    logger.setLevel(logging.DEBUG)
    logger.addFilter(_Events(events, request.get("kill_in")).emit)
    logger.addHandler(handler)
    try:
        train_recipe(read_recipe(Path(request["recipe"])), Path(request["output"]))
    except WarmstartError as error:
        print(error, file=sys.stderr, flush=True)
        return error.exit_code
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _serve() -> None:
    for line in iter(sys.stdin.readline, ""):
        request = json.loads(line)
        started = time.monotonic()
        child = os.fork()
        if child == 0:
            try:
                code = _attempt(request)
            except BaseException:
                traceback.print_exc()
                code = 1
            with suppress(OSError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)
        code = _wait(child, request.get("kill_after"), started)
        print(json.dumps({"code": code, "seconds": time.monotonic() - started}), flush=True)


def _wait(child: int, kill_after: float | None, started: float) -> int:
    while kill_after is not None:
        if time.monotonic() - started >= kill_after:
            os.kill(child, signal.SIGKILL)
            break
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.001)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    print(json.dumps({"ready": True}), flush=True)
    _serve()
