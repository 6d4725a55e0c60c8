"""The command line, called in this process, with a stdin of its own."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from support.runs import reviews
from warmstart.cli.main import run


@dataclass(frozen=True)
class Outcome:
    """What a command left: its exit code, stdout and stderr."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[dict[str, Any]]:
        """Stdout as JSONL; fails where a line is anything else."""
        return [json.loads(line) for line in self.out.splitlines()]


Warmstart = Callable[..., Outcome]


@pytest.fixture
def warmstart(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., Outcome]:
    """`warmstart("predict", "-m", folder, stdin=b"…")` in an empty folder. No outcome may hold a traceback."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)

    def call(*arguments: object, stdin: bytes = b"") -> Outcome:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err and "Traceback" not in captured.out
        return Outcome(code, captured.out, captured.err)

    return call


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stdout is a terminal."""
    monkeypatch.setattr("warmstart.cli.console.is_terminal", lambda stream: stream is sys.stdout)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder, the current one, with train.jsonl (24 rows), dev.jsonl (8) and reviews.csv (8)."""
    for name, count in (("train", 24), ("dev", 8)):
        lines = [json.dumps(row) for row in reviews(count, seed=count)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    rows = [f"{n},{row['text']},{row['label'].lower()}" for n, row in enumerate(reviews(8))]
    (tmp_path / "reviews.csv").write_text("\n".join(["id,review,label", *rows]) + "\n")
    return tmp_path
