"""R75, R78, F88: what goes wrong around a run.

R73, R77: tests/training and test_train_refusals.py; R76, R79, R80: tests/verbs.
"""

from __future__ import annotations

import itertools
import json
import logging
import multiprocessing
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import warmstart as ws
from support.runs import FAST, reviews, weights_sha256
from warmstart.errors import WarmstartError
from warmstart.tasks import TASKS

ROWS = reviews(24)


def _train(checkpoint: Path, output: Path, **config: Any) -> ws.Run:
    settings = {"epochs": 1, "save_every": 1, **FAST, **config}
    return ws.train(checkpoint, ROWS, output=output, config=ws.TrainConfig(**settings))


def _vary(monkeypatch: pytest.MonkeyPatch, fault: Callable[[int], None]) -> None:
    """Make a batch's features meet a fault, by their row."""
    kind = TASKS["text-classification"]
    real = kind.vary

    def vary(self: Any, feature: Any, rng: np.random.Generator) -> Any:
        fault(feature.row)
        return real(self, feature, rng)

    monkeypatch.setattr(kind, "vary", vary)


def _awaited(error: WarmstartError) -> list[int]:
    """The rows of the batch that a lost worker was to make."""
    rows: list[int] = json.loads(str(error.value).partition(": ")[2])
    return rows


