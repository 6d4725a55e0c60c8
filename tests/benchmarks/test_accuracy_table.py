"""`make accuracy` measures all that its page shows, once, and writes the page from the records."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import accuracy
import pytest
import unlabelled

METRIC = {"value": 0.5, "lo": 0.4, "hi": 0.6}


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """What was measured, in its order; nothing is trained, and records and page lie in a folder of their own."""
    done: list[tuple[str, Any]] = []

    def trained(case: accuracy.Case, seed: int) -> dict[str, Any]:
        done.append((case.name, seed))
        metrics = dict.fromkeys((case.metric, *case.also), METRIC)
        settings, version = dict(case.settings or {}), accuracy.ws.__version__
        return {"data": case.name, "seed": seed, "settings": settings, "version": version, "seconds": 1.0} | {
            "metrics": metrics
        }

    def asked(name: str, metrics: tuple[str, ...], seed: int | None) -> dict[str, Any]:
        done.append((name, seed))
        return {"metrics": dict.fromkeys(metrics, METRIC)}

    def without_labels(case: unlabelled.Measurement) -> unlabelled.Measurement:
        return dataclasses.replace(case, measure=lambda seed: asked(case.name, case.metrics, seed))

    cases = tuple(map(without_labels, unlabelled.MEASUREMENTS))
    monkeypatch.setattr(unlabelled, "MEASUREMENTS", cases)
    monkeypatch.setattr(accuracy, "measure", trained)
    monkeypatch.setattr(accuracy.logging, "disable", lambda level: None)
    for module in (accuracy, unlabelled):
        monkeypatch.setattr(module, "RECORDS", tmp_path / "accuracy.jsonl")
    monkeypatch.setattr(accuracy, "TABLE", tmp_path / "accuracy.md")
    return done


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr("sys.argv", ["accuracy.py", *arguments])
    accuracy.main()


def test_all_of_the_page_is_measured_once(
    measured: list[tuple[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = [(case.name, seed) for case in accuracy.CASES for seed in ((0, 1, 2) if case.train else (0,))]
    wanted += [(case.name, seed) for case in unlabelled.MEASUREMENTS for seed in case.seeds]
    run(monkeypatch)
    assert measured == wanted and len({name for name, _ in wanted}) == 12
    page = (tmp_path / "accuracy.md").read_text(encoding="utf-8")
    rows = [line for line in page.partition("## Without labels")[2].splitlines() if "| 0.4 – 0.6 |" in line]
    assert len(rows) == sum(len(case.seeds) * len(case.metrics) for case in unlabelled.MEASUREMENTS) == 9
    run(monkeypatch)
    assert measured == wanted  # all of it is on record
    records = [json.loads(line) for line in (tmp_path / "accuracy.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(record["data"], record["seed"]) for record in records] == wanted


def test_one_of_them_alone_and_again(measured: list[tuple[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(2):
        run(monkeypatch, "--only", "reviews, masked", "--fresh")
    assert measured == [("reviews, masked", seed) for seed in (0, 1, 2)] * 2
    with pytest.raises(SystemExit):
        run(monkeypatch, "--only", "review")
    assert len(measured) == 6
