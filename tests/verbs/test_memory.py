"""R74: where memory runs out, micro-batches are cut and steps stay what they were; a resumed run cuts alike."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import warmstart as ws
from support.runs import FAST, reviews, weights_sha256, without_dropout
from warmstart.features import Batch
from warmstart.rows import texts
from warmstart.tasks.text_classification import TextClassification
from warmstart.training import gradients, loop
from warmstart.training.batches import make_batches
from warmstart.training.loop import Guards, Schedule, Step, fit
from warmstart.training.memory import Cut, Cuts, cut_batch

ERRORS = {
    "python": MemoryError(),
    "cuda": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "cpu": RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"),
}


class _NoRoom(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, losses: torch.Tensor, error: Any) -> torch.Tensor:
        ctx.error = error
        return losses.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        raise ctx.error


@contextmanager
def room(
    most: int, error: BaseException = ERRORS["python"], where: str = "forward", after: int = 0
) -> Iterator[list[int]]:
    """After so many micro-batches none of more than `most` rows fits any more. Gives the sizes that were tried."""
    real, tried = TextClassification.loss, list[int]()
    given, to_tensors = list[Batch](), gradients.to_tensors

    def give(batch: Batch, device: str) -> Batch:
        given.append(batch)  # of the loop: the check before the first step has a way of its own
        return to_tensors(batch, device)

    def loss(self: Any, outputs: Any, batch: Batch) -> Any:
        tried.append(len(batch))
        losses, weights = real(self, outputs, batch)
        if len(batch) > most and len(given) > after:
            if where == "forward":
                raise error
            losses = _NoRoom.apply(losses, error)
        return losses, weights

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TextClassification, "loss", loss)
        patch.setattr(gradients, "to_tensors", give)
        yield tried


def _train(checkpoint: Path, output: Path, **settings: Any) -> ws.Run:
    config = ws.TrainConfig(**{"epochs": 2, **FAST, "save_every": 1, "keep": 99, **settings})
    return ws.train(checkpoint, reviews(24), output=output, config=config)


def _metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize("error", ERRORS)
def test_r74_the_step_is_the_same_to_rounding(tiny: Callable[..., Path], error: str, where: str) -> None:
    """One step of plain gradient descent, without dropout, in one piece and in pieces of at most 3 rows."""

    def step() -> tuple[Step, dict[str, torch.Tensor]]:
        pipe = ws.load(tiny("bert"))
        model = without_dropout(pipe.model)
        config = ws.TrainConfig(batch_size=8, accumulate=2, max_steps=1, clip=None)
        planned = make_batches(pipe.task, list(texts(reviews(16))), seed=0, batch_size=8, max_tokens=None)
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        made: list[Step] = []
        fit(
            model, pipe.task, planned, config, optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0),
            device="cpu", schedule=Schedule.of(planned, config), after_step=lambda step: bool(made.append(step)),
            guards=Guards(Cuts()),
        )  # fmt: skip
        return made[0], dict(model.named_parameters())

    whole, expected = step()
    with room(3, ERRORS[error], where) as tried:
        cut, found = step()
    assert whole.parts == 1 and cut.parts == 4 and cut.rows == whole.rows == 16 and cut.tokens == whole.tokens
    assert tried[-8:] == [2] * 8 and tried[0] == 8 and 4 in tried
    assert cut.loss == pytest.approx(whole.loss, rel=1e-6) and cut.grad_norm == pytest.approx(whole.grad_norm, rel=1e-5)
    for name, parameter in expected.items():
        torch.testing.assert_close(found[name], parameter, rtol=1e-4, atol=2e-6)


def test_r74_a_cut_is_recorded_and_said(
    tiny: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    healthy = _train(tiny("bert"), tmp_path / "healthy")
    assert {line["parts"] for line in _metrics(healthy.path)} == {1}
    with room(4, after=3), caplog.at_level(logging.WARNING, "warmstart"):  # the fourth step is the first
        run = _train(tiny("bert"), tmp_path / "cut")
    assert "out of memory in step 4" in caplog.text
    assert [line["parts"] for line in _metrics(run.path)] == [1, 1, 1, 2, 2, 2]
    assert json.loads((run.path / "provenance.json").read_text())["cuts"] == [{"from_step": 4, "parts": 2}]
    attempts = [json.loads(line) for line in (run.path / "attempts.jsonl").read_text().splitlines()]
    assert {"attempt": 1, "out_of_memory_in_step": 4, "parts": 2} in attempts and attempts[-1]["ended"] == "finished"
    losses = [[line["loss"] for line in _metrics(path)] for path in (healthy.path, run.path)]
    assert losses[0][:3] == losses[1][:3] and losses[0][3:] != losses[1][3:]


@pytest.mark.parametrize("again", [True, False], ids=["still-too-small", "room-again"])
@pytest.mark.parametrize("stop", [2, 5])
def test_r74_a_resumed_run_cuts_at_the_same_steps_and_has_the_same_bits(
    tiny: Callable[..., Path], tmp_path: Path, stop: int, again: bool
) -> None:  # fmt: skip
    """Memory runs out in step 4. The run is stopped after step 5, and only snapshots up to `stop` are left."""
    with room(4, after=3):
        peace = _train(tiny("bert"), tmp_path / "peace")
    real = loop._update

    def update(optimizer: Any, scaler: Any, step: int) -> None:
        if step == 6:
            raise KeyboardInterrupt
        real(optimizer, scaler, step)

    with room(4, after=3), pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop, "_update", update)
        _train(tiny("bert"), tmp_path / "stopped")
    for path in (tmp_path / "stopped" / "checkpoints").iterdir():
        if int(path.name.removeprefix("step-")) > stop:
            path.rename(tmp_path / f"lost-{path.name}")
    with room(4 if again else 8, after=max(0, 3 - stop)):
        resumed = _train(tiny("bert"), tmp_path / "stopped")
    assert weights_sha256(resumed) == weights_sha256(peace)
    assert [line["parts"] for line in _metrics(resumed.path)] == [1, 1, 1, 2, 2, 2]


def test_r74_a_row_that_does_not_fit_is_named(tiny: Callable[..., Path], tmp_path: Path) -> None:
    with room(0), pytest.raises(ws.TrainingError, match="not even one row") as caught:
        _train(tiny("bert"), tmp_path / "run")
    assert caught.value.code == "memory-exhausted" and caught.value.where.row is not None
    cuts = json.loads((tmp_path / "run" / "provenance.json").read_text())["cuts"]
    assert [cut["parts"] for cut in cuts] == [2, 4, 8]
    ends = json.loads((tmp_path / "run" / "attempts.jsonl").read_text().splitlines()[-1])
    assert ends["ended"] == "failed" and ends["code"] == "memory-exhausted"
    with room(1):  # the healthy twin
        assert _train(tiny("bert"), tmp_path / "healthy").steps == 6


def test_r74_rows_that_learn_from_each_other_are_not_cut(
    tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from warmstart.tasks.sentence_embedding import Embedding

    rows = [{"text": row["text"], "text_pair": f"{row['text']} again"} for row in reviews(8)]

    def train(output: str) -> ws.Run:
        return ws.train(
            tiny("bert", "base"), rows, output=tmp_path / output, task="sentence-embedding",
            config=ws.TrainConfig(epochs=1, batch_size=4),
        )  # fmt: skip

    assert train("healthy").steps == 2

    def forward(*_: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(Embedding, "forward", forward)
    with pytest.raises(ws.TrainingError, match="learns from all rows of a batch together") as caught:
        train("run")
    assert caught.value.code == "memory-exhausted" and str(caught.value.where) == "step 1"


def test_r74_an_optimizer_whose_state_does_not_fit_is_told(
    tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def step(*_: Any, **__: Any) -> None:
        raise ERRORS["cuda"]

    with (
        monkeypatch.context() as patch,
        pytest.raises(ws.TrainingError, match="the state of AdamW does not fit") as caught,
    ):
        patch.setattr(torch.optim.AdamW, "step", step)
        _train(tiny("bert"), tmp_path / "run")
    assert caught.value.code == "memory-exhausted" and str(caught.value.where) == "step 1"
    assert _train(tiny("bert"), tmp_path / "healthy").steps == 6


def test_another_error_of_the_runtime_is_not_taken_for_memory(tiny: Callable[..., Path], tmp_path: Path) -> None:
    with room(0, RuntimeError("mat1 and mat2 shapes differ")), pytest.raises(RuntimeError, match="mat1"):
        _train(tiny("bert"), tmp_path / "run")


def test_a_batch_is_cut_between_rows(tiny: Callable[..., Path]) -> None:
    """All features of a row stay together, in order, and each piece is padded to its own longest."""
    pipe = ws.load(tiny("bert"), options={"long_text": "windows", "max_length": 12, "stride": 2})
    rows = [{"text": row["text"] * (1 + i % 3), "label": row["label"]} for i, row in enumerate(reviews(7))]
    batch = make_batches(pipe.task, list(texts(rows)), seed=0, batch_size=7, max_tokens=None)[0]
    assert len(batch.features) > 7
    for parts in range(1, 10):
        pieces = cut_batch(batch, parts, pipe.task.pads)
        assert [feature for piece in pieces for feature in piece.features] == list(batch.features)
        sizes = [{feature.row for feature in piece.features} for piece in pieces]
        assert len(pieces) == min(parts, 7) and sum(map(len, sizes)) == 7
        assert max(map(len, sizes)) - min(map(len, sizes)) <= 1
        for piece in pieces:
            assert piece.inputs["input_ids"].shape[1] == max(feature.length for feature in piece.features)


def test_cuts_hold_from_their_step_on() -> None:
    cuts = Cuts([Cut(4, 2), Cut(9, 8)])
    assert [cuts.parts_at(step) for step in (1, 3, 4, 8, 9, 99)] == [1, 1, 2, 2, 8, 8]
    assert dataclasses.asdict(Cut(1, 2)) == {"from_step": 1, "parts": 2}
