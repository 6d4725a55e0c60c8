"""`warmstart compare`: what it prints for people and for programs, and its exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import warmstart as ws


@pytest.fixture
def results(warmstart: Any, tiny: Callable[..., Path], files: Path) -> Path:
    """Folders `a` (a run) and `b` (an evaluation of another checkpoint on the same rows)."""
    train = ("train", "-m", tiny("bert"), "-d", "train.jsonl", "--validation", "dev.jsonl", "-o", "a")
    assert warmstart(*train, "--set", "epochs=2", "--set", "batch_size=8", "--set", "learning_rate=5e-3").code == 0
    assert warmstart("evaluate", "-m", tiny("roberta"), "-d", "dev.jsonl", "-o", "b").code == 0
    return files


def test_a_run_is_compared_with_an_evaluation(warmstart: Any, results: Path) -> None:
    done = warmstart("compare", "a", "b", "--json")
    assert done.code == 0, done.err
    [line] = done.lines
    assert (line["a"], line["b"], line["task"]) == ("a", "b", "text-classification")
    keys = {"a", "b", "difference", "lo", "hi", "p_value", "minimum_detectable", "test"}
    assert all(set(each) == keys for each in line["metrics"].values())
    assert line == json.loads(json.dumps(ws.compare("a", "b").as_dict()))
    shown = warmstart("compare", "a", "b", "-o", "deep/all.json")
    assert shown.code == 0 and json.loads((results / "deep/all.json").read_text()) == line
    assert "accuracy" in shown.out and "95 % interval" in shown.out and max(map(len, shown.out.splitlines())) < 130
    assert f"they disagree on {len(line['disagreements'])} rows" in shown.out
    assert "all.json" in shown.err


def test_what_cannot_be_compared_has_its_exit_code(warmstart: Any, results: Path) -> None:
    assert warmstart("evaluate", "-m", "a", "-d", "train.jsonl", "-o", "elsewhere").code == 0
    for other, code, said in (("elsewhere", 3, "only in B, row 0"), ("nowhere", 2, "evaluate"), (".", 2, "validation")):
        done = warmstart("compare", "a", other)
        assert done.code == code and said in done.err and done.out == ""
