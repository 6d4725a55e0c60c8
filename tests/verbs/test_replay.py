"""R73: a step that is not finite is kept before it is made, and one command computes it again."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import warmstart as ws
from support.runs import low_precision_takes, reviews
from warmstart.cli.main import run as command
from warmstart.training import loop
from warmstart.training.loop import Guards
from warmstart.training.nonfinite import BadStep
from warmstart.verbs import fitting
from warmstart.verbs.replay import replay


def _rows(count: int, bad: int | None, value: float = 3e38) -> list[dict[str, Any]]:
    """Rows of a regression, one of which has a value whose square is no float32."""
    return [{"text": row["text"], "label": value if i == bad else i % 3 + 0.5} for i, row in enumerate(reviews(count))]


def _train(checkpoint: Path, output: Path, rows: list[dict[str, Any]] | Path, **settings: Any) -> ws.Run:
    return ws.train(
        checkpoint,
        rows,
        output=output,
        task="text-classification",
        config=ws.TrainConfig(**{"epochs": 2, "batch_size": 4, "save_every": 1, "keep": 9, **settings}),
    )


def _keep_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step is kept as one that is not finite would be, and made all the same."""
    real = loop._gradient

    def gradient(model: Any, task: Any, micro: Any, config: Any, optimizer: Any, guards: Guards, **more: Any) -> Any:
        loss, norm = real(model, task, micro, config, optimizer, guards, **more)
        seed = loop.derive(config.seed, "dropout", more["step"] - 1)
        guards.keep(BadStep(more["step"], loss, norm, tuple(micro), seed, more["device"], config.precision, 1.0))
        return loss, norm

    monkeypatch.setattr(loop, "_gradient", gradient)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_r73_a_loss_that_is_not_finite_is_kept_with_its_row(
    tiny: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], accumulate: int
) -> None:
    file = tmp_path / "train.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in _rows(24, bad=13)))
    with pytest.raises(ws.TrainingError) as caught:
        _train(tiny("bert"), tmp_path / "run", file, accumulate=accumulate)
    assert caught.value.code == "loss-not-finite"
    [folder] = (tmp_path / "run" / "nonfinite").iterdir()
    assert caught.value.where.source == str(folder) and f"warmstart replay {folder}" in caught.value.fix
    step = int(folder.name.removeprefix("step-"))
    metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in metrics] == list(range(1, step))  # it was not made
    kept = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert kept == [f"step-{n:06d}" for n in range(1, step)]  # the last good ones
    assert not list(tmp_path.rglob("*.pkl")) and (folder / "MANIFEST.json").is_file()

    found = replay(folder)
    assert found.step == step and found.same and not math.isfinite(found.loss) and not found.finite
    [row] = [row for row in found.rows if not row.finite]
    assert row.row == 13 and row.place == f"{file}:14"
    assert len(found.rows) == 4 * accumulate and len({row.row for row in found.rows}) == 4 * accumulate
    if step > 1:  # the weights are those before the step
        before = ws.load(tmp_path / "run" / "checkpoints" / f"step-{step - 1:06d}").model.state_dict()
        after = ws.load(folder).model.state_dict()
        assert all(torch.equal(before[name], after[name]) for name in before)

    assert command(["replay", str(tmp_path / "run")]) == 0
    shown = capsys.readouterr().out
    assert f"{file}:14" in shown and "as then" in shown and "gradients that are not finite" in shown
    assert command(["replay", str(folder), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["finite"] is False and len(document["rows"]) == 4 * accumulate


def test_r73_a_gradient_that_is_not_finite_names_the_parameters(
    tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loss of 1e38 is finite; its gradient in the classifier's weight is, and further down it is not."""
    with pytest.raises(ws.TrainingError, match="gradient norm became") as caught:
        _train(tiny("bert"), tmp_path / "run", _rows(8, bad=3, value=1.2e19), batch_size=8)
    assert caught.value.code == "loss-not-finite"
    found = replay(str(caught.value.where))
    assert math.isfinite(found.loss) and not math.isfinite(found.grad_norm) and found.same
    assert [row.row for row in found.rows if not row.finite] == [3]


def test_r73_the_module_where_it_begins_is_named(tiny: Callable[..., Path], tmp_path: Path) -> None:
    """Weights that are not finite, as too high a rate leaves them."""
    pipe = ws.load(tiny("bert"), task="text-classification", labels=["NEGATIVE", "POSITIVE"])
    with torch.no_grad():
        pipe.model.bert.encoder.layer[1].output.dense.weight[0, 0] = float("nan")
    pipe.model.save_pretrained(tmp_path / "broken")
    pipe.tokenizer.save_pretrained(tmp_path / "broken")
    with pytest.raises(ws.TrainingError) as caught:
        ws.train(tmp_path / "broken", reviews(8), output=tmp_path / "run", config=ws.TrainConfig(epochs=1))
    assert caught.value.code == "loss-not-finite"
    found = replay(str(caught.value.where))
    assert found.module == "bert.encoder.layer.1.output.dense" and found.same
    assert len(found.parameters) == found.trained > 20 and not any(row.finite for row in found.rows)


@pytest.mark.parametrize("settings", [{}, {"accumulate": 3, "clip": None}, {"precision": "bf16"}], ids=str)
def test_r73_a_finite_step_is_computed_again_to_the_last_bit(
    tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    """The healthy twin: every step of a run is kept, and each replays with the loss and the norm that were logged."""
    _keep_every_step(monkeypatch)
    low_precision_takes(monkeypatch, 0.5)
    _train(tiny("bert"), tmp_path / "run", _rows(24, None), epochs=1, **settings)
    steps = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(steps) == len(list((tmp_path / "run" / "nonfinite").iterdir())) >= 2
    for step in steps:
        found = replay(tmp_path / "run" / "nonfinite" / f"step-{step['step']:06d}")
        assert (found.loss, found.grad_norm, found.same) == (step["loss"], step["grad_norm"], True)
        assert found.parameters == () and found.module is None and all(row.finite for row in found.rows)


@pytest.mark.parametrize(
    "settings",
    [
        {"loss": ws.Loss(class_weights={"NEGATIVE": 3.0}, label_smoothing=0.1)},
        {"top_layers": ws.TopLayers(layers=1, cache="off")},
        {"top_layers": ws.TopLayers(layers=0, cache="off")},
    ],
    ids=["weighted-labels", "frozen-layers", "head-only"],
)
def test_r73_weighted_labels_and_frozen_layers_are_those_of_the_run(
    tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    """What is frozen has no dropout, in the run as in the replay."""
    _keep_every_step(monkeypatch)
    config = ws.TrainConfig(max_steps=1, batch_size=8, **settings)
    run = ws.train(tiny("bert"), reviews(16), output=tmp_path / "run", config=config)
    step = json.loads((run.path / "metrics.jsonl").read_text().splitlines()[0])
    found = replay(run.path)
    assert (found.loss, found.grad_norm, found.same) == (step["loss"], step["grad_norm"], True)
    kept = json.loads((run.path / "nonfinite" / "step-000001" / "step" / "step.json").read_text())
    assert len(kept["trained"]) == found.trained
    if "loss" in settings:
        assert kept["class_loss"]["smoothing"] == 0.1 and kept["in_eval"] == []
    else:
        assert "bert.embeddings" in kept["in_eval"] and "" not in kept["in_eval"]


def test_r73_a_step_from_kept_states_replays_to_rounding(
    tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """States below the trained layers are computed once, in other batches than the step's."""
    _keep_every_step(monkeypatch)
    config = ws.TrainConfig(max_steps=1, batch_size=8, top_layers=ws.TopLayers(layers=1, cache="memory"))
    run = ws.train(tiny("bert"), reviews(16), output=tmp_path / "run", config=config)
    step = json.loads((run.path / "metrics.jsonl").read_text().splitlines()[0])
    found = replay(run.path)
    assert (found.loss, found.grad_norm) == pytest.approx((step["loss"], step["grad_norm"]), rel=1e-5)


def test_a_step_that_an_earlier_version_kept_is_read(
    tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not say which modules were in eval: all trained."""
    _keep_every_step(monkeypatch)
    run = ws.train(tiny("bert"), reviews(8), output=tmp_path / "run", config=ws.TrainConfig(max_steps=1, batch_size=8))
    [folder] = (run.path / "nonfinite").iterdir()
    document = json.loads((folder / "step" / "step.json").read_text())
    del document["in_eval"]
    (folder / "step" / "step.json").write_text(json.dumps(document))
    (folder / "MANIFEST.json").unlink()
    assert replay(folder).same


def test_r73_a_disk_that_does_not_take_the_step_changes_no_error(
    tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: Any, **__: Any) -> Path:
        raise ws.CheckpointError("save-failed", "saving failed: No space left on device", fix="free space, then go on")

    monkeypatch.setattr(fitting, "write_bad_step", full)
    with pytest.raises(ws.TrainingError) as caught:
        _train(tiny("bert"), tmp_path / "run", _rows(8, bad=3))
    assert caught.value.code == "loss-not-finite" and "could not be kept" in caplog.text
    assert str(caught.value.where).startswith("step ")


def test_what_is_no_kept_step_is_told(tiny: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(ws.UsageError) as usage:
        replay(tmp_path)
    assert usage.value.code == "no-kept-step"
    with pytest.raises(ws.TrainingError):
        _train(tiny("bert"), tmp_path / "run", _rows(8, bad=3))
    [folder] = (tmp_path / "run" / "nonfinite").iterdir()
    path = folder / "step" / "batch.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(ws.CheckpointError) as damaged:
        replay(folder)
    assert damaged.value.code == "manifest-mismatch"
    path.write_bytes(data)
    (folder / "MANIFEST.json").unlink()
    document = json.loads((folder / "step" / "step.json").read_text())
    (folder / "step" / "step.json").write_text(json.dumps(document | {"format": 9}))
    with pytest.raises(ws.CheckpointError) as newer:
        replay(folder)
    assert newer.value.code == "step-unreadable"
    (folder / "step" / "step.json").write_text(json.dumps(document))
    assert replay(folder).same and dataclasses.is_dataclass(replay(folder))
