"""examples/own_loop.py, killed at random steps and run again: the weights of one in peace, to the last bit."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "own_loop.py"
EVERY = 5  # as the example saves
# Each round kills a run twice. In `make nightly` there are more of them.
ROUNDS = 1 + int(os.environ.get("WARMSTART_KILLS", "0")) // 5

pytestmark = pytest.mark.skipif(os.name != "posix", reason="SIGKILL")


def _run(folder: Path, kill_after: int | None = None) -> list[str]:
    """The lines of one run; with `kill_after` it is killed once it has told of so many steps of its own."""
    lines: list[str] = []
    with subprocess.Popen(
        [sys.executable, str(EXAMPLE), str(folder)],
        env={**os.environ, "WARMSTART_EXAMPLE_ROWS": "120"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line.strip())
            if kill_after is not None and sum(each.startswith("step ") for each in lines) == kill_after:
                process.send_signal(signal.SIGKILL)
                break
    assert process.wait() == (0 if kill_after is None else -signal.SIGKILL)
    return lines


def _steps(lines: list[str]) -> dict[int, str]:
    return {int(line.split()[1]): line for line in lines if line.startswith("step ")}


def test_k83_an_own_loop_that_is_killed_ends_with_the_weights_of_one_in_peace(tmp_path: Path, encoder: Path) -> None:
    calm = _run(tmp_path / "peace")
    steps = _steps(calm)
    assert len(steps) >= 10 and "NEGATIVE" in calm[-1]
    rng = random.Random(0)
    for number in range(ROUNDS):
        folder = tmp_path / f"killed-{number}"
        first = rng.randint(1, len(steps) // 2)
        lines = _run(folder, first)
        assert max(_steps(lines)) == first - 1
        second = rng.randint(1, 3)
        lines = _run(folder, second)
        again = _run(folder)
        starts = [json.loads(line)["began_at"] for line in (folder / "attempts.jsonl").read_text().splitlines()]
        reached = first // EVERY * EVERY  # the kill may have come after the line, and before the snapshot of it
        assert starts[0] == 0 and starts[1] in (reached, max(0, reached - EVERY)) and starts[2] >= starts[1]
        made = _steps(again)
        assert made == {step: line for step, line in steps.items() if step >= starts[2]}  # the same losses, too
        assert again[-2].startswith("weights ") and again[-2] == calm[-2]
