"""What `ws.train` refuses, with a place and a next step, before its first step and before it leaves anything behind."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest

import warmstart as ws
from support.runs import FAST, reviews
from warmstart.checkpoints import save_model
from warmstart.errors import WarmstartError
from warmstart.tasks import TASKS
from warmstart.verbs import fitting


@pytest.fixture
def refused(tiny: Callable[..., Path], tmp_path: Path) -> Callable[..., WarmstartError]:
    """Train with these arguments, which must fail with `code` and leave no trace of a run."""

    def check(code: str, data: Any = None, *, model: Any = None, **arguments: Any) -> WarmstartError:
        output = tmp_path / "run"
        start = time.perf_counter()
        with pytest.raises(WarmstartError) as caught:
            ws.train(model or tiny("bert"), reviews(20) if data is None else data, output=output, **arguments)
        assert time.perf_counter() - start < 10
        assert caught.value.code == code, str(caught.value)
        assert len(caught.value.fix) > 5
        assert not output.exists()  # so that the same call, mended, works
        return caught.value

    return check


@pytest.fixture
def nothing_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """No file may be looked for."""

    def find(name: object) -> NoReturn:
        raise AssertionError(f"{name} was looked for")

    monkeypatch.setattr("warmstart.verbs.preparing.find", find)
    monkeypatch.setattr("warmstart.verbs.load.find", find)


@pytest.mark.usefixtures("nothing_found")
def test_a_wrong_call_is_refused_before_any_file_is_touched(
    refused: Callable[..., WarmstartError], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "did you mean text-classification" in refused("task-unknown", task="text-clasification").fix
    with monkeypatch.context() as patch:
        patch.setattr(TASKS["sentence-embedding"], "trainable", False)
        assert "text-classification" in refused("task-not-trainable", task="feature-extraction").fix
    refused("device-unknown", config=ws.TrainConfig(device="gpu"))
    refused("validation-needed", config=ws.TrainConfig(patience=2))
    refused("validation-needed", config=ws.TrainConfig(evaluate_every=5))
    task = "sentiment-analysis"
    assert refused("option-unknown", task=task, options={"max_lenght": 9}).fix == "did you mean max_length?"


def test_a_wrong_device_leaves_no_directory_behind(refused: Callable[..., WarmstartError]) -> None:
    import torch

    if not torch.cuda.is_available():
        assert "cpu" in refused("device-unavailable", config=ws.TrainConfig(device="cuda:3")).fix


@pytest.mark.parametrize("share", [0, 1, -0.5, 1.5, float("nan"), True])
def test_a_share_that_is_none_is_refused(refused: Callable[..., WarmstartError], share: float) -> None:
    refused("validation-share", validation=share)


def test_d41_validation_without_rows_is_refused(refused: Callable[..., WarmstartError], tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    refused("validation-empty", validation=tmp_path / "empty.jsonl")
    refused("validation-empty", validation=[])
    same = [{"text": "the very same", "label": label} for label in ("a", "b", "a", "b")]
    refused("validation-empty", same, validation=0.5)


def test_d41_training_rows_that_teach_nothing_are_refused(refused: Callable[..., WarmstartError]) -> None:
    refused("split-empty", [])
    refused("label-one-class", [{"text": f"t{n}", "label": "only"} for n in range(8)])
    refused("label-every-row-differs", [{"text": f"t{n}", "label": f"l{n}"} for n in range(30)])


def test_d40_a_validation_label_unseen_in_training_is_named(
    refused: Callable[..., WarmstartError], tmp_path: Path
) -> None:
    file = tmp_path / "dev.jsonl"
    file.write_text('{"text": "good", "label": "POSITIVE"}\n{"text": "hm", "label": "NEUTRAL"}\n')
    error = refused("label-unknown", validation=file)
    assert error.where.source == str(file) and error.where.line == 2 and error.value == "NEUTRAL"


def test_d38_a_missing_column_is_named(refused: Callable[..., WarmstartError], tmp_path: Path) -> None:
    file = tmp_path / "train.csv"
    file.write_text("txt,label\ngood,1\nbad,0\n")
    error = refused("column-missing", file)
    assert "txt" in str(error)


def test_a_row_without_text_is_named(refused: Callable[..., WarmstartError]) -> None:
    rows = [*reviews(4), {"text": None, "label": "POSITIVE"}]
    assert refused("field-missing", rows).where.row == 4


def test_no_such_file_and_no_such_checkpoint(refused: Callable[..., WarmstartError], tmp_path: Path) -> None:
    refused("file-missing", tmp_path / "absent.jsonl")
    refused("file-missing", validation=tmp_path / "absent.jsonl")
    error = refused("checkpoint-not-found", model=tmp_path / "nowhere")
    assert error.exit_code == 4


def test_a_path_object_is_a_folder_and_never_a_hub_name(refused: Callable[..., WarmstartError]) -> None:
    refused("checkpoint-not-found", model=Path("some-org/some-name"))


@pytest.mark.parametrize("options", [{"long_text": "cut"}, {"stride": 0}, {"max_length": -1}, {"max_length": 2}])
def test_an_option_that_cannot_be_is_refused(refused: Callable[..., WarmstartError], options: dict[str, Any]) -> None:
    refused("limit-too-small" if options == {"max_length": 2} else "option-value", options=options)


def test_something_at_the_output_is_never_written_over(tiny: Callable[..., Path], tmp_path: Path) -> None:
    folder, file = tmp_path / "folder", tmp_path / "file"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    file.write_text("mine")
    for taken in (folder, file):
        with pytest.raises(ws.UsageError) as caught:
            ws.train(tmp_path / "no model is even looked for", reviews(8), output=taken)
        assert caught.value.code == "run-exists" and str(taken) in str(caught.value)
    assert (folder / "notes.txt").read_text() == "mine" == file.read_text()
    (folder / "notes.txt").unlink()
    run = ws.train(tiny("bert"), reviews(8), output=folder, config=ws.TrainConfig(epochs=1))  # empty: fine
    assert run.model.is_dir()


def test_f89_an_output_that_cannot_be_made_is_named(tiny: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WarmstartError) as caught:
        ws.train(tiny("bert"), reviews(8), output=tmp_path / "file" / "run")
    assert caught.value.code == "run-unwritable" and "file" in str(caught.value.where)


@pytest.mark.skipif(os.name != "posix", reason="file modes")
def test_f88_a_full_disk_while_training_names_the_file(
    tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path.open

    def full(self: Path, mode: str = "r", *arguments: Any, **named: Any) -> Any:
        if self.name == "metrics.jsonl" and "a" in mode:
            raise OSError(28, "No space left on device", str(self))
        return real(self, mode, *arguments, **named)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(WarmstartError) as caught:
        ws.train(tiny("bert"), reviews(8), output=tmp_path / "run", config=ws.TrainConfig(epochs=1))
    assert caught.value.code == "run-unwritable" and "metrics.jsonl" in str(caught.value.where)
    assert "No space left" in caught.value.what and not (tmp_path / "run" / "model").exists()


# --- R73, R77: a run that cannot go on ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rate", "codes"),
    [(1e5, {"loss-not-finite"}), (1e20, {"loss-not-finite"}), (1e38, {"loss-not-finite", "weights-not-finite"})],
)
@pytest.mark.parametrize("validation", [None, 0.3])
def test_r77_a_hostile_rate_saves_no_model(
    tiny: Callable[..., Path], tmp_path: Path, rate: float, codes: set[str], validation: float | None
) -> None:
    config = ws.TrainConfig(epochs=6, batch_size=8, learning_rate=rate, warmup=0, schedule="constant")
    try:
        run = ws.train(tiny("bert"), reviews(24), output=tmp_path / "r", validation=validation, config=config)
    except ws.TrainingError as error:
        assert error.code in codes and "learning_rate" in error.fix and error.exit_code == 1
        assert "step" in str(error.where)
        assert not (tmp_path / "r" / "model").exists()
    else:  # large but finite all the way: then it can be used
        assert all(p.score == p.score for p in run.pipeline(["good", "bad"]))
        assert rate == 1e5


def test_r77_weights_ruined_by_the_last_step_are_found_by_the_validation(
    tiny: Callable[..., Path], tmp_path: Path
) -> None:
    """One step to finite but absurd weights: no later loss would show it."""
    config = ws.TrainConfig(max_steps=1, batch_size=100, learning_rate=1e30, warmup=0)
    with pytest.raises(ws.TrainingError) as caught:
        ws.train(tiny("bert"), reviews(24), output=tmp_path / "r", validation=reviews(8, seed=5), config=config)
    assert caught.value.code == "loss-not-finite" and "validation" in caught.value.what
    assert str(caught.value.where) == "step 1"
    assert not (tmp_path / "r" / "model").exists() and not (tmp_path / "r" / "checkpoints" / "best").exists()


def test_r73_a_poisoned_checkpoint_saves_no_model(tiny: Callable[..., Path], tmp_path: Path) -> None:
    pipe = ws.load(tiny("bert"))
    pipe.model.bert.encoder.layer[0].output.dense.weight.data[0, 0] = float("nan")
    save_model(pipe.model, pipe.tokenizer, tmp_path / "poisoned", extra={})
    config = ws.TrainConfig(epochs=1, **FAST)
    with pytest.raises(ws.TrainingError) as caught:
        ws.train(tmp_path / "poisoned", reviews(16), output=tmp_path / "r", config=config)
    assert caught.value.code == "loss-not-finite" and "step 1" in caught.value.what
    assert str(caught.value.where) == str(tmp_path / "r" / "nonfinite" / "step-000001")
    left = {"nonfinite", "checkpoints", "config.toml", "provenance.json", "attempts.jsonl", ".lock"}
    assert {p.name for p in (tmp_path / "r").iterdir()} == left
    with pytest.raises(ws.CheckpointError) as unusable:
        ws.load(tmp_path / "r")
    assert unusable.value.code == "run-without-model"


def test_r77_a_batch_larger_than_the_data_and_a_crumb_of_an_epoch_train(
    tiny: Callable[..., Path], tmp_path: Path
) -> None:
    config = ws.TrainConfig(epochs=0.01, batch_size=10_000)
    assert ws.train(tiny("bert"), reviews(8), output=tmp_path / "r", config=config).steps == 1


# --- R77: what is allowed, and most likely a slip, is said before the first step -------------------------------------


def _said_by_then(
    checkpoint: Path, output: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, **settings: Any
) -> list[str]:
    """The warnings of a run of two steps over 24 rows that had come before its loop began."""
    before: list[str] = []

    def begin(*arguments: Any, **named: Any) -> Any:
        before.extend(record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING)
        return fit(*arguments, **named)

    fit = fitting.fit
    caplog.clear()
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING, "warmstart"):
        patch.setattr(fitting, "fit", begin)
        run = ws.train(checkpoint, reviews(24), output=output, config=ws.TrainConfig(max_steps=2, **settings))
    assert run.steps == 2
    return before


@pytest.mark.parametrize("adapters", [1, 10])
def test_r77_a_rate_far_above_the_default_is_warned_about_before_the_first_step(
    tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    adapters: int,
) -> None:  # fmt: skip
    usual = 0.04 / 32 * adapters  # adapters usually get ten times as much
    recipe = {"lora": ws.LoRA(rank=2)} if adapters > 1 else {}

    def said(name: str, rate: float) -> list[str]:
        settings = {"batch_size": 8, "learning_rate": rate, **recipe}
        return _said_by_then(tiny("bert"), tmp_path / name, monkeypatch, caplog, **settings)

    assert said("healthy", 5 * usual) == [] and said("at-the-bound", 99 * usual) == []
    [warning] = said("far", 101 * usual)
    assert warning.startswith(f"learning_rate {101 * usual:.3g} is 101 times the {usual:.3g} that")


def test_r77_a_batch_larger_than_the_data_is_warned_about_before_the_first_step(
    tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def said(size: int) -> list[str]:
        return _said_by_then(tiny("bert"), tmp_path / str(size), monkeypatch, caplog, batch_size=size)

    assert said(8) == [] and said(24) == []
    [warning] = said(25)
    assert warning.startswith("batch_size 25 is more than the 24 rows to learn from")
