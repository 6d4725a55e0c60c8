"""B×1 = 1×B before the first step: true for our models and tasks, and told where it is not."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import warmstart as ws
from support.runs import reviews
from warmstart.rows import texts
from warmstart.training.additive import TOLERANCE, check_additive
from warmstart.training.batches import make_batches
from warmstart.training.config import TrainConfig


def _check(pipe: ws.Pipeline, rows: int = 12, **settings: Any) -> float | None:
    config = TrainConfig(**settings)
    planned = make_batches(pipe.task, list(texts(reviews(rows))), seed=0, batch_size=4, max_tokens=None)
    return check_additive(pipe.model, pipe.task, planned, config, device="cpu")


@pytest.mark.parametrize("family", ["bert", "distilbert", "roberta", "modernbert", "gpt2"])
def test_two_rows_give_the_gradient_they_give_one_by_one(tiny: Callable[..., Path], family: str) -> None:
    found = _check(ws.load(tiny(family)), accumulate=3)
    assert found is not None and found < TOLERANCE / 10


def test_masked_language_and_weighted_losses_too(tiny: Callable[..., Path]) -> None:
    found = _check(ws.load(tiny("bert", "masks"), task="fill-mask"), accumulate=3)
    assert found is not None and found < TOLERANCE / 10


def test_nothing_is_left_changed(tiny: Callable[..., Path]) -> None:
    pipe = ws.load(tiny("bert"))
    pipe.model.train()
    before = {name: tensor.clone() for name, tensor in pipe.model.state_dict().items()}
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    _check(pipe)
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(tensor, before[name]) for name, tensor in pipe.model.state_dict().items())
    assert all(p.grad is None for p in pipe.model.parameters()) and all(m.training for m in pipe.model.modules())


def test_rows_that_depend_on_each_other_are_refused_with_accumulation_and_told_without(
    tiny: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    pipe = ws.load(tiny("bert"))

    def centred(module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        return output - output.mean(dim=0, keepdim=True) / 2  # as a batch norm would

    pipe.model.classifier.register_forward_hook(centred)
    with pytest.raises(ws.TrainingError) as caught:
        _check(pipe, accumulate=2)
    assert caught.value.code == "gradient-not-additive" and "accumulate" in caught.value.fix
    with caplog.at_level(logging.WARNING, logger="warmstart"):
        found = _check(pipe)
    assert found is not None and found > 0.01 and "depend on batch_size" in caplog.text


def test_a_loss_that_is_a_mean_over_the_batch_is_found(tiny: Callable[..., Path], monkeypatch: Any) -> None:
    """The fault of transformers 5.23's Trainer for encoder heads: gradients too large by the number of batches."""
    pipe = ws.load(tiny("bert"))
    real = type(pipe.task).loss

    def mean(self: Any, outputs: Any, batch: Any) -> Any:
        losses, weights = real(self, outputs, batch)
        return losses / len(losses), weights

    monkeypatch.setattr(type(pipe.task), "loss", mean)
    with pytest.raises(ws.TrainingError) as caught:
        _check(pipe, accumulate=2)
    assert "differs by" in caught.value.what


def test_one_row_has_nothing_to_compare(tiny: Callable[..., Path]) -> None:
    assert _check(ws.load(tiny("bert")), rows=1) is None
