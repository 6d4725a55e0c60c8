"""What MiniLM does without a label: zero-shot by embeddings, out of scope, masked-language training on reviews.

`python benchmarks/unlabelled.py` measures what `accuracy.jsonl` does not have yet for this version, and prints its part
of `accuracy.md`, which `make accuracy` writes. The names of labels were chosen before any test row was read.
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import warmstart as ws

HERE = Path(__file__).parent
DATA = HERE.parent.parent / "shared" / "data"
RECORDS = HERE / "accuracy.jsonl"

# What the codes of `questions` stand for, by the names its publishers give them.
QUESTIONS = {
    "ABBR": "abbreviation", "DESC": "description", "ENTY": "entity", "HUM": "human", "LOC": "location", "NUM": "number",
}  # fmt: skip
ADAPT = {"epochs": 1, "learning_rate": 3e-4}


@dataclass(frozen=True)
class Measurement:
    """`measure` takes a seed; what draws nothing at random has the one seed None."""

    name: str
    settings: Mapping[str, Any]
    metrics: tuple[str, ...]
    measure: Callable[[int | None], dict[str, Any]]
    seeds: tuple[int | None, ...] = (None,)


def main() -> None:
    logging.disable(logging.INFO)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", help="one measurement", choices=[case.name for case in MEASUREMENTS])
    parser.add_argument("--fresh", action="store_true", help="repeat what is on record")
    arguments = parser.parse_args()
    for case in MEASUREMENTS:
        if arguments.only in (None, case.name):
            for seed in case.seeds:
                if arguments.fresh or find(case, seed) is None:
                    add(case, seed)
    print("\n".join(lines()))


def add(case: Measurement, seed: int | None) -> None:
    """Measure, and put it on record."""
    started = time.monotonic()
    found = case.measure(seed)
    record = {
        "data": case.name,
        "seed": seed,
        "settings": dict(case.settings),
        "version": ws.__version__,
        "seconds": time.monotonic() - started,
        **found,
    }
    with RECORDS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def find(case: Measurement, seed: int | None) -> dict[str, Any] | None:
    """The newest record of this measurement."""
    known = RECORDS.read_text(encoding="utf-8").splitlines() if RECORDS.exists() else []
    for record in map(json.loads, reversed(known)):
        if (record["data"], record["seed"], record["version"]) == (case.name, seed, ws.__version__) and record[
            "settings"
        ] == dict(case.settings):
            return dict(record)
    return None


def lines() -> list[str]:
    """The lines of `accuracy.md`."""
    found = [
        "## Without labels",
        "",
        "Zero-shot: cosines of all-MiniLM-L6-v2, as it is, between a text and the names of the labels (underscores as",
        "spaces); `in_scope_auroc` says how well the best cosine tells questions in scope from the 1,000 out of it.",
        "Masked: a fresh head over the same encoder before and after training on reviews, on the test part with fixed",
        "masks; whoever guesses blindly has a perplexity of 30,522. Written by `benchmarks/unlabelled.py`.",
        "",
        "| data | settings | metric | seed | value | 95 % interval | s |",
        "|---|---|---|---|---|---|---|",
    ]
    for case in MEASUREMENTS:
        settings = ", ".join(f"{key}={value}" for key, value in case.settings.items())
        for seed in case.seeds:
            record = find(case, seed)
            for name in case.metrics if record is not None else ():
                metric = record["metrics"][name]
                found.append(
                    f"| {case.name} | {settings} | {name} | {'' if seed is None else seed} | {metric['value']:.4g} "
                    f"| {metric['lo']:.4g} – {metric['hi']:.4g} | {record['seconds']:.0f} |"
                )
    return found


def _zero_shot(rows: Iterable[Mapping[str, str]], names: Mapping[str, str] | None) -> dict[str, Any]:
    """Judge rows by the names of their labels; "oos" is out of scope."""
    named = [
        {"text": row["text"], "label": names[row["label"]] if names else row["label"].replace("_", " ")} for row in rows
    ]
    labels = sorted({row["label"] for row in named} - {"oos"})
    options = {"labels": labels, "out_of_scope": "oos"}
    pipe = ws.load("starter-encoder", task="zero-shot-classification", options=options)
    return ws.evaluate(pipe, named).as_dict()


def _questions(seed: int | None) -> dict[str, Any]:
    with (DATA / "questions" / "test.csv").open(encoding="utf-8", newline="") as file:
        return _zero_shot(csv.DictReader(file), QUESTIONS)


def _intents(seed: int | None) -> dict[str, Any]:
    rows = [
        json.loads(line)
        for name in ("test", "out_of_scope")
        for line in (DATA / "intents" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    return _zero_shot(rows, None)


def _masked(seed: int | None) -> dict[str, Any]:
    """Perplexity on the test reviews at the start of the run, and at its end."""
    test = DATA / "reviews" / "test.jsonl"
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        # A rate of next to nothing leaves the run's own fresh head as it was drawn.
        for name, settings in (("before", {"max_steps": 1, "learning_rate": 1e-12}), ("after", ADAPT)):
            run = ws.train(
                "starter-encoder", DATA / "reviews" / "train.jsonl", output=Path(folder) / name, task="fill-mask",
                config=ws.TrainConfig(**settings, seed=seed),
            )  # fmt: skip
            result = ws.evaluate(ws.load(run.path), test)
            found[f"perplexity_{name}"] = result.metrics["perplexity"].as_dict()
    return {"task": "fill-mask", "rows": result.rows, "loss": result.loss, "steps": run.steps, "metrics": found}


MEASUREMENTS = (
    Measurement("questions, zero-shot", {"labels": 6}, ("accuracy",), _questions),
    Measurement("intents, zero-shot", {"labels": 150}, ("accuracy", "in_scope_auroc"), _intents),
    Measurement("reviews, masked", ADAPT, ("perplexity_before", "perplexity_after"), _masked, (0, 1, 2)),
)


if __name__ == "__main__":
    main()
