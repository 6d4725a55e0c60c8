"""What the loop leaves as it was, and how it ends when numbers are no longer finite."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import warmstart as ws
from support.runs import reviews, without_dropout
from warmstart.rows import texts
from warmstart.training.batches import make_batches
from warmstart.training.config import TrainConfig
from warmstart.training.loop import Schedule, Step, check_finite, fit
from warmstart.training.optimizers import adamw, scheduler


@pytest.fixture
def pipe(tiny: Callable[..., Path]) -> ws.Pipeline:
    loaded: ws.Pipeline = ws.load(tiny("bert"))
    return loaded


def _fit(pipe: ws.Pipeline, rows: int = 24, stop_after: int | None = None, **settings: Any) -> list[Step]:
    config = TrainConfig(**{"epochs": 1, "batch_size": 4, "learning_rate": 1e-3, **settings})
    planned = make_batches(
        pipe.task, list(texts(reviews(rows))), seed=config.seed, batch_size=config.batch_size, max_tokens=None
    )
    optimizer = adamw(pipe.model, learning_rate=config.learning_rate or 1e-3, weight_decay=config.weight_decay)
    steps: list[Step] = []
    schedule = Schedule.of(planned, config)

    def after_step(step: Step) -> bool:
        steps.append(step)
        return len(steps) == stop_after

    fit(
        pipe.model, pipe.task, planned, config, optimizer, scheduler(optimizer, config, schedule.total),
        device="cpu", schedule=schedule, after_step=after_step,
    )  # fmt: skip
    return steps


def _weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def _equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def _flushes_denormals() -> bool:
    return (torch.tensor([1e-38]) * 0.01).item() == 0


@pytest.fixture
def denormals_kept() -> Iterator[None]:
    yield
    torch.set_flush_denormal(False)


@pytest.mark.usefixtures("denormals_kept")
@pytest.mark.parametrize("before", [False, True])
def test_the_callers_random_state_and_numerics_are_restored(pipe: ws.Pipeline, before: bool) -> None:
    torch.set_flush_denormal(before)
    torch.manual_seed(11)
    expected = torch.rand(4)
    torch.manual_seed(11)
    _fit(pipe, max_steps=2)
    assert torch.equal(torch.rand(4), expected)
    assert _flushes_denormals() is before


@pytest.mark.usefixtures("denormals_kept")
def test_they_are_restored_after_a_failure_too(pipe: ws.Pipeline) -> None:
    torch.set_flush_denormal(False)
    with torch.no_grad():
        pipe.model.bert.embeddings.word_embeddings.weight.fill_(float("inf"))
    torch.manual_seed(11)
    expected = torch.rand(4)
    torch.manual_seed(11)
    with pytest.raises(ws.TrainingError):
        _fit(pipe)
    assert torch.equal(torch.rand(4), expected) and not _flushes_denormals()


def test_denormals_are_flushed_while_it_runs(pipe: ws.Pipeline) -> None:
    seen = []
    pipe.model.classifier.register_forward_hook(lambda *_: seen.append(_flushes_denormals()))
    _fit(pipe, max_steps=1)
    assert seen == [True]


def test_dropout_is_a_function_of_seed_and_step_alone(tiny: Callable[..., Path]) -> None:
    def loss_of(ambient: int, seed: int) -> float:
        torch.manual_seed(ambient)
        return _fit(ws.load(tiny("bert")), seed=seed, max_steps=1)[0].loss

    assert loss_of(1, 0) == loss_of(2, 0)
    plain = ws.load(tiny("bert"))
    without_dropout(plain.model)
    assert _fit(plain, seed=0, max_steps=1)[0].loss != loss_of(1, 0)  # so dropout was on


def test_steps_tell_what_they_did(pipe: ws.Pipeline) -> None:
    steps = _fit(pipe, rows=22, epochs=1.5, accumulate=2)
    assert [step.step for step in steps] == [1, 2, 3, 4, 5]
    assert [step.epoch for step in steps] == pytest.approx([1 / 3, 2 / 3, 1, 4 / 3, 5 / 3])
    assert sum(step.rows for step in steps[:3]) == 22
    assert all(step.tokens >= 5 * step.rows and step.seconds > 0 and step.grad_norm > 0 for step in steps)
    assert max(step.learning_rate for step in steps) == 1e-3


def test_after_step_ends_the_run(pipe: ws.Pipeline) -> None:
    assert len(_fit(pipe, stop_after=2)) == 2


def test_r73_a_loss_that_is_not_finite_leaves_the_weights_as_they_were(pipe: ws.Pipeline) -> None:
    _fit(pipe, max_steps=1)  # the healthy twin
    with torch.no_grad():
        pipe.model.bert.embeddings.word_embeddings.weight[5:] = float("inf")
    before = _weights(pipe.model)
    with pytest.raises(ws.TrainingError) as caught:
        _fit(pipe)
    assert caught.value.code == "loss-not-finite" and "step 1" in str(caught.value.where)
    assert "learning_rate" in caught.value.fix
    assert _equal(_weights(pipe.model), before)


def test_r73_a_gradient_that_is_not_finite_leaves_the_weights_as_they_were(pipe: ws.Pipeline) -> None:
    _fit(pipe, max_steps=1)  # the healthy twin
    pipe.model.classifier.register_full_backward_hook(lambda module, inputs, outputs: (inputs[0] * float("inf"),))
    before = _weights(pipe.model)
    with pytest.raises(ws.TrainingError) as caught:
        _fit(pipe)
    assert caught.value.code == "loss-not-finite" and "gradient norm" in caught.value.what
    assert str(caught.value.where) == "step 1"
    assert _equal(_weights(pipe.model), before)


def test_r77_a_hostile_rate_ends_in_an_error_that_names_the_step(pipe: ws.Pipeline, tiny: Callable[..., Path]) -> None:
    healthy = ws.load(tiny("bert"))
    check_finite(healthy.model, len(_fit(healthy, epochs=3, weight_decay=0)))
    with pytest.raises(ws.TrainingError) as caught:
        _fit(pipe, learning_rate=1e38, epochs=3, weight_decay=0)
        check_finite(pipe.model, 18)
    assert caught.value.code in ("loss-not-finite", "weights-not-finite")
    assert "step" in str(caught.value.where)


def test_r73_weights_that_are_not_finite_are_named(pipe: ws.Pipeline) -> None:
    check_finite(pipe.model, 3)  # the healthy twin
    with torch.no_grad():
        pipe.model.classifier.weight[0, 0] = float("nan")
    with pytest.raises(ws.TrainingError) as caught:
        check_finite(pipe.model, 3)
    assert caught.value.code == "weights-not-finite" and caught.value.value == "classifier.weight"
    assert str(caught.value.where) == "step 3"


def test_bfloat16_runs_on_a_cpu_and_keeps_float32_weights(pipe: ws.Pipeline) -> None:
    kinds = []
    pipe.model.bert.encoder.layer[0].register_forward_hook(
        lambda module, inputs, outputs: kinds.append(module.intermediate.dense(inputs[0]).dtype)
    )
    steps = _fit(pipe, precision="bf16", epochs=2)
    assert set(kinds) == {torch.bfloat16}
    assert all(parameter.dtype == torch.float32 for parameter in pipe.model.parameters())
    assert all(step.loss > 0 for step in steps)
