"""Accuracy of fine-tuned MiniLM on real data: `make accuracy` trains each data set with each seed and writes the table.

Each run goes through `ws.train` and `ws.evaluate` as anybody's would. Runs that `accuracy.jsonl` already has for the
same code version and settings are not repeated, nor what `unlabelled.py` measures; `--fresh` repeats them.

A run reads the test part once, after training. Of `entities` earlier runs have read it too, at settings that were given
up since: six epochs at 5e-4 (F1 0.278, which `accuracy.jsonl` keeps) and three epochs (0.333, in `docs/log.md` alone).
Those below were then chosen on the validation part.
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

import unlabelled

import warmstart as ws
from warmstart.evaluation import Evaluation
from warmstart.rows import read
from warmstart.tasks import find_task
from warmstart.verbs.train import Run

HERE = Path(__file__).parent
DATA = HERE.parent.parent / "shared" / "data"
RECORDS, TABLE = HERE / "accuracy.jsonl", HERE / "accuracy.md"
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Case:
    """One data set. `settings` are those that differ from `TrainConfig()`; `floor` is the least value promised.

    Without a `test` part the rows of `train` are judged in `folds` parts, each by a run over the others; rows that have
    one value in the field `group` stay in one part. Without a `train` part the checkpoint is judged as it is.
    """

    name: str
    train: str
    test: str
    metric: str
    validation: str | None = None
    settings: Mapping[str, Any] | None = None
    floor: float | None = None
    task: str = "text-classification"
    also: tuple[str, ...] = ()  # metrics to show beside
    folds: int = 0
    group: str = ""


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
    Case("similarity as it is", "", "similarity/test.csv", "spearman", floor=0.81, task="sentence-embedding"),
    Case(
        "similarity embedded", "similarity/train.csv", "similarity/test.csv", "spearman", "similarity/validation.csv",
        settings={"epochs": 2, "batch_size": 16}, floor=0.84, task="sentence-embedding",
    ),
    Case(
        # 2e-4 was chosen on the validation part: F1 there 0.547 after three epochs, 0.506 with 3e-4.
        "entities", "entities/train.conll", "entities/test.conll", "f1", "entities/validation.conll",
        settings={"epochs": 3, "batch_size": 16, "learning_rate": 2e-4}, floor=0.35,
        task="token-classification", also=("precision", "recall"),
    ),
    Case(
        "answers", "answers/xquad.en.json", "", "f1", settings={"epochs": 2, "batch_size": 8},
        task="question-answering", also=("exact_match",), folds=5, group="context",
    ),
)  # fmt: skip


def main() -> None:
    logging.disable(logging.INFO)
    parser = argparse.ArgumentParser(description=__doc__)
    names = [case.name for case in (*CASES, *unlabelled.MEASUREMENTS)]
    parser.add_argument("--only", help="one data set", choices=names)
    parser.add_argument("--fresh", action="store_true", help="repeat runs that are on record")
    arguments = parser.parse_args()
    for case in CASES:
        if arguments.only in (None, case.name):
            for seed in SEEDS if case.train else SEEDS[:1]:
                if arguments.fresh or find(case, seed) is None:
                    record = measure(case, seed)
                    with RECORDS.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(record) + "\n")
                    print(case.name, seed, record["metrics"][case.metric], f"{record['seconds']:.0f} s", flush=True)
    for measurement in unlabelled.MEASUREMENTS:
        if arguments.only in (None, measurement.name):
            for drawn in measurement.seeds:
                if arguments.fresh or unlabelled.find(measurement, drawn) is None:
                    unlabelled.add(measurement, drawn)
    TABLE.write_text(table(), encoding="utf-8")
    print(TABLE.read_text(encoding="utf-8"))


def measure(case: Case, seed: int) -> dict[str, Any]:
    """Train and judge on the test part; or train once a fold, and judge all rows together."""
    if not case.train:
        result = ws.evaluate(ws.load("starter-encoder", task=case.task), DATA / case.test)
        return record_of(case, seed, result, steps=0, best_step=0, seconds=0.0)
    config = ws.TrainConfig(**{**(case.settings or {}), "seed": seed})
    validation = None if case.validation is None else DATA / case.validation
    if case.folds:
        run, result, seconds = cross_validate(case, config)
    else:
        run, result, seconds = train_and_judge(case.task, DATA / case.train, DATA / case.test, validation, config)
    return record_of(case, seed, result, steps=run.steps, best_step=run.best_step, seconds=seconds)


def record_of(
    case: Case, seed: int, result: Evaluation, *, steps: int, best_step: int, seconds: float
) -> dict[str, Any]:
    return {
        "data": case.name,
        "seed": seed,
        "settings": dict(case.settings or {}),
        "version": ws.__version__,
        "steps": steps,
        "best_step": best_step,
        "seconds": seconds,
        "loss": result.loss,
        **result.as_dict(),
    }


def train_and_judge(
    task: str, train: Any, test: Any, validation: Any, config: ws.TrainConfig
) -> tuple[Run, Evaluation, float]:
    """The run, its judgement on `test`, and the seconds of training."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.monotonic()
        run = ws.train(
            "starter-encoder", train, output=Path(folder) / "run", task=task, validation=validation, config=config
        )
        seconds = time.monotonic() - started
        return run, ws.evaluate(ws.load(run.path), test), seconds


