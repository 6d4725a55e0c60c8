"""The gradient of a step is the gradient of the mean loss, however the rows are cut into micro-batches."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import warmstart as ws
from support.runs import without_dropout
from warmstart.rows import Row
from warmstart.tasks import Task
from warmstart.training.batches import batches, make_batches
from warmstart.training.config import TrainConfig
from warmstart.training.loop import Schedule, Step, fit
from warmstart.training.optimizers import adamw

TEXTS = [
    "good",
    "the film is dull and tired",
    "wonderful warm story " * 6,
    "bad plot",
    "I love the cast, it is great " * 3,
    "sad",
    "worst two hours of my life",
    "fun and happy words that are said",
]
LABELS: dict[str, list[Any]] = {
    "single": ["NEGATIVE", "POSITIVE"] * 4,
    "multi": [["a"], ["a", "b"], [], ["c"], ["b", "c"], ["a", "b", "c"], ["b"], ["a"]],
    "regression": [0.5, -1.25, 3.0, 2.5, -0.75, 0.0, 1.5, 4.25],
}
PROBLEMS = tuple(LABELS)
HEADS = {"single": ("NEGATIVE", "POSITIVE"), "multi": ("a", "b", "c"), "regression": ("score",)}


def _rows(problem: str) -> list[Row]:
    return [Row({"text": text, "label": label}) for text, label in zip(TEXTS, LABELS[problem], strict=True)]


def _ready(checkpoint: Path, problem: str, **options: Any) -> tuple[torch.nn.Module, Task]:
    """A model without dropout, and the task, for a problem; the same weights at every call."""
    torch.manual_seed(0)
    pipe = ws.load(checkpoint, task="text-classification", labels=HEADS[problem], options=options)
    task = dataclasses.replace(pipe.task, problem=problem)
    pipe.model.config.problem_type = task.head()["problem_type"]
    return without_dropout(pipe.model), task


def _sgd_step(
    model: torch.nn.Module, task: Task, rows: list[Row], *, batch_size: int, accumulate: int, clip: float | None = None
) -> tuple[dict[str, torch.Tensor], Step]:
    """What one step of plain gradient descent at rate 1 moves each parameter by, sign turned: the gradient."""
    config = TrainConfig(epochs=1, batch_size=batch_size, accumulate=accumulate, clip=clip, max_steps=1)
    planned = make_batches(task, rows, seed=0, batch_size=batch_size, max_tokens=None)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    steps: list[Step] = []
    fit(
        model, task, planned, config, optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0),
        device="cpu", schedule=Schedule.of(planned, config), after_step=lambda step: bool(steps.append(step)),
    )  # fmt: skip
    assert len(steps) == 1
    return {name: before[name] - p.detach() for name, p in model.named_parameters()}, steps[0]


def _assert_close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(
            one[name], other[name], rtol=1e-4, atol=2e-6, msg=lambda text, n=name: f"{n}: {text}"
        )


def _autograd(model: torch.nn.Module, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    names, parameters = zip(*model.named_parameters(), strict=True)
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    found = zip(names, parameters, gradients, strict=True)
    return {name: torch.zeros_like(p) if gradient is None else gradient for name, p, gradient in found}


@pytest.mark.parametrize("problem", PROBLEMS)
def test_accumulated_micro_batches_give_the_gradient_of_one_batch(tiny: Callable[..., Path], problem: str) -> None:
    rows = _rows(problem)
    whole, step = _sgd_step(*_ready(tiny("bert"), problem), rows, batch_size=8, accumulate=1)
    assert step.rows == 8 and any(gradient.abs().max() > 1e-3 for gradient in whole.values())
    for size in (1, 2, 3):  # 3 leaves a last micro-batch of another size: a mean of means would differ
        parts, other = _sgd_step(*_ready(tiny("bert"), problem), rows, batch_size=size, accumulate=8 // size + 1)
        _assert_close(parts, whole)
        assert other.loss == pytest.approx(step.loss, rel=1e-5) and other.rows == 8
        assert other.grad_norm == pytest.approx(step.grad_norm, rel=1e-4)


@pytest.mark.parametrize("problem", PROBLEMS)
def test_the_gradient_is_that_of_a_textbook_loss(tiny: Callable[..., Path], problem: str) -> None:
    """Tokenized by transformers, its targets written down here, its mean differentiated by autograd."""
    model, task = _ready(tiny("bert"), problem)
    tokenizer = ws.load(tiny("bert")).tokenizer
    logits = model(**tokenizer(TEXTS, padding=True, return_tensors="pt")).logits
    if problem == "single":
        loss = F.cross_entropy(logits, torch.tensor([0, 1] * 4))
    elif problem == "multi":
        truth = torch.tensor([[float(name in chosen) for name in "abc"] for chosen in LABELS["multi"]])
        loss = F.binary_cross_entropy_with_logits(logits, truth)
    else:
        loss = F.mse_loss(logits[:, 0], torch.tensor(LABELS["regression"]))
    expected = _autograd(model, loss)
    found, step = _sgd_step(model, task, _rows(problem), batch_size=3, accumulate=3)
    _assert_close(found, expected)
    assert step.loss == pytest.approx(loss.item(), rel=1e-5)


@pytest.mark.parametrize("family", ["bert", "distilbert", "roberta", "modernbert", "gpt2"])
@pytest.mark.parametrize("problem", PROBLEMS)
def test_the_gradient_is_that_of_transformers_own_loss(tiny: Callable[..., Path], family: str, problem: str) -> None:
    model, task = _ready(tiny(family), problem)
    [batch] = batches(_rows(problem), task, batch_size=8, max_tokens=None)
    loss = model(**batch).loss
    expected = _autograd(model, loss)
    found, step = _sgd_step(model, task, _rows(problem), batch_size=2, accumulate=4)
    _assert_close(found, expected)
    assert step.loss == pytest.approx(loss.item(), rel=1e-4)


def test_every_row_weighs_one_however_many_windows_it_has(tiny: Callable[..., Path]) -> None:
    rows = _rows("single")
    rows[2] = Row({"text": "wonderful warm story " * 40, "label": "NEGATIVE"})
    options = {"long_text": "windows", "max_length": 24, "stride": 4}
    model, task = _ready(tiny("bert"), "single", **options)
    features = list(task.encode(rows, train=True))
    assert len(features) > 12 and len([f for f in features if f.row == 2]) > 4
    total = torch.zeros(())
    for index in range(8):
        pieces = [f for f in features if f.row == index]
        of_row = [
            F.cross_entropy(
                model(**{name: torch.from_numpy(array)[None] for name, array in piece.inputs.items()}).logits,
                torch.from_numpy(piece.targets["labels"])[None],
            )
            for piece in pieces
        ]
        total = total + torch.stack(of_row).mean()
    expected = _autograd(model, total / 8)
    whole, step = _sgd_step(model, task, rows, batch_size=8, accumulate=1)
    _assert_close(whole, expected)
    assert step.rows == 8 and step.loss == pytest.approx(total.item() / 8, rel=1e-5)
    again, _ = _sgd_step(*_ready(tiny("bert"), "single", **options), rows, batch_size=3, accumulate=3)
    _assert_close(again, expected)


def test_clipping_scales_the_mean_gradient_and_tells_its_norm_before(tiny: Callable[..., Path]) -> None:
    rows = _rows("single")
    free, before = _sgd_step(*_ready(tiny("bert"), "single"), rows, batch_size=8, accumulate=1)
    norm = torch.nn.utils.get_total_norm(list(free.values())).item()
    assert before.grad_norm == pytest.approx(norm, rel=1e-4)
    for clip, expected in ((norm / 10, norm / 10), (norm * 10, norm)):
        moved, step = _sgd_step(*_ready(tiny("bert"), "single"), rows, batch_size=3, accumulate=3, clip=clip)
        assert step.grad_norm == pytest.approx(norm, rel=1e-4)
        assert torch.nn.utils.get_total_norm(list(moved.values())).item() == pytest.approx(expected, rel=1e-4)
        _assert_close({name: gradient * (norm / expected) for name, gradient in moved.items()}, free)


@pytest.mark.parametrize("family", ["bert", "distilbert", "roberta", "modernbert", "gpt2"])
def test_norms_and_biases_do_not_decay(tiny: Callable[..., Path], family: str) -> None:
    model = ws.load(tiny(family)).model
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = adamw(model, learning_rate=0.1, weight_decay=0.5)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    spared = [name for name, p in model.named_parameters() if torch.equal(p, before[name])]
    shrunk = [name for name, p in model.named_parameters() if torch.allclose(p, before[name] * 0.95) and p.ndim > 1]
    assert sorted(spared + shrunk) == sorted(before)
    assert all("norm" in name.lower() or "ln_" in name or name.endswith("bias") for name in spared)
    assert not any("norm" in name.lower() or "ln_" in name or name.endswith("bias") for name in shrunk)


def test_adamw_corrects_its_bias(tiny: Callable[..., Path]) -> None:
    """By the formulas of the paper: the first step has the size of the rate, whatever the size of the gradient."""
    model = ws.load(tiny("bert")).model
    optimizer = adamw(model, learning_rate=1e-3, weight_decay=0.0)
    parameter = model.classifier.bias
    moved = torch.zeros_like(parameter)
    first = second = torch.zeros_like(parameter, dtype=torch.float64)
    expected = parameter.detach().double().clone()
    for step, gradient in enumerate((torch.tensor([0.3, -4.0]), torch.tensor([-0.1, 2.0])), start=1):
        before = parameter.detach().clone()
        parameter.grad = gradient.clone()
        optimizer.step()
        moved = parameter.detach() - before
        first = 0.9 * first + 0.1 * gradient.double()
        second = 0.999 * second + 0.001 * gradient.double() ** 2
        expected = expected - 1e-3 * (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
        if step == 1:
            torch.testing.assert_close(moved, torch.tensor([-1e-3, 1e-3]), rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(parameter.detach().double(), expected, rtol=1e-5, atol=1e-8)


def test_r77_a_model_with_nothing_to_train_is_refused(tiny: Callable[..., Path]) -> None:
    model = ws.load(tiny("bert")).model
    assert adamw(model, learning_rate=1e-3, weight_decay=0.0).param_groups  # the healthy twin
    with pytest.raises(ws.TrainingError) as caught:
        adamw(model.requires_grad_(False), learning_rate=1e-3, weight_decay=0.0)
    assert caught.value.code == "nothing-to-train" and "requires_grad_" in caught.value.fix
    assert str(caught.value.where) == type(model).__name__


def test_frozen_parameters_are_left_alone(tiny: Callable[..., Path]) -> None:
    model, task = _ready(tiny("bert"), "single")
    model.bert.embeddings.requires_grad_(False)
    moved, _ = _sgd_step(model, task, _rows("single"), batch_size=8, accumulate=1)
    frozen = [name for name in moved if name.startswith("bert.embeddings.")]
    assert frozen and all(not moved[name].any() for name in frozen)
    assert moved["classifier.weight"].any()
