"""`attempts.jsonl`: every start of a run, the step it began at, and how it ended.

A start writes one line, an end another; an attempt without an end was killed.

    {"attempt": 2, "began_at": 40, "redone": 7, "time": "…", "set_aside": [], "differences": []}
    {"attempt": 2, "ended": "finished", "step": 120, "best_step": 80}
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from warmstart.durable import flush

NAME = "attempts.jsonl"
How = Literal["finished", "interrupted", "terminated", "failed"]


@dataclass(frozen=True)
class Attempts:
    """The attempts file of a run directory."""

    path: Path

    def lines(self) -> list[Mapping[str, Any]]:
        """All whole lines; one that a kill tore is none."""
        try:
            text = self.path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return []
        found: list[Mapping[str, Any]] = []
        for line in text.split("\n"):
            try:
                value = json.loads(line)
            except ValueError:
                continue
            if isinstance(value, dict):
                found.append(value)
        return found

    def starts(self) -> list[Mapping[str, Any]]:
        return [line for line in self.lines() if "began_at" in line]

    @property
    def finished(self) -> Mapping[str, Any] | None:
        """The line of a finished run: its last step stands there."""
        return next((line for line in self.lines() if line.get("ended") == "finished"), None)

    def start(
        self,
        began_at: int,
        *,
        redone: int | None = None,
        set_aside: Sequence[Any] = (),
        differences: Sequence[Any] = (),
    ) -> int:
        """Note a start after `began_at` optimizer steps; returns the attempt's number, from 1.

        `redone`: the steps that were made before and are made again; None where nothing records steps.
        """
        number = len(self.starts()) + 1
        self._append(
            {
                "attempt": number,
                "began_at": began_at,
                **({} if redone is None else {"redone": redone}),
                "time": datetime.now(UTC).isoformat(timespec="seconds"),
                "set_aside": list(set_aside),
                "differences": list(differences),
            }
        )
        return number

    def end(self, number: int, how: How, step: int, *, code: str | None = None, best_step: int | None = None) -> None:
        """Note an end after `step` steps. `code`: of the error a run failed by; `best_step`: of a finished one."""
        more = {"code": code, "best_step": best_step}
        line = {"attempt": number, "ended": how, "step": step}
        self._append(line | {key: value for key, value in more.items() if value is not None})

    def cut(self, number: int, from_step: int, parts: int) -> None:
        """Note that memory ran out, and that micro-batches are cut from that step on."""
        self._append({"attempt": number, "out_of_memory_in_step": from_step, "parts": parts})

    def _append(self, line: Mapping[str, Any]) -> None:
        with self.path.open("a+b") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 1))
            torn = size > 0 and file.read(1) != b"\n"
            file.write((b"\n" if torn else b"") + json.dumps(line).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        if size == 0:
            flush(self.path.parent)
