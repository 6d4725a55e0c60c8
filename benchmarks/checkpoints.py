"""What exact resume costs: the share of a run's time that goes into snapshots.

    python benchmarks/checkpoints.py --steps 150 --every 50

Trains MiniLM on the reviews (batch 32, default preset) for some steps, with snapshots and without. What stands between
the steps, whose own time `metrics.jsonl` has, is counted in both runs; the difference is what snapshots cost, and their
share of the whole run is told. One line of JSON, on stdout or added to `--output`. The runs are thrown away.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import warmstart as ws
from warmstart.verbs.fitting import Progress

DATA = Path(__file__).parent.parent.parent / "shared" / "data" / "reviews" / "train.jsonl"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="starter-encoder")
    parser.add_argument("--data", type=Path, default=DATA, help="rows with text and label; the reviews' training part")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--every", type=int, default=50, help="steps between two snapshots")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--output", type=Path, help="a file to which the line is added; stdout otherwise")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="warmstart-checkpoints-", dir=".") as folder:
        without = measured(given, Path(folder) / "without", every=given.steps + 1)
        having = measured(given, Path(folder) / "with", every=given.every)
    saved = (given.steps - 1) // given.every  # none after the last step
    cost = having["between"] - without["between"]
    line = json.dumps(
        {
            "model": given.model,
            "steps": given.steps,
            "every": given.every,
            "snapshots": saved,
            "megabytes": having["megabytes"],
            "threads": torch.get_num_threads(),
            "step_ms": round(1000 * having["step"], 1),
            "snapshot_seconds": round(cost / max(1, saved), 3),
            # Of a run that saves as often as it says, however many snapshots this one had.
            "share": round(cost / max(1, saved) / (cost / max(1, saved) + given.every * having["step"]), 4),
        }
    )
    if given.output is None:
        print(line)
    else:
        with given.output.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


def measured(given: argparse.Namespace, output: Path, *, every: int) -> dict[str, Any]:
    """Seconds between the steps of one run, the median of a step, and the size of a snapshot."""
    moments: list[float] = []
    size = 0

    def watch(progress: Progress) -> None:
        nonlocal size
        moments.append(time.monotonic())
        for folder in (output / "checkpoints").glob("step-*"):
            size = max(size, sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()))

    config = ws.TrainConfig(max_steps=given.steps, epochs=100, batch_size=given.batch_size, save_every=every)
    ws.train(given.model, given.data, output=output, config=config, progress=watch)
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    steps = [line["seconds"] for line in lines]
    between = moments[-1] - moments[0] - sum(steps[1:])
    return {"between": between, "step": statistics.median(steps), "megabytes": round(size / 1e6)}


if __name__ == "__main__":
    main()
