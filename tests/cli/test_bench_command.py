"""`warmstart bench`: real peers, on a tiny checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from warmstart.verbs import bench as verb


def test_bench_prints_the_ratios_and_every_repeat(
    warmstart: Any, tiny: Callable[..., Path], files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verb, "BATCH_SIZES", (4,))  # no search: a process less to start
    arguments = ("bench", "-m", tiny("bert"), "-i", "reviews.csv", "--rows", "6", "--repeats", "1", "--threads", "1")
    done = warmstart(*arguments, "--json")
    assert done.code == 0, done.err
    [line] = done.lines
    assert (line["task"], line["rows"], line["threads"], line["failed"]) == ("text-classification", 6, 1, {})
    assert set(line["ratios"]) == {"transformers.pipeline", "textbook loop"}
    assert all(ratio > 0 for ratio in line["ratios"].values())
    assert [standing["agreement"] for standing in line["standings"]] == [None, 1, 1]
    assert [standing["batch_size"] for standing in line["standings"]] == [None, 4, 32]
    assert sorted(trial["name"] for trial in line["trials"]) == ["textbook loop", "transformers.pipeline", "warmstart"]
    assert "6 rows" in done.err and "review" in done.err  # the guessed column is said


def test_bench_refuses_what_it_cannot_measure(warmstart: Any, tiny: Callable[..., Path], files: Path) -> None:
    assert warmstart("bench", "-m", tiny("bert")).code == 2
    assert warmstart("bench", "-m", tiny("bert"), "-i", "reviews.csv", "--rows", "0").code == 2
    missing = warmstart("bench", "-m", tiny("bert"), "-i", "nowhere.csv")
    assert missing.code == 3 and "nowhere.csv" in missing.err and missing.out == ""


def test_bench_of_another_task_runs_its_pipeline_on_the_rows_own_candidates(
    warmstart: Any, tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verb, "BATCH_SIZES", (4,))
    texts = ("a warm film", "the plot is dull", "fun")
    rows = [{"text": text, "labels": ["film", "story", "cast"], "label": "film"} for text in texts]
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    model = tiny("bert", labels=("contradiction", "neutral", "entailment"))
    done = warmstart(
        "bench", "-m", model, "-i", "asked.jsonl", "--task", "zero-shot-classification", "--repeats", "1",
        "--threads", "1", "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    [line] = done.lines
    assert line["failed"] == {} and set(line["ratios"]) == {"transformers.pipeline"}
    assert [standing["agreement"] for standing in line["standings"]] == [None, 1]
