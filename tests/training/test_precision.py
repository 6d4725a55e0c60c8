"""bf16 and fp16 on a CPU: used where they are measured to be faster, and the record says which."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import warmstart as ws
from support.runs import FAST, low_precision_takes, reviews, weights_sha256
from warmstart.rows import texts
from warmstart.training import precision
from warmstart.training.batches import make_batches
from warmstart.training.config import TrainConfig
from warmstart.training.precision import Measured, is_measured, measure, recorded
from warmstart.verbs.reproduce import reproduce

ROWS = reviews(40)


def _train(checkpoint: Path, output: Path, *, data: Any = None, progress: Any = None, **config: Any) -> ws.Run:
    settings = {"epochs": 2, "save_every": 2, "keep": 9, **FAST, **config}
    return ws.train(checkpoint, data or ROWS, output=output, config=ws.TrainConfig(**settings), progress=progress)


def _measure(pipe: ws.Pipeline, asked: str) -> Measured:
    batches = make_batches(pipe.task, list(texts(ROWS)), seed=0, batch_size=8, max_tokens=None)
    config = TrainConfig(precision=asked, batch_size=8)
    return measure(pipe.model, batches, config, device="cpu")


@pytest.mark.parametrize("asked", ["bf16", "fp16"])
def test_both_are_timed_and_nothing_is_left_changed(tiny: Callable[..., Path], asked: str) -> None:
    pipe = ws.load(tiny("bert"))
    pipe.model.train()
    pipe.model.bert.embeddings.eval()  # as a frozen lower part is
    modes = [module.training for module in pipe.model.modules()]
    before = {name: tensor.clone() for name, tensor in pipe.model.state_dict().items()}
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    found = _measure(pipe, asked)
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(tensor, before[name]) for name, tensor in pipe.model.state_dict().items())
    assert all(p.grad is None for p in pipe.model.parameters())
    assert [module.training for module in pipe.model.modules()] == modes
    assert found.asked == asked and found.seconds.keys() == {"fp32", asked} and min(found.seconds.values()) > 0
    assert found.used == (asked if found.seconds[asked] < found.seconds["fp32"] else "fp32")


def test_the_faster_one_is_used(tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = ws.load(tiny("bert"))
    for seconds, used in ((0.5, "bf16"), (2.0, "fp32"), (1.0, "fp32")):
        low_precision_takes(monkeypatch, seconds)
        assert _measure(pipe, "bf16") == Measured("bf16", used, {"fp32": 1.0, "bf16": seconds})


def test_what_memory_does_not_hold_is_not_measured(tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> float:
        raise MemoryError

    monkeypatch.setattr(precision, "_seconds", full)
    assert _measure(ws.load(tiny("bert")), "bf16") == Measured("bf16", "bf16", {})


def test_only_a_cpu_is_measured_and_only_low_precision() -> None:
    low = TrainConfig(precision="bf16")
    assert is_measured(low, "cpu") and not is_measured(low, "cuda:1") and not is_measured(TrainConfig(), "cpu")


def test_a_record_counts_for_what_was_asked_for() -> None:
    low = TrainConfig(precision="bf16")
    for found in (None, 3, {"asked": "fp16", "used": "fp32"}, {"asked": "bf16", "used": "fp8"}, {"asked": "bf16"}):
        assert recorded({"precision": found}, low) is None
    assert recorded({"precision": {"asked": "bf16", "used": "fp32"}}, low) == Measured("bf16", "fp32", {})


@pytest.mark.parametrize("asked", ["bf16", "fp16"])
def test_where_it_is_slower_the_run_is_that_of_fp32_and_says_so(
    tiny: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    asked: str,
) -> None:
    low_precision_takes(monkeypatch, 2.0)
    with caplog.at_level(logging.WARNING, "warmstart"):
        run = _train(tiny("bert"), tmp_path / "low", precision=asked)
    assert f"{asked} is no faster" in caplog.text and "1 s in fp32" in caplog.text and f"2 s in {asked}" in caplog.text
    assert weights_sha256(run) == weights_sha256(_train(tiny("bert"), tmp_path / "plain"))
    told = json.loads((run.path / "provenance.json").read_text())["precision"]
    assert told == {"asked": asked, "used": "fp32", "seconds": {"fp32": 1.0, asked: 2.0}}
    assert f'precision = "{asked}"' in (run.path / "config.toml").read_text()  # what was asked for


@pytest.mark.parametrize(("seconds", "used"), [(0.5, "bf16"), (2.0, "fp32")])
def test_a_resumed_run_measures_nothing_and_ends_with_the_same_bits(
    tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, used: str
) -> None:
    low_precision_takes(monkeypatch, seconds)
    peace = _train(tiny("bert"), tmp_path / "peace", precision="bf16")
    fp32 = weights_sha256(_train(tiny("bert"), tmp_path / "fp32"))
    assert (weights_sha256(peace) == fp32) == (used == "fp32")

    def interrupt(seen: Any) -> None:
        if seen.step.step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _train(tiny("bert"), tmp_path / "r", precision="bf16", progress=interrupt)

    def never(*_: Any) -> float:
        raise AssertionError("measured again")

    monkeypatch.setattr(precision, "_seconds", never)
    assert weights_sha256(_train(tiny("bert"), tmp_path / "r", precision="bf16")) == weights_sha256(peace)


def test_reproduce_computes_as_the_run_did_or_says_that_it_did_not(
    tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    low_precision_takes(monkeypatch, 2.0)
    slower = _train(tiny("bert"), tmp_path / "slower", data=data, precision="bf16")
    low_precision_takes(monkeypatch, 0.5)
    assert reproduce(slower.path).answer == "bit-identical"  # although it would be faster now
    faster = _train(tiny("bert"), tmp_path / "faster", data=data, precision="bf16")
    assert reproduce(faster.path).answer == "bit-identical"
    low_precision_takes(monkeypatch, 2.0)
    found = reproduce(faster.path)
    assert found.answer == "different" and any("that was faster: " in reason for reason in found.reasons)
