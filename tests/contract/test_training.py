"""What every task that can be trained must be: exact in its gradients, the same after saving, and able to learn."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from cases import Loaded, Trained
from test_predicting import close, dicts, inputs_of

import warmstart as ws
from warmstart.batching import collate
from warmstart.cli.main import run
from warmstart.engine.runtime_torch import TorchRuntime, to_tensors
from warmstart.errors import DataError
from warmstart.randomness import generator
from warmstart.tasks import as_dict
from warmstart.tasks.contract import Generates, NeedsExam
from warmstart.training.batches import make_batches
from warmstart.training.loop import Schedule, fit

# --- learning -------------------------------------------------------------------------------------------------------


def test_overfits_a_handful_of_rows(trained: Trained) -> None:
    before = ws.evaluate(trained.before.pipe, trained.before.case.rows())
    after = ws.evaluate(trained.run.pipeline, trained.before.case.rows())
    assert after.loss < 0.2 * before.loss
    if "correct" in after.per_example:
        assert after.per_example["correct"].all()


def test_training_leaves_nothing_in_train_mode(trained: Trained) -> None:
    assert not any(module.training for module in trained.run.pipeline.model.modules())
    rows = inputs_of(trained.before)
    assert dicts(trained.run.pipeline(rows)) == dicts(trained.run.pipeline(rows))


# --- saving ---------------------------------------------------------------------------------------------------------


def test_saved_and_loaded_is_the_same(trained: Trained) -> None:
    again = ws.load(trained.run.path, device="cpu")
    rows = inputs_of(trained.before)
    assert dicts(again(rows)) == dicts(trained.run.pipeline(rows))
    task, other = trained.run.pipeline.task, again.task
    assert type(task) is type(other)
    assert task.tokenizer.limit == other.tokenizer.limit
    for name in task.option_names:
        assert task.__dict__[name] == other.__dict__[name]


def test_plain_transformers_loads_it(trained: Trained) -> None:
    """The saved folder, without a line of ours, gives the same outputs for the same features."""
    task = trained.run.pipeline.task
    model = getattr(transformers, task.auto_class).from_pretrained(trained.run.model, dtype=torch.float32)
    features = list(task.encode(inputs_of(trained.before)))
    batch = collate(features, task.pads)
    plain = TorchRuntime(model, task, "cpu").run(batch)
    ours = trained.run.pipeline.runtime.run(batch)
    assert plain.keys() == ours.keys()
    real = batch.inputs["attention_mask"] == 1
    for name in plain:
        where = real if plain[name].shape[:2] == real.shape else ...  # what is computed of padding counts for nothing
        np.testing.assert_allclose(plain[name][where], ours[name][where], rtol=1e-5, atol=1e-6)
    tokenizer = transformers.AutoTokenizer.from_pretrained(trained.run.model)
    text = "I love this film"
    assert tokenizer(text)["input_ids"] == trained.before.pipe.tokenizer(text)["input_ids"]


# --- exactness ------------------------------------------------------------------------------------------------------


def _gradients(loaded: Loaded, batch_size: int, accumulate: int) -> tuple[dict[str, torch.Tensor], float]:
    """The gradients of one optimizer step over six rows, and the step's loss. Dropout is off: its masks are drawn a
    batch, so they differ by construction. Double precision, as rows of different labels all but cancel each other."""
    model = ws.load(
        loaded.folder, task=loaded.case.task, options=loaded.case.options, device="cpu", dtype="float64"
    ).model
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    task = loaded.pipe.task
    batches = make_batches(task, loaded.rows[:6], seed=0, batch_size=batch_size, max_tokens=None)
    config = ws.TrainConfig(epochs=1, batch_size=batch_size, accumulate=accumulate, clip=None, device="cpu")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    found: dict[str, torch.Tensor] = {}

    def keep(*_: Any) -> None:
        assert not found, "more than one optimizer step"
        found.update({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})

    optimizer.register_step_pre_hook(keep)
    losses: list[float] = []
    fit(
        model,
        task,
        batches,
        config,
        optimizer,
        torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0),
        device="cpu",
        schedule=Schedule.of(batches, config),
        after_step=lambda step: bool(losses.append(step.loss)),
    )
    return found, losses[0]


def test_accumulating_gives_the_same_gradients(trainable: Loaded) -> None:
    if trainable.pipe.task.couples_rows:
        return  # the contract excepts these, and refuses accumulation for them
    whole, loss = _gradients(trainable, 6, 1)
    assert any(gradient.abs().max() > 0 for gradient in whole.values())
    for batch_size, accumulate in ((2, 3), (4, 2)):
        parts, same_loss = _gradients(trainable, batch_size, accumulate)
        assert parts.keys() == whole.keys()
        assert math.isclose(loss, same_loss, rel_tol=1e-5)
        for name, gradient in whole.items():
            torch.testing.assert_close(parts[name], gradient, rtol=1e-5, atol=1e-12, msg=name)


def test_evaluation_does_not_depend_on_batch_size(trainable: Loaded) -> None:
    task, rows = trainable.pipe.task, trainable.rows
    alone = task.score(list(trainable.pipe.judge_rows(rows, max_tokens=1)), rows)
    together = task.score(list(trainable.pipe.judge_rows(rows, max_tokens=10**6)), rows)
    assert alone.per_example["loss"].shape == (len(rows),)
    for name, values in alone.per_example.items():
        np.testing.assert_allclose(np.asarray(values, float), np.asarray(together.per_example[name], float), atol=1e-5)
    assert alone.metrics.keys() == together.metrics.keys()
    for name, metric in alone.metrics.items():
        # A correlation magnifies the last bits of an untrained model's all but equal numbers.
        assert close(metric.as_dict(), together.metrics[name].as_dict(), 1e-3)
        assert metric.lo <= metric.value <= metric.hi


def test_the_loss_of_evaluation_is_the_loss_of_training(trainable: Loaded) -> None:
    """Numpy's judgement and torch's loss agree, row for row; what a row is cut into weighs as much as it."""
    task, rows = trainable.pipe.task, trainable.rows
    features = list(task.exam(rows) if isinstance(task, NeedsExam) else task.encode(rows, train=True))
    tensors = to_tensors(collate(features, task.pads), "cpu")
    with torch.inference_mode():
        losses, weights = task.loss(task.forward(trainable.pipe.model, tensors), tensors)
    assert losses.shape == weights.shape
    # A loss over tokens weighs every target the same; any other every row.
    per_token = [name for name in tensors.targets if task.pads[name].per_token]
    trained = sum((tensors.targets[name] != task.pads[name].value).sum().item() for name in per_token)
    assert math.isclose(weights.sum().item(), trained if per_token else len(rows), rel_tol=1e-6)
    if len(losses) == len(rows):
        judged = task.score(list(trainable.pipe.judge_rows(rows)), rows)
        np.testing.assert_allclose(losses.numpy(), judged.per_example["loss"], atol=1e-5)


def test_targets_stand_apart_from_inputs(trainable: Loaded) -> None:
    task = trainable.pipe.task
    bare, full = list(task.encode(trainable.rows)), list(task.encode(trainable.rows, train=True))
    # A decoder reads what it shall write: there, the targets are part of the inputs, each behind what it is judged by.
    # That no prompt holds any of them is what `test_labels_do_not_leak_into_encoding` sees.
    reads_its_targets = isinstance(task, Generates) and task.auto_class == "AutoModelForCausalLM"
    for without, with_targets in zip(bare, full, strict=not reads_its_targets):
        assert with_targets.targets
        assert not with_targets.targets.keys() & with_targets.inputs.keys()
        assert with_targets.targets.keys() <= task.pads.keys()
        assert reads_its_targets or all(
            without.inputs[name].tobytes() == array.tobytes() for name, array in with_targets.inputs.items()
        )
        varied = task.vary(with_targets, generator(0, "vary"))
        assert varied.targets.keys() == with_targets.targets.keys()


# --- faults and the command line ------------------------------------------------------------------------------------


def test_a_bad_target_names_its_row_and_field(trainable: Loaded, tmp_path: Path) -> None:
    targets = [field.name for field in trainable.pipe.task.fields if field.target]
    if not targets or targets[0] not in trainable.rows[0]:
        assert all(field.optional for field in trainable.pipe.task.fields if field.target)
        return
    [target] = targets
    for bad in ({"a": 1}, None, b"x"):
        rows = trainable.case.rows()
        # One bad item of a list: a bare value among lists is a fault of the whole column.
        wrong = [bad] if isinstance(rows[3][target], list) and bad is not None else bad
        rows[3] = rows[3] | {target: wrong}
        with pytest.raises(DataError) as caught:
            ws.train(trainable.folder, rows, output=tmp_path / "run", task=trainable.case.task)
        assert (caught.value.where.row, caught.value.where.field) == (3, target), str(caught.value)
        with pytest.raises(DataError) as caught:
            ws.evaluate(trainable.pipe, rows)
        assert (caught.value.where.row, caught.value.where.field) == (3, target), str(caught.value)
    assert not (tmp_path / "run").exists()


def test_truncation_while_training_and_judging_is_said(trainable: Loaded, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "warmstart"):
        predictions = ws.evaluate(trainable.pipe, trainable.case.rows()).predictions
    words = ("were cut", "are longer than")  # once: what generates says it of all rows before it begins
    said = [record.message for record in caplog.records if any(word in record.message for word in words)]
    assert len(said) == any(prediction.truncated for prediction in predictions)


def test_evaluate_on_the_command_line_is_the_library(
    trainable: Loaded, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in trainable.case.rows()), encoding="utf-8")
    options = [part for name, value in trainable.case.options.items() for part in ("--option", f"{name}={value}")]
    arguments = ["evaluate", "-m", str(trainable.folder), "-d", str(data), "--device", "cpu", "--json", *options]
    assert run([*arguments, "--task", trainable.case.task]) == 0
    assert json.loads(capsys.readouterr().out) == ws.evaluate(trainable.pipe, str(data)).as_dict()


def test_predict_of_a_run_on_the_command_line(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = inputs_of(trained.before)[:2]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert run(["predict", "-m", str(trained.run.path), "--device", "cpu", "--json", "-i", str(data)]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    expected = [as_dict(prediction) for prediction in trained.run.pipeline(rows)]
    assert [{name: line[name] for name in expected[0]} for line in lines] == expected
