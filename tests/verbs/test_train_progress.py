"""What `ws.train` tells while it goes; and that nothing which listens or draws can lose a run."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

import warmstart as ws
from support.runs import FAST, reviews, weights_sha256
from warmstart.verbs.fitting import Progress


def test_progress_sees_every_step_and_evaluation(tiny: Callable[..., Path], tmp_path: Path) -> None:
    seen: list[Progress] = []
    rows = reviews(32)
    config = ws.TrainConfig(epochs=2, **FAST)
    run = ws.train(
        tiny("bert"), rows[:24], output=tmp_path / "r", validation=rows[24:], config=config, progress=seen.append
    )
    assert [(p.step.step, p.validation is not None) for p in seen] == [
        (1, False), (2, False), (3, False), (3, True), (4, False), (5, False), (6, False), (6, True),
    ]  # fmt: skip
    assert {p.total for p in seen} == {run.steps} and seen[-1].validation is not None


def test_r76_a_progress_that_raises_is_warned_about_once_and_loses_nothing(
    tiny: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    calls = []

    def broken(progress: Progress) -> None:
        calls.append(progress)
        raise RuntimeError("the tracker is down")

    config = ws.TrainConfig(epochs=1, **FAST)
    healthy = ws.train(tiny("bert"), reviews(24), output=tmp_path / "healthy", config=config)
    with caplog.at_level(logging.WARNING, logger="warmstart"):
        run = ws.train(tiny("bert"), reviews(24), output=tmp_path / "r", config=config, progress=broken)
    assert len(calls) == run.steps == 3
    assert [r.message for r in caplog.records if "tracker is down" in r.message] == [
        "progress failed in step 1; the run goes on: RuntimeError('the tracker is down')"
    ]
    assert weights_sha256(run) == weights_sha256(healthy)


def test_r76_a_report_that_fails_is_warned_about_and_loses_nothing(
    tiny: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(folder: Path) -> None:
        raise ValueError("no page")

    config = ws.TrainConfig(epochs=1)
    healthy = ws.train(tiny("bert"), reviews(8), output=tmp_path / "healthy", config=config)
    assert (healthy.path / "report.html").is_file()
    monkeypatch.setattr("warmstart.verbs.train.write_report", broken)
    with caplog.at_level(logging.WARNING, logger="warmstart"):
        run = ws.train(tiny("bert"), reviews(8), output=tmp_path / "r", config=config)
    [said] = [r.message for r in caplog.records if "report could not be written" in r.message]
    assert "no page" in said and not (run.path / "report.html").exists()
    assert weights_sha256(run) == weights_sha256(healthy) and ws.load(run.path)("good")


def test_an_interrupt_in_progress_ends_the_run(tiny: Callable[..., Path], tmp_path: Path) -> None:
    def interrupt(progress: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ws.train(tiny("bert"), reviews(8), output=tmp_path / "r", progress=interrupt)
    assert not (tmp_path / "r" / "model").exists()
