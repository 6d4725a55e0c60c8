"""B×1 = 1×B before the first step: true for our models and tasks, and told where it is not."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import DataCollatorWithPadding, Trainer, TrainerCallback, TrainingArguments

import warmstart as ws
from support.models import tiny_tokenizer
from support.runs import reviews, without_dropout
from warmstart.rows import texts
from warmstart.training.additive import TOLERANCE, check_additive
from warmstart.training.batches import make_batches
from warmstart.training.config import TrainConfig
from warmstart.training.loop import Schedule, Step, fit


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


def test_where_memory_runs_out_the_log_says_that_nothing_was_compared(
    tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pipe = ws.load(tiny("bert"))

    def exhaust(*_: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(type(pipe.task), "loss", exhaust)
    with caplog.at_level(logging.WARNING, logger="warmstart"):
        assert _check(pipe, accumulate=2) is None
    assert "no gradients were compared" in caplog.text


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


def _compared(pipe: ws.Pipeline, rows: Any, batch_size: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many features each of the check's forward passes had."""
    seen: list[int] = []
    real = type(pipe.task).forward

    def forward(self: Any, model: Any, batch: Any) -> Any:
        seen.append(len(batch))
        return real(self, model, batch)

    monkeypatch.setattr(type(pipe.task), "forward", forward)
    planned = make_batches(pipe.task, list(texts(rows)), seed=0, batch_size=batch_size, max_tokens=None)
    config = TrainConfig(batch_size=batch_size)
    assert check_additive(pipe.model, pipe.task, planned, config, device="cpu") is not None
    return seen


def test_a_batch_is_compared_of_at_most_eight_rows_and_so_many_tokens(
    tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = ws.load(tiny("bert"))
    for batch_size, count in ((1, 2), (2, 2), (5, 5), (8, 8), (32, 8)):
        assert _compared(pipe, reviews(40), batch_size, monkeypatch) == [count, *[1] * count]
        monkeypatch.undo()
    long = [{"text": "wonderful warm story " * 40 + str(i), "label": ("NEGATIVE", "POSITIVE")[i % 2]} for i in range(9)]
    monkeypatch.setattr("warmstart.training.additive.TOKENS", 3 * 128)
    assert _compared(pipe, long, 8, monkeypatch) == [3, 1, 1, 1]
    monkeypatch.undo()
    monkeypatch.setattr("warmstart.training.additive.TOKENS", 1)
    assert _compared(pipe, long, 8, monkeypatch) == [2, 1, 1]


def test_what_only_a_third_row_shows_is_found(tiny: Callable[..., Path]) -> None:
    pipe = ws.load(tiny("bert"))

    def coupled(module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        return torch.cat([output[:2], output[2:] - output[:1] / 2])

    pipe.model.classifier.register_forward_hook(coupled)
    with pytest.raises(ws.TrainingError) as caught:
        _check(pipe, accumulate=2, batch_size=4)
    assert caught.value.code == "gradient-not-additive" and "4 rows in one batch" in caught.value.what


def test_the_trainers_gradient_grows_with_accumulation_and_ours_does_not(
    tiny: Callable[..., Path], tmp_path: Path
) -> None:
    """What docs/verbs/train.md says of transformers 5.23: twelve rows at once, and in three micro-batches of four."""
    norms: dict[str, list[float]] = {"ours": [], "theirs": []}
    steps: list[Step] = []
    rows = reviews(12)
    for size, accumulate in ((12, 1), (4, 3)):
        pipe = ws.load(tiny("bert"))
        planned = make_batches(pipe.task, list(texts(rows)), seed=0, batch_size=size, max_tokens=None)
        model = without_dropout(pipe.model)
        norms["theirs"].append(_trainers_norm(model, planned, size, accumulate, tmp_path / str(size)))
        model.zero_grad()
        config = TrainConfig(batch_size=size, accumulate=accumulate, epochs=1, clip=None)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        rates = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
        fit(
            model, pipe.task, planned, config, optimizer, rates,
            device="cpu", schedule=Schedule.of(planned, config), after_step=lambda step: bool(steps.append(step)),
        )  # fmt: skip
        norms["ours"].append(steps[-1].grad_norm)
    assert norms["ours"][1] == pytest.approx(norms["ours"][0], rel=1e-4)
    assert norms["theirs"][0] == pytest.approx(norms["ours"][0], rel=1e-3)
    if transformers.__version__.startswith("5.23."):
        assert norms["theirs"][1] / norms["theirs"][0] == pytest.approx(3.0, rel=1e-3)


def _trainers_norm(model: Any, planned: Any, size: int, accumulate: int, output: Path) -> float:
    """The norm of the gradient of the Trainer's first step on the rows of `planned`, nothing clipped."""
    examples = [
        {**{name: values.tolist() for name, values in f.inputs.items()}, "labels": int(f.targets["labels"])}
        for row in planned.features
        for f in row
    ]
    arguments = TrainingArguments(
        output_dir=str(output), per_device_train_batch_size=size, gradient_accumulation_steps=accumulate, max_steps=1,
        learning_rate=0.0, weight_decay=0.0, max_grad_norm=0.0, use_cpu=True, report_to=[], save_strategy="no",
        disable_tqdm=True, logging_strategy="no", eval_strategy="no", remove_unused_columns=False,
        dataloader_pin_memory=False,
    )  # fmt: skip
    norms: list[float] = []

    class Watching(TrainerCallback):
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            gradients = [p.grad for p in model.parameters() if p.grad is not None]
            norms.append(torch.nn.utils.get_total_norm(gradients).item())

    tokenizer = tiny_tokenizer("bert")
    trainer = Trainer(
        model=model, args=arguments, train_dataset=examples,  # type: ignore[arg-type]
        data_collator=DataCollatorWithPadding(tokenizer), callbacks=[Watching()],
    )  # fmt: skip
    trainer.train()
    return norms[0]