@pytest.mark.parametrize("workers", [0, 1])
def test_r75_a_row_that_cannot_be_collated_is_named(
    tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    assert _train(tiny("bert"), tmp_path / "healthy", workers=workers).steps == 3

    def fault(row: int) -> None:
        if row == 17:
            raise ZeroDivisionError("row 17 is odd")

    _vary(monkeypatch, fault)
    started = time.monotonic()
    with pytest.raises(ws.TrainingError) as caught:
        _train(tiny("bert"), tmp_path / "r", workers=workers)
    assert time.monotonic() - started < 15
    assert caught.value.code == "batch-failed" and "row 17 is odd" in caught.value.what
    assert caught.value.where.row is not None and " 17" in str(caught.value.value) and "rows" in caught.value.fix


def test_r75_a_worker_that_is_killed_ends_the_run_with_an_error(
    tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = os.getpid()

    def fault(row: int) -> None:
        if row == 17 and os.getpid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)

    _vary(monkeypatch, fault)
    started = time.monotonic()
    with pytest.raises(ws.TrainingError) as caught:
        _train(tiny("bert"), tmp_path / "r", workers=1)
    assert time.monotonic() - started < 15
    assert caught.value.code == "worker-lost" and "epoch 0" in str(caught.value.where)
    assert "workers=0" in caught.value.fix and caught.value.where.row is not None
    assert 17 in _awaited(caught.value) and len(_awaited(caught.value)) == 8
    monkeypatch.undo()
    again = _train(tiny("bert"), tmp_path / "r", workers=0)  # as it says
    assert weights_sha256(again) == weights_sha256(_train(tiny("bert"), tmp_path / "healthy"))


@pytest.mark.parametrize("moment", ["gradients", "progress"])
def test_r75_a_worker_that_is_killed_while_the_main_process_works_ends_the_run_with_the_same_error(
    tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """torch's handler of SIGCHLD raises in whatever that process is at."""
    from warmstart.training import loop

    def kill_a_worker() -> None:
        worker = multiprocessing.active_children()[0]
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGKILL)
        time.sleep(5)  # which the handler's error ends

    calls = itertools.count(1)
    real = loop.add_gradients

    def add_gradients(*args: Any, **more: Any) -> Any:
        if moment == "gradients" and next(calls) == 2:
            kill_a_worker()
        return real(*args, **more)

    def progress(told: Any) -> None:
        if moment == "progress" and told.step.step == 2:
            kill_a_worker()

    monkeypatch.setattr(loop, "add_gradients", add_gradients)
    config = ws.TrainConfig(**{"epochs": 2, "save_every": 1, "workers": 1, **FAST})
    with pytest.raises(ws.TrainingError) as caught:
        ws.train(tiny("bert"), ROWS, output=tmp_path / "r", config=config, progress=progress)
    assert caught.value.code == "worker-lost" and "epoch 0, batch 2" in str(caught.value.where)
    assert "killed" in caught.value.what and len(_awaited(caught.value)) == 8


def test_r75_a_worker_that_hangs_ends_the_run_with_an_error(
    tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = os.getpid()

    def fault(row: int) -> None:
        if row == 17 and os.getpid() != parent:
            time.sleep(60)

    monkeypatch.setattr("warmstart.training.fetching.WORKER_SECONDS", 3.0)
    assert _train(tiny("bert"), tmp_path / "healthy", workers=1).steps == 3
    _vary(monkeypatch, fault)
    started = time.monotonic()
    with pytest.raises(ws.TrainingError) as caught:
        _train(tiny("bert"), tmp_path / "r", workers=1)
    assert time.monotonic() - started < 15 and caught.value.code == "worker-lost"
    assert "timed out" in caught.value.what
    assert 17 in _awaited(caught.value) and len(_awaited(caught.value)) == 8


def test_r78_a_clock_that_jumps_changes_no_duration(
    tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, jumps = time.time, iter(range(10**6))
    for name in ("healthy", "jumping"):
        if name == "jumping":
            monkeypatch.setattr(time, "time", lambda: real() - 3600 * next(jumps))
        seen: list[float] = []
        run = ws.train(
            tiny("bert"), ROWS, output=tmp_path / name, config=ws.TrainConfig(epochs=1, **FAST),
            progress=lambda progress, seen=seen: seen.append(progress.step.seconds),
        )  # fmt: skip
        assert run.steps == len(seen) == 3 and all(0 < seconds < 20 for seconds in seen)


def test_f88_a_disk_that_takes_no_snapshot_ends_no_run_and_says_what_is_needed(
    tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    healthy = _train(tiny("bert"), tmp_path / "healthy")
    from warmstart.training import snapshots

    real = snapshots.write_tensors

    def full(path: Path, tensors: Any) -> str:
        if "step-000002" in str(path):
            raise OSError(28, "No space left on device", str(path))
        return real(path, tensors)

    monkeypatch.setattr(snapshots, "write_tensors", full)
    with caplog.at_level(logging.WARNING, logger="warmstart"):
        run = _train(tiny("bert"), tmp_path / "r")
    [said] = [record.message for record in caplog.records if "no snapshot of step 2" in record.message]
    assert "No space left on device" in said and "MB are free" in said and "the run goes on" in said
    assert weights_sha256(run) == weights_sha256(healthy)
    assert [path.name for path in sorted((run.path / "checkpoints").iterdir())] == ["step-000001", "step-000003"]


def test_f88_a_disk_that_takes_no_result_keeps_the_snapshot_from_which_the_same_call_goes_on(
    tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from warmstart.checkpoints import save

    real = save.write_model

    def full(model: Any, tokenizer: Any, folder: Path) -> None:
        if ".model.tmp-" in str(folder):
            raise OSError(28, "No space left on device", str(folder))
        real(model, tokenizer, folder)

    monkeypatch.setattr(save, "write_model", full)
    with pytest.raises(WarmstartError) as caught:
        _train(tiny("bert"), tmp_path / "r")
    assert caught.value.code == "save-failed" and "free space" in caught.value.fix
    assert re.search(
        r"it takes [\d,.]*[1-9]\d* MB, 0\.0 MB were written, and [\d,]+\.\d MB are free", caught.value.what
    )
    assert str(caught.value.where) == str(tmp_path / "r" / "model")
    assert not (tmp_path / "r" / "model").exists()
    assert (tmp_path / "r" / "checkpoints" / "step-000003" / "MANIFEST.json").exists()
    monkeypatch.undo()
    again = _train(tiny("bert"), tmp_path / "r")
    assert weights_sha256(again) == weights_sha256(_train(tiny("bert"), tmp_path / "healthy"))
