"""Accuracy of fine-tuned MiniLM on real data: `make accuracy` trains each data set with each seed and writes the table.

Each run goes through `ws.train` and `ws.evaluate` as anybody's would. Runs that `accuracy.jsonl` already has for the
same code version and settings are not repeated; `--fresh` repeats them. The test part is read once, after training.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import warmstart as ws

HERE = Path(__file__).parent
DATA = HERE.parent.parent / "shared" / "data"
RECORDS, TABLE = HERE / "accuracy.jsonl", HERE / "accuracy.md"
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Case:
    """One data set. `settings` are those that differ from `TrainConfig()`; `floor` is the least value promised."""

    name: str
    train: str
    test: str
    metric: str
    validation: str | None = None
    settings: Mapping[str, Any] | None = None
    floor: float | None = None


CASES = (
    Case(
        "reviews", "reviews/train.jsonl", "reviews/test.jsonl", "accuracy", "reviews/validation.jsonl",
        settings={"epochs": 2}, floor=0.82,
    ),
    Case("questions", "questions/train.csv", "questions/test.csv", "accuracy", floor=0.955),
    Case("intents", "intents/train.jsonl", "intents/test.jsonl", "accuracy", floor=0.93),
    Case("entailment", "entailment/train.jsonl", "entailment/test.jsonl", "accuracy"),
    Case(
        "similarity", "similarity/train.csv", "similarity/test.csv", "spearman", "similarity/validation.csv",
        settings={"epochs": 1},
    ),
)  # fmt: skip


def main() -> None:
    logging.disable(logging.INFO)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", help="one data set")
    parser.add_argument("--fresh", action="store_true", help="repeat runs that are on record")
    arguments = parser.parse_args()
    for case in CASES:
        if arguments.only in (None, case.name):
            for seed in SEEDS:
                if arguments.fresh or find(case, seed) is None:
                    record = measure(case, seed)
                    with RECORDS.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(record) + "\n")
                    print(case.name, seed, record["metrics"][case.metric], f"{record['seconds']:.0f} s", flush=True)
    TABLE.write_text(table(), encoding="utf-8")
    print(TABLE.read_text(encoding="utf-8"))


def measure(case: Case, seed: int) -> dict[str, Any]:
    """Train once and judge the result on the test part."""
    config = ws.TrainConfig(**{**(case.settings or {}), "seed": seed})
    validation = None if case.validation is None else DATA / case.validation
    with tempfile.TemporaryDirectory() as folder:
        started = time.monotonic()
        run = ws.train(
            "starter-encoder", DATA / case.train, output=Path(folder) / "run", task="text-classification",
            validation=validation, config=config,
        )  # fmt: skip
        seconds = time.monotonic() - started
        result = ws.evaluate(ws.load(run.path), DATA / case.test)
    return {
        "data": case.name,
        "seed": seed,
        "settings": dict(case.settings or {}),
        "version": ws.__version__,
        "steps": run.steps,
        "best_step": run.best_step,
        "seconds": seconds,
        "loss": result.loss,
        **result.as_dict(),
    }


def find(case: Case, seed: int) -> dict[str, Any] | None:
    """The newest record of this run."""
    lines = RECORDS.read_text(encoding="utf-8").splitlines() if RECORDS.exists() else []
    wanted = (case.name, seed, case.settings or {}, ws.__version__)
    for record in map(json.loads, reversed(lines)):
        if (record["data"], record["seed"], record["settings"], record["version"]) == wanted:
            return dict(record)
    return None


def table() -> str:
    lines = [
        "# Accuracy",
        "",
        "all-MiniLM-L6-v2 (`starter-encoder`), fine-tuned by `ws.train` and judged by `ws.evaluate` on the test part,",
        "with 95 % intervals. Written by `make accuracy`; the raw records are in `accuracy.jsonl`. Settings not",
        "named are the defaults of `TrainConfig`. Seconds are of one thread on a busy machine, for orientation only.",
        "",
        "| data | settings | metric | seed | value | 95 % interval | promised | train s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for case in CASES:
        settings = ", ".join(f"{key}={value}" for key, value in (case.settings or {}).items()) or "defaults"
        for seed in SEEDS:
            record = find(case, seed)
            if record is not None:
                metric = record["metrics"][case.metric]
                promised = "" if case.floor is None else f"≥ {case.floor}"
                lines.append(
                    f"| {case.name} | {settings} | {case.metric} | {seed} | {metric['value']:.4f} "
                    f"| {metric['lo']:.4f} – {metric['hi']:.4f} | {promised} | {record['seconds']:.0f} |"
                )
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
