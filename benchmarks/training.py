"""The benchmark of training: `make bench-training`, or `python benchmarks/training.py [PART …]`, PART one of

reviews   MiniLM on reviews, one epoch, beside transformers' Trainer: dynamic padding, grouped by length; test accuracy
fixed     the same beside padding to 128 tokens, as run_glue and AutoTrain do
mixed     reviews, questions and paragraphs together, beside dynamic padding; which of them a text is, is learned
saving    ws.train with a snapshot every 50 steps, and with none: what stands between the steps

Contestants alternate in turns of a few steps, on one core, and each trains on the same rows with every seed. Each part
replaces its own raw records in `training.jsonl`; the table `training.md` is written from them.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inference import machine
from inference_workloads import DATA, MIXTURE, SEED, paragraph_texts, question_texts
from training_table import table

from warmstart.verbs.bench_process import spare_cores
from warmstart.verbs.bench_race import turns

HERE = Path(__file__).parent
RECORDS, TABLE = HERE / "training.jsonl", HERE / "training.md"
SEEDS = (0, 1, 2)
OURS, DYNAMIC, GROUPED, FIXED = "ws.train", "Trainer, dynamic padding", "Trainer, grouped by length", "Trainer, to 128"
SAVING = "ws.train, a snapshot every 50 steps"
_TRAINER = {"kind": "trainer", "order": "random", "pad_to": None}
CONTESTANTS: Mapping[str, Mapping[str, Any]] = {
    # No snapshots, as the Trainer makes none: left to the clock they would come while the others train, too.
    OURS: {"kind": "warmstart", "save_every": 10**6},
    SAVING: {"kind": "warmstart", "save_every": 50},
    DYNAMIC: _TRAINER,
    GROUPED: {**_TRAINER, "order": "group_by_length"},
    FIXED: {**_TRAINER, "pad_to": 128},
}


@dataclass(frozen=True)
class Part:
    """Who trains on what: `rows` rows, in turns of `turn` steps, judged on the test part if `judged`."""

    names: tuple[str, ...]
    data: str
    rows: int
    turn: int = 8
    judged: bool = False


PARTS = {
    "reviews": Part((OURS, DYNAMIC, GROUPED), "reviews", 1280, judged=True),
    "fixed": Part((OURS, FIXED), "reviews", 384, turn=4, judged=True),
    "mixed": Part((OURS, DYNAMIC), "mixed", 192, turn=2, judged=True),
    "saving": Part((OURS, SAVING), "reviews", 3232, turn=25),
}


def main() -> None:
    logging.disable(logging.INFO)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, "table", []], metavar="PART")
    parser.add_argument("--rows", type=int, help="only so many rows: a trial, written nowhere")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS), help="default 0 1 2")
    parser.add_argument("--threads", type=int, default=1, help="threads of each, on as many cores (default 1)")
    arguments = parser.parse_args()
    trial = arguments.rows is not None or arguments.seeds != list(SEEDS)
    records: list[dict[str, Any]] = []
    for name in arguments.parts or PARTS:
        if name == "table":
            continue
        started = time.monotonic()
        part = name if arguments.threads == 1 else f"{name}, {arguments.threads} threads"
        found = list(run(PARTS[name], arguments.rows, arguments.seeds, arguments.threads))
        about = {**machine(), "threads": arguments.threads, "seconds": round(time.monotonic() - started)}
        mine = [{"part": part, **record} for record in (about, *found)]
        records += mine
        if not trial:
            replace(part, mine)
    if trial:
        print("\n".join(table(records)))
    else:
        TABLE.write_text("\n".join([*table(read()), ""]), encoding="utf-8")
        print(TABLE.read_text(encoding="utf-8"))


def run(part: Part, rows: int | None, seeds: Sequence[int], threads: int) -> Iterator[dict[str, Any]]:
    """The records of a part: a turn each, and a result for each contestant and seed."""
    read_rows = {"reviews": review_rows, "mixed": mixed_rows}[part.data]
    data = read_rows("train")[: rows or part.rows]
    test = read_rows("test") if part.judged else []
    yield {"kind": "work", "rows": len(data), "labels": len({row["label"] for row in data}), "names": part.names}
    for repeat, seed in enumerate(seeds):
        workers = {}
        try:
            for name in part.names:
                settings = {**CONTESTANTS[name], "seed": seed, "rows": data, "test": test, "threads": threads}
                settings["labels"] = sorted({row["label"] for row in data})
                workers[name] = Worker(settings, threads)
            yield from _race(workers, part, seed, repeat)
        finally:
            for worker in workers.values():
                worker.close()


def _race(workers: Mapping[str, Worker], part: Part, seed: int, repeat: int) -> Iterator[dict[str, Any]]:
    running, turn = list(workers), 0
    total = dict.fromkeys(workers, 0.0)
    while running:
        for name in turns(running, repeat + turn):
            report = workers[name].ask({"steps": part.turn})
            total[name] += report["seconds"]
            yield {"kind": "turn", "seed": seed, "name": name, "turn": turn, **report}
            if report["over"]:
                running.remove(name)
        turn += 1
    for name, worker in workers.items():
        print(f"seed {seed}: {name}: {total[name]:.1f} s", file=sys.stderr)
        yield {"kind": "result", "seed": seed, "name": name, "seconds": total[name], **worker.ask({})}


class Worker:
    """A contestant in a process of its own, warm and waiting for its first turn."""

    def __init__(self, settings: Mapping[str, Any], threads: int) -> None:
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")
        own = {**dict.fromkeys(names, str(threads)), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "training_contestant.py")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8", env={**os.environ, **own},
        )  # fmt: skip
        self.ask({**settings, "cores": spare_cores(threads)})

    def ask(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Send a line, and wait for the answer."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(message) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"a contestant ended with code {self._process.wait()}: its last words are above")
        found: dict[str, Any] = json.loads(line)
        return found

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


def review_rows(part: str) -> list[dict[str, Any]]:
    with (DATA / "reviews" / f"{part}.jsonl").open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def mixed_rows(part: str) -> list[dict[str, Any]]:
    """Reviews, questions and paragraphs, as many to one another as in the inference benchmark; a row's label is which
    of them it is. Of the paragraphs, which are in no parts, every other one is of the training part."""
    paragraphs = paragraph_texts()
    kinds = {
        "reviews": [row["text"] for row in review_rows(part)],
        "questions": question_texts(part),
        "contexts": paragraphs[::2] if part == "train" else paragraphs[1::2],
    }
    rows = [{"text": text, "label": kind} for kind, texts in kinds.items() for text in texts[: MIXTURE[kind] // 2]]
    random.Random(SEED).shuffle(rows)
    return rows


def read() -> list[dict[str, Any]]:
    return [json.loads(line) for line in RECORDS.read_text(encoding="utf-8").splitlines()] if RECORDS.exists() else []


def replace(part: str, records: Sequence[Mapping[str, Any]]) -> None:
    """A part's records take the place of its older ones."""
    kept = [record for record in read() if record["part"] != part]
    RECORDS.write_text("\n".join(json.dumps(record) for record in (*kept, *records)) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