def cross_validate(case: Case, config: ws.TrainConfig) -> tuple[Run, Evaluation, float]:
    """The last fold's run, every row's judgement by the run that had not seen it, and the seconds of all runs."""
    rows = list(read(DATA / case.train, fields=find_task(case.task).fields, targets=True))
    fold_of = {group: i % case.folds for i, group in enumerate(dict.fromkeys(row[case.group] for row in rows))}
    predictions: dict[int, Any] = {}
    total = 0.0
    for fold in range(case.folds):
        held = [i for i, row in enumerate(rows) if fold_of[row[case.group]] == fold]
        others = [row for row in rows if fold_of[row[case.group]] != fold]
        run, result, seconds = train_and_judge(case.task, others, [rows[i] for i in held], None, config)
        predictions |= dict(zip(held, result.predictions, strict=True))
        total += seconds
        print(case.name, f"fold {fold + 1} of {case.folds}", result.metrics[case.metric], flush=True)
    scores = run.pipeline.task.score([predictions[i] for i in range(len(rows))], rows)
    return run, Evaluation(case.task, len(rows), metrics=scores.metrics, per_example=scores.per_example), total


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
        "`answers` in five parts by paragraph, each by a run over the others, with 95 % intervals. `similarity` is a",
        "cross-encoder's regression, `similarity embedded` the cosine of embeddings. Written by `make accuracy`; the",
        "raw records are in `accuracy.jsonl`. Settings not named are `TrainConfig`'s defaults.",
        "Seconds are of one thread on a busy machine, for orientation only.",
        "",
        "| data | settings | metric | seed | value | 95 % interval | promised | train s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for case in CASES:
        settings = ", ".join(f"{key}={value}" for key, value in (case.settings or {}).items()) or "defaults"
        settings = settings if case.train else "not trained"
        for seed in SEEDS:
            record = find(case, seed)
            for name in (case.metric, *case.also) if record is not None else ():
                metric = record["metrics"][name]
                promised = f"≥ {case.floor}" if case.floor is not None and name == case.metric else ""
                lines.append(
                    f"| {case.name} | {settings} | {name} | {seed} | {metric['value']:.4f} "
                    f"| {metric['lo']:.4f} – {metric['hi']:.4f} | {promised} | {record['seconds']:.0f} |"
                )
    return "\n".join([*lines, "", *unlabelled.lines(), ""])


if __name__ == "__main__":
    main()
