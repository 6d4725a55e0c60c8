"""`ws.train(optimizer=…, scheduler=…)`: any of torch's, resumed to the last bit, and named by the record."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR, ReduceLROnPlateau, StepLR

import warmstart as ws
from support.runs import low_precision_takes, reviews, weights_sha256

PAIRS: dict[str, tuple[Callable[..., Any], Callable[..., Any] | None]] = {
    "sgd-one-cycle": (
        lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9),
        lambda optimizer, total: OneCycleLR(optimizer, 0.2, total),
    ),
    "adagrad-step": (
        lambda params: torch.optim.Adagrad(params, lr=0.01),
        lambda optimizer, total: StepLR(optimizer, 2),
    ),
    "groups": (
        lambda params: torch.optim.RMSprop([{"params": params[:3], "lr": 1e-4}, {"params": params[3:]}], lr=1e-3),
        None,
    ),
}


def _train(checkpoint: Path, output: Path, pair: str = "sgd-one-cycle", **given: Any) -> ws.Run:
    optimizer, scheduler = PAIRS[pair]
    config = ws.TrainConfig(epochs=2, batch_size=8, save_every=2, keep=9, **given.pop("settings", {}))
    given = {"optimizer": optimizer, "scheduler": scheduler, **given}
    return ws.train(checkpoint, reviews(24), output=output, config=config, **given)


@pytest.mark.parametrize("pair", PAIRS)
def test_an_interrupted_run_ends_with_the_bits_of_one_that_was_not(
    tiny: Callable[..., Path], tmp_path: Path, pair: str
) -> None:
    peace = _train(tiny("bert"), tmp_path / "peace", pair)
    rates = [json.loads(line)["learning_rate"] for line in (peace.path / "metrics.jsonl").read_text().splitlines()]
    assert peace.steps == 6 and len(set(rates)) > 1

    def stop(progress: Any) -> None:
        if progress.step.step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _train(tiny("bert"), tmp_path / "stopped", pair, progress=stop)
    resumed = _train(tiny("bert"), tmp_path / "stopped", pair)
    starts = [json.loads(line) for line in (resumed.path / "attempts.jsonl").read_text().splitlines()]
    assert [line["began_at"] for line in starts if "began_at" in line] == [0, 4]
    assert weights_sha256(resumed) == weights_sha256(peace)


def test_r80_another_optimizer_is_refused_with_the_difference(tiny: Callable[..., Path], tmp_path: Path) -> None:
    run = _train(tiny("bert"), tmp_path / "run")
    provenance = json.loads((run.path / "provenance.json").read_text())
    assert provenance["optimizer"]["class"] == "torch.optim.sgd.SGD"
    assert provenance["optimizer"]["groups"][0]["momentum"] == 0.9
    assert provenance["scheduler"]["class"] == "torch.optim.lr_scheduler.OneCycleLR"
    for other in (
        {"pair": "adagrad-step"},
        {"optimizer": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.8)},
        {"optimizer": None, "scheduler": None},
    ):
        with pytest.raises(ws.UsageError, match="optimizer") as caught:
            _train(tiny("bert"), run.path, **other)
        assert caught.value.code == "resume-differs" and str(caught.value.where).startswith(str(run.path))
    assert _train(tiny("bert"), run.path).steps == 6  # the healthy twin
    from warmstart.verbs.reproduce import reproduce

    with pytest.raises(ws.UsageError) as unknown:
        reproduce(run.path, data=reviews(24))
    assert unknown.value.code == "recipe-without-optimizer"


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ({"optimizer": lambda params: 3}, "optimizer-unfit"),
        ({"optimizer": torch.optim.LBFGS}, "optimizer-unfit"),
        ({"scheduler": lambda optimizer, total: ReduceLROnPlateau(optimizer)}, "optimizer-unfit"),
        ({"scheduler": lambda optimizer, total: None}, "optimizer-unfit"),
        ({"optimizer": None, "scheduler": lambda optimizer, total: LambdaLR(optimizer, float)}, "optimizer-unfit"),
        ({"settings": {"learning_rate": 0.1}}, "optimizer-and-setting"),
        ({"settings": {"schedule": "cosine"}}, "optimizer-and-setting"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_first_step(
    tiny: Callable[..., Path], tmp_path: Path, given: dict[str, Any], code: str
) -> None:
    with pytest.raises(ws.UsageError) as caught:
        _train(tiny("bert"), tmp_path / "run", **given)
    assert caught.value.code == code and not (tmp_path / "run").exists()


def test_a_plateau_scheduler_is_stepped_by_the_validation_loss_and_resumed(
    tiny: Callable[..., Path], tmp_path: Path
) -> None:
    """Its rate falls where the loss does not, and a run that is interrupted goes on with what it has seen."""

    def train(name: str, progress: Any = None) -> ws.Run:
        return ws.train(
            tiny("bert"), reviews(24), output=tmp_path / name, validation=reviews(40)[24:], progress=progress,
            config=ws.TrainConfig(epochs=3, batch_size=8, save_every=1, keep=9, evaluate_every=2),
            optimizer=lambda params: torch.optim.SGD(params, lr=0.5),
            scheduler=lambda optimizer, total: ReduceLROnPlateau(optimizer, factor=0.5, patience=0, threshold=0.02),
        )  # fmt: skip

    def stop(progress: Any) -> None:
        if progress.step.step == 5 and progress.validation is None:
            raise KeyboardInterrupt

    peace = train("peace")
    lines = [json.loads(line) for line in (peace.path / "metrics.jsonl").read_text().splitlines()]
    twin = ReduceLROnPlateau(
        torch.optim.SGD([torch.zeros(1)], lr=0.5), factor=0.5, patience=0, threshold=0.02
    )  # torch's own, given the losses that the run wrote down
    for line in lines:
        if "validation" in line:
            twin.step(line["validation"]["loss"])
        else:
            assert line["learning_rate"] == twin.get_last_lr()[0]
    assert 0 < twin.get_last_lr()[0] < 0.5
    with pytest.raises(KeyboardInterrupt):
        train("stopped", stop)
    resumed = train("stopped")
    assert weights_sha256(resumed) == weights_sha256(peace)
    provenance = (resumed.path / "provenance.json").read_text()
    assert json.loads(provenance)["scheduler"]["class"].endswith("ReduceLROnPlateau") and "Infinity" not in provenance


def test_what_looks_at_a_metric_or_computes_again_is_refused_with_what_to_do(
    tiny: Callable[..., Path], tmp_path: Path
) -> None:
    def code(fix: str, **given: Any) -> str:
        with pytest.raises(ws.UsageError) as caught:
            _train(tiny("bert"), tmp_path / "run", **given)
        assert fix in caught.value.fix and not (tmp_path / "run").exists()
        return caught.value.code

    plateau = {"scheduler": lambda optimizer, total: ReduceLROnPlateau(optimizer)}
    upwards = {"scheduler": lambda optimizer, total: ReduceLROnPlateau(optimizer, mode="max")}
    assert code("validation=", **plateau) == "optimizer-unfit"
    assert code('mode="min"', **upwards, validation=reviews(32)[24:]) == "optimizer-unfit"
    assert code("ws.Checkpointer", optimizer=torch.optim.LBFGS, scheduler=None) == "optimizer-unfit"


def test_fp16_scales_the_loss_and_resumes_to_the_last_bit(tiny: Callable[..., Path], tmp_path: Path) -> None:
    """On a CPU, as far as it can: a gradient that overflows lowers the scale, and its step is computed again."""
    from warmstart.training import optimizers
    from warmstart.verbs import fitting

    def large(precision: str, device: str) -> Any:
        assert precision == "fp16"
        return torch.amp.GradScaler("cpu", init_scale=2.0**30, growth_interval=3)

    def train(name: str, progress: Any = None) -> ws.Run:
        return _train(tiny("bert"), tmp_path / name, settings={"precision": "fp16"}, progress=progress)

    def stop(progress: Any) -> None:
        if progress.step.step == 5:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fitting, "scaler_for", large)
        low_precision_takes(patch, 0.5)
        peace = train("peace")
        with pytest.raises(KeyboardInterrupt):
            train("stopped", stop)
        state = tmp_path / "stopped" / "checkpoints" / "step-000004" / "training_state" / "state.json"
        scaler = json.loads(state.read_text())["scaler"]
        assert 1 < scaler["scale"] < 2.0**30 and scaler["growth_interval"] == 3
        assert weights_sha256(train("stopped")) == weights_sha256(peace)
    steps = [json.loads(line) for line in (peace.path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in steps] == [1, 2, 3, 4, 5, 6]  # none was left out
    assert optimizers.scaler_for("fp32", "cpu") is None
