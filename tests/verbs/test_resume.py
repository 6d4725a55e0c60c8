"""Resuming in one process: signals, refusals, damage, and what a run keeps. Real kills: test_kills.py."""

from __future__ import annotations

import errno
import itertools
import json
import logging
import os
import shutil
import signal
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import warmstart as ws
from support.file_faults import Operations, operations_of, watched
from support.runs import FAST, reviews, weights_sha256
from warmstart.cli.main import run as command_line
from warmstart.evaluation import Evaluation
from warmstart.provenance import folder_digest
from warmstart.training.attempts import Attempts
from warmstart.training.run import RunDirectory
from warmstart.training.snapshot_folder import snapshots
from warmstart.training.snapshots import best_steps, newest_verified, read_snapshot
from warmstart.training.trained_weights import TrainedWeights
from warmstart.verbs import fitting as fitting_module
from warmstart.verbs import train as train_module
from warmstart.verbs.fitting import Progress

ROWS = reviews(60)
SETTINGS: dict[str, Any] = {"epochs": 3, "save_every": 2, **FAST}


def _train(checkpoint: Path, output: Path, *, progress: Any = None, force: bool = False, **config: Any) -> ws.Run:
    return ws.train(
        checkpoint, ROWS[:40], output=output, validation=ROWS[40:], config=ws.TrainConfig(**{**SETTINGS, **config}),
        progress=progress, force=force,
    )  # fmt: skip


def _at(step: int, action: Callable[[], Any], *, validated: bool = False) -> Callable[[Progress], None]:
    def progress(seen: Progress) -> None:
        if seen.step.step == step and (seen.validation is not None) == validated:
            action()

    return progress


def _signal(number: int, times: int = 1) -> Callable[[], None]:
    def send() -> None:
        for _ in range(times):
            os.kill(os.getpid(), number)

    return send


def _interrupted(checkpoint: Path, output: Path, step: int = 7, **config: Any) -> Path:
    """A run directory that was interrupted after a step, with a snapshot of it and of the one before."""
    with pytest.raises(KeyboardInterrupt):
        _train(checkpoint, output, progress=_at(step, _signal(signal.SIGINT)), **config)
    return output


def _steps(run: Path) -> list[int]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["step"] for line in lines if "validation" not in line]


def _attempts(run: Path) -> list[Any]:
    return list(Attempts(run / "attempts.jsonl").lines())


@pytest.fixture(scope="module")
def checkpoint(tiny: Callable[..., Path]) -> Path:
    return tiny("bert")


@pytest.fixture(scope="module")
def peace(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> ws.Run:
    return _train(checkpoint, tmp_path_factory.mktemp("peace") / "r")


def _assert_as_in_peace(run: ws.Run, peace: ws.Run) -> None:
    assert weights_sha256(run) == weights_sha256(peace)
    assert _steps(run.path) == list(range(1, peace.steps + 1))
    assert (run.steps, run.best_step, run.metrics) == (peace.steps, peace.best_step, peace.metrics)
    assert run.validation is not None and peace.validation is not None
    assert run.validation.predictions == peace.validation.predictions
    assert run.validation.loss == peace.validation.loss
    names = {path.name for path in (peace.path / "checkpoints").iterdir()}
    left = {path.name for path in (run.path / "checkpoints").iterdir() if ".rejected" not in path.name}
    assert left == names


# --- K84: signals ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "ends", "how"),
    [(signal.SIGINT, KeyboardInterrupt, "interrupted"), (signal.SIGTERM, SystemExit, "terminated")],
)
def test_k84_one_signal_finishes_the_step_and_saves_it(
    number: int, ends: type[BaseException], how: str, checkpoint: Path, peace: ws.Run, tmp_path: Path
) -> None:
    before = signal.getsignal(number)
    with pytest.raises(ends) as caught:
        _train(checkpoint, tmp_path / "r", progress=_at(7, _signal(number)))
    assert ends is KeyboardInterrupt or caught.value.code == 143
    assert signal.getsignal(number) == before
    assert _steps(tmp_path / "r")[-1] == 7 and snapshots(tmp_path / "r" / "checkpoints")[-1].name == "step-000007"
    assert _attempts(tmp_path / "r")[-1] == {"attempt": 1, "ended": how, "step": 7}
    _assert_as_in_peace(_train(checkpoint, tmp_path / "r"), peace)
    assert [line["began_at"] for line in _attempts(tmp_path / "r") if "began_at" in line] == [0, 7]
    assert [line["redone"] for line in _attempts(tmp_path / "r") if "began_at" in line] == [0, 0]


@pytest.mark.parametrize(
    ("failing", "told"), [((), "after step 7"), ((7,), "after step 6"), (tuple(range(8)), "over: there is no snapshot")]
)
def test_k84_what_is_said_at_a_stop_is_where_the_same_call_goes_on(
    failing: tuple[int, ...], told: str, checkpoint: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    from warmstart.training import snapshots as module

    real = module.write_tensors

    def full(path: Path, tensors: Any) -> str:
        if any(f"step-{step:06d}" in str(path) for step in failing):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return real(path, tensors)

    monkeypatch.setattr(module, "write_tensors", full)
    with caplog.at_level(logging.WARNING, "warmstart"):
        _interrupted(checkpoint, tmp_path / "r")
    [said] = [record.message for record in caplog.records if "stopped after step 7" in record.message]
    assert said.endswith(told)
    assert [path.name for path in snapshots(tmp_path / "r" / "checkpoints")][-1:] == (
        [] if "over" in told else [f"step-00000{told[-1]}"]
    )


def test_k84_two_signals_end_it_at_once(checkpoint: Path, peace: ws.Run, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        _train(checkpoint, tmp_path / "r", progress=_at(7, _signal(signal.SIGINT, times=2)))
    assert snapshots(tmp_path / "r" / "checkpoints")[-1].name == "step-000006"
    assert _attempts(tmp_path / "r")[-1]["ended"] == "interrupted"
    _assert_as_in_peace(_train(checkpoint, tmp_path / "r"), peace)


def test_k84_a_signal_in_an_evaluation_gives_it_up_and_resuming_makes_it(
    checkpoint: Path, peace: ws.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from warmstart.verbs import fitting

    real = fitting.evaluate_rows

    def interrupted(*arguments: Any, **named: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        return real(*arguments, **named)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(fitting, "evaluate_rows", interrupted)
        _train(checkpoint, tmp_path / "r")
    state = read_snapshot(tmp_path / "r" / "checkpoints" / "step-000005").state
    assert (state.step.step, state.evaluated, state.selection.best) == (5, 0, None)
    _assert_as_in_peace(_train(checkpoint, tmp_path / "r"), peace)


def test_a_resumed_evaluation_computes_in_the_numbers_of_the_run(
    checkpoint: Path, peace: ws.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Denormals are flushed in it as in those that the loop makes."""
    real = fitting_module.evaluate_rows
    flushes: list[bool] = []

    def seen(*arguments: Any, **named: Any) -> Any:
        if not flushes:
            os.kill(os.getpid(), signal.SIGINT)
        flushes.append(not (torch.full((1,), torch.finfo(torch.float32).tiny) / 4).view(torch.int32).any())
        return real(*arguments, **named)

    monkeypatch.setattr(fitting_module, "evaluate_rows", seen)
    with pytest.raises(KeyboardInterrupt):
        _train(checkpoint, tmp_path / "r")
    _assert_as_in_peace(_train(checkpoint, tmp_path / "r"), peace)
    assert flushes == [True] * 4  # one was given up


@pytest.mark.parametrize("name", ["prune", "prune_best"])
def test_what_cannot_be_removed_while_a_run_goes_is_warned_about(
    name: str, checkpoint: Path, peace: ws.Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    real = getattr(RunDirectory, name)

    def fail(self: RunDirectory, *arguments: Any) -> None:
        if _steps(self.path)[-1] < 15:
            raise ws.WarmstartError("run-unwritable", "x is read-only", fix="y")
        real(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunDirectory, name, fail)
        done = _train(checkpoint, tmp_path / "r")
    assert "could not be removed: x is read-only" in caplog.text
    _assert_as_in_peace(done, peace)  # the next time removed it


def test_best_weights_that_a_snapshot_may_need_are_not_removed_while_it_cannot_be_read(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = _interrupted(checkpoint, tmp_path / "r")
    assert best_steps(run / "checkpoints") == {5}

    def fail(self: Path, *arguments: Any, **named: Any) -> str:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(Path, "read_text", fail)
    with pytest.raises(OSError, match="Too many"):
        best_steps(run / "checkpoints")  # the run warns about it, as of all that it could not remove


# What is done between the last step and the end, by the object and the name of what does it.
LAST: tuple[tuple[Any, str], ...] = (
    (TrainedWeights, "finish"),
    (fitting_module, "save_model"),
    (Evaluation, "write_predictions"),
    (train_module, "write_report"),
    (RunDirectory, "note_end"),
    (RunDirectory, "tidy"),
)


def _sending(real: Callable[..., Any], send: Callable[[], None], output: Path) -> Callable[..., Any]:
    """`real`, which gets a signal once the last step is made and evaluated: its weights are the best."""

    def call(*arguments: Any, **named: Any) -> Any:
        if (output / "checkpoints" / "best-000015").exists():
            send()
        return real(*arguments, **named)

    return call


def _no_default(number: int, frame: Any) -> None:
    raise AssertionError("nobody listens")


@pytest.mark.parametrize("place", LAST, ids=lambda place: place[1])
@pytest.mark.parametrize(("number", "ends"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_k84_one_signal_after_the_last_step_waits_until_the_run_is_finished(
    number: int, ends: type[BaseException], place: tuple[Any, str], checkpoint: Path, peace: ws.Run, tmp_path: Path
) -> None:
    run, real = tmp_path / "r", getattr(*place)
    before = signal.signal(number, _no_default)
    try:
        with pytest.MonkeyPatch.context() as patch, pytest.raises(ends) as caught:
            patch.setattr(*place, _sending(real, _once(_signal(number)), run))
            _train(checkpoint, run, save_every=None)
        assert ends is KeyboardInterrupt or caught.value.code == 143
        assert signal.getsignal(number) == _no_default
    finally:
        signal.signal(number, before)
    assert [line.get("ended") for line in _attempts(run)] == [None, "finished"]
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["best"]
    assert weights_sha256(_train(checkpoint, run, save_every=None)) == weights_sha256(peace)
    assert len(_attempts(run)) == 2


def _once(action: Callable[[], None]) -> Callable[[], None]:
    left = [action]
    return lambda: left.pop()() if left else None


@pytest.mark.parametrize("place", [place for place in LAST if place[1] in ("save_model", "write_report")])
def test_k84_two_signals_after_the_last_step_end_it_at_once(
    place: tuple[Any, str], checkpoint: Path, peace: ws.Run, tmp_path: Path
) -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(*place, _sending(getattr(*place), _signal(signal.SIGINT, times=2), tmp_path / "r"))
        _train(checkpoint, tmp_path / "r")
    assert _attempts(tmp_path / "r")[-1] == {"attempt": 1, "ended": "interrupted", "step": 15}
    assert (tmp_path / "r" / "model").exists() == (place[1] == "write_report")
    _assert_as_in_peace(_train(checkpoint, tmp_path / "r"), peace)
    assert [line["began_at"] for line in _attempts(tmp_path / "r") if "began_at" in line] == [0, 14]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_k84_the_command_ends_with_the_signals_code(
    number: int, code: int, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("warmstart.cli.train.progress_line", lambda: _at(3, _signal(number)))
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    call = ["train", "-m", str(checkpoint), "-d", str(rows), "-o", str(tmp_path / "r"), "--set", "epochs=3"]
    try:
        found = command_line(call)
    except SystemExit as stop:
        found = stop.code  # type: ignore[assignment]
    assert found == code
    assert [path.name for path in snapshots(tmp_path / "r" / "checkpoints")] == ["step-000003"]


# --- a finished run -------------------------------------------------------------------------------------------------


def test_a_finished_run_is_told_and_returned(checkpoint: Path, peace: ws.Run, caplog: pytest.LogCaptureFixture) -> None:
    before = folder_digest(peace.path / "model"), (peace.path / "metrics.jsonl").read_bytes()
    seen: list[Progress] = []
    with caplog.at_level(logging.INFO, logger="warmstart"):
        again = _train(checkpoint, peace.path, progress=seen.append)
    assert "is finished, after 15 steps; nothing is trained" in caplog.text and not seen
    _assert_as_in_peace(again, peace)
    assert (folder_digest(peace.path / "model"), (peace.path / "metrics.jsonl").read_bytes()) == before
    expected = peace.pipeline(["a great film", "dull and tired"])
    assert [p.label for p in again.pipeline(["a great film", "dull and tired"])] == [p.label for p in expected]


def test_a_finished_run_without_its_checkpoints_is_evaluated_again(
    checkpoint: Path, peace: ws.Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(peace.path, tmp_path / "r")
    shutil.rmtree(tmp_path / "r" / "checkpoints")
    with caplog.at_level(logging.WARNING, logger="warmstart"):
        again = _train(checkpoint, tmp_path / "r")
    assert "evaluated again" in caplog.text and again.validation is not None and peace.validation is not None
    assert again.validation.loss == pytest.approx(peace.validation.loss, abs=1e-6)


def test_a_finished_run_is_not_trained_on_with_something_else(checkpoint: Path, peace: ws.Run) -> None:
    with pytest.raises(ws.UsageError) as caught:
        _train(checkpoint, peace.path, epochs=4)
    assert caught.value.code == "resume-differs" and "train.epochs: 3.0 → 4.0" in caught.value.what
    with pytest.raises(ws.UsageError) as caught:
        _train(checkpoint, peace.path, epochs=4, force=True)
    assert caught.value.code == "run-finished" and f"-m {peace.path}" in caught.value.fix


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.EIO, "Input/output error")], ids=repr)
def test_a_finished_run_stays_finished_whatever_meets_its_tidying(
    error: BaseException, checkpoint: Path, peace: ws.Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(self: RunDirectory, needed: Any) -> None:
        if self.attempts.finished is not None:
            raise error

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunDirectory, "prune_best", fail)
        if isinstance(error, KeyboardInterrupt):
            with pytest.raises(KeyboardInterrupt):
                _train(checkpoint, tmp_path / "r")
        else:
            _train(checkpoint, tmp_path / "r")
            assert "could not be removed: " in caplog.text and "Input/output error" in caplog.text
    lines = _attempts(tmp_path / "r")
    assert lines[-1] == {"attempt": 1, "ended": "finished", "step": 15, "best_step": peace.best_step}
    _assert_as_in_peace(_train(checkpoint, tmp_path / "r"), peace)
    assert _attempts(tmp_path / "r") == lines  # no second start


def test_an_end_that_an_earlier_version_noted_after_the_last_takes_nothing_away(
    checkpoint: Path, peace: ws.Run, tmp_path: Path
) -> None:
    shutil.copytree(peace.path, tmp_path / "r")
    Attempts(tmp_path / "r" / "attempts.jsonl").end(1, "interrupted", 15)
    _assert_as_in_peace(_train(checkpoint, tmp_path / "r"), peace)
    assert len(Attempts(tmp_path / "r" / "attempts.jsonl").starts()) == 1


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), OSError(errno.EIO, "Input/output error")], ids=repr)
def test_tidying_may_end_at_any_file_operation_and_the_next_call_ends_it(
    failure: BaseException, checkpoint: Path, peace: ws.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RunDirectory, "tidy", lambda *arguments: _signal(signal.SIGINT)())
        _train(checkpoint, tmp_path / "untidy")
    real = RunDirectory.tidy
    shutil.copytree(tmp_path / "untidy", tmp_path / "all")
    made = operations_of(lambda: real(RunDirectory(tmp_path / "all"), peace.best_step, 2))
    assert len(made) > 6
    for number in (1, 2, len(made) // 2, len(made)):

        def fail(count: int, name: str, at: int = number) -> None:
            if count == at:
                raise failure

        def tidy(*arguments: Any, fail: Any = fail) -> None:
            with watched(Operations(fail)):
                real(*arguments)

        run = shutil.copytree(tmp_path / "untidy", tmp_path / str(number))
        with monkeypatch.context() as patch:
            patch.setattr(RunDirectory, "tidy", tidy)
            if isinstance(failure, KeyboardInterrupt):
                with pytest.raises(KeyboardInterrupt):
                    _train(checkpoint, run)
            else:
                _train(checkpoint, run)
        _assert_as_in_peace(_train(checkpoint, run), peace)
        assert len(Attempts(run / "attempts.jsonl").starts()) == 1


def test_without_save_every_no_snapshot_stays_and_one_is_there_while_it_goes(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def look(progress: Progress) -> None:
        seen.append(len(snapshots(tmp_path / "r" / "checkpoints")))

    monkeypatch.setattr("warmstart.training.pace.FIRST_SECONDS", 0.0)
    monkeypatch.setattr("warmstart.training.pace.Pace.due", lambda self, step: True)
    _train(checkpoint, tmp_path / "r", save_every=None, epochs=1, progress=look)
    assert max(seen) == 2
    assert [path.name for path in (tmp_path / "r" / "checkpoints").iterdir()] == ["best"]


# --- R80: something else than it was begun with ---------------------------------------------------------------------


def _other_rows(call: dict[str, Any]) -> None:
    call["data"] = [*ROWS[:39], {"text": "another row", "label": "NEGATIVE"}]


def _other_order(call: dict[str, Any]) -> None:
    call["data"] = [ROWS[1], ROWS[0], *ROWS[2:40]]


def _other_validation(call: dict[str, Any]) -> None:
    call["validation"] = ROWS[42:]


def _other_labels(call: dict[str, Any]) -> None:
    for part in ("data", "validation"):
        call[part] = [{**row, "label": "good" if row["label"] == "POSITIVE" else "bad"} for row in call[part]]


def _other_rate(call: dict[str, Any]) -> None:
    call["config"] = call["config"].model_copy(update={"learning_rate": 1e-3})


def _other_option(call: dict[str, Any]) -> None:
    call["options"] = {"max_length": 64}


def _other_checkpoint(call: dict[str, Any]) -> None:
    copy = call["output"].parent / "changed"
    pipe = ws.load(call["model"])
    with torch.no_grad():
        pipe.model.classifier.bias += 1
    pipe.model.save_pretrained(copy)
    pipe.tokenizer.save_pretrained(copy)
    call["model"] = copy


CHANGES = {
    _other_rows: "data.train",
    _other_order: "data.train",
    _other_validation: "data.validation",
    _other_labels: "task.head",
    _other_rate: "train.learning_rate",
    _other_option: "task.options",
    _other_checkpoint: "checkpoint",
}


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_r80_resuming_with_something_else_is_refused_with_the_difference_and_forced_is_recorded(
    change: Callable[[dict[str, Any]], None], checkpoint: Path, tmp_path: Path
) -> None:
    run = _interrupted(checkpoint, tmp_path / "r")
    call = {
        "model": checkpoint, "data": ROWS[:40], "validation": ROWS[40:], "output": run,
        "config": ws.TrainConfig(**SETTINGS),
    }  # fmt: skip
    change(call)
    files = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(ws.UsageError) as caught:
        _called(call)
    assert caught.value.code == "resume-differs" and CHANGES[change] in str(caught.value.value)
    assert CHANGES[change] in caught.value.what and "--force" in caught.value.fix
    assert caught.value.where.source == str(run)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == files
    forced = _called({**call, "force": True})
    lineage = json.loads((run / "provenance.json").read_text())["lineage"]
    assert len(lineage) == 1 and lineage[0]["after_step"] == 7
    assert CHANGES[change] in {difference["name"] for difference in lineage[0]["differences"]}
    assert json.loads((forced.model / "warmstart.json").read_text())["lineage"] == lineage
    assert _attempts(run)[2]["differences"] == lineage[0]["differences"]
    assert _steps(run) == list(range(1, forced.steps + 1))
    assert _called(call).steps == forced.steps  # what it was forced on with is what it is made from now


def _called(call: dict[str, Any]) -> ws.Run:
    rest = {key: value for key, value in call.items() if key not in ("model", "data")}
    run: ws.Run = ws.train(call["model"], call["data"], **rest)
    return run


def test_r80_other_versions_are_refused(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from warmstart.verbs import preparing

    run = _interrupted(checkpoint, tmp_path / "r")
    real = preparing.environment()
    packages = {**real["packages"], "torch": "9.9"}
    monkeypatch.setattr(preparing, "environment", lambda: {**real, "packages": packages})
    with pytest.raises(ws.UsageError) as caught:
        _train(checkpoint, run)
    assert caught.value.code == "resume-differs" and caught.value.value == "version.torch"
    assert f"version.torch: {real['packages']['torch']!r} → '9.9'" in caught.value.what
    assert caught.value.where.source == str(run)
    monkeypatch.undo()
    assert _train(checkpoint, run).steps == 15  # the healthy twin


def test_r80_settings_without_effect_on_the_result_are_no_difference(
    checkpoint: Path, peace: ws.Run, tmp_path: Path
) -> None:
    run = _interrupted(checkpoint, tmp_path / "r")
    done = _train(checkpoint, run, save_every=7, keep=1, workers=1)
    assert weights_sha256(done) == weights_sha256(peace)
    assert tomllib.loads((run / "config.toml").read_text())["train"]["save_every"] == 7
    assert json.loads((run / "provenance.json").read_text())["lineage"] == []


def test_another_processor_is_told_and_recorded_and_threads_are_kept(
    checkpoint: Path, peace: ws.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from warmstart.verbs import preparing

    run = _interrupted(checkpoint, tmp_path / "r")
    real = preparing.environment()
    cpu = {**real["cpu"], "model": "another one"}
    monkeypatch.setattr(preparing, "environment", lambda: {**real, "cpu": cpu})
    before = torch.get_num_threads()
    seen = []
    try:
        torch.set_num_threads(before + 1)
        with caplog.at_level(logging.INFO, logger="warmstart"):
            done = _train(checkpoint, run, progress=lambda _: seen.append(torch.get_num_threads()))
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)
    assert set(seen) == {before} and f"using {before} threads" in caplog.text
    assert "last digits may differ" in caplog.text and "another one" in caplog.text
    [entry] = json.loads((run / "provenance.json").read_text())["lineage"]
    assert [difference["name"] for difference in entry["differences"]] == ["cpu.model"]
    assert weights_sha256(done) == weights_sha256(peace)  # it was the same one after all


# --- damage ---------------------------------------------------------------------------------------------------------


def _remove_manifest(snapshot: Path) -> None:
    (snapshot / "MANIFEST.json").unlink()


def _remove_optimizer(snapshot: Path) -> None:
    (snapshot / "training_state" / "optimizer.safetensors").unlink()


def _truncate_weights(snapshot: Path) -> None:
    os.truncate(snapshot / "model.safetensors", 1000)


def _flip_weights(snapshot: Path) -> None:
    _flip(snapshot / "model.safetensors")


def _flip_optimizer(snapshot: Path) -> None:
    _flip(snapshot / "training_state" / "optimizer.safetensors")


def _flip(path: Path) -> None:
    """One bit of the last tensor."""
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def _replace_by_a_file(snapshot: Path) -> None:
    shutil.rmtree(snapshot)
    snapshot.write_text("")


DAMAGES = (_remove_manifest, _remove_optimizer, _truncate_weights, _flip_weights, _flip_optimizer, _replace_by_a_file)


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_c15_a_damaged_snapshot_is_set_aside_with_its_reason_and_the_one_before_resumed(
    damage: Callable[[Path], None], checkpoint: Path, peace: ws.Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = _interrupted(checkpoint, tmp_path / "r")
    damage(run / "checkpoints" / "step-000007")
    with caplog.at_level(logging.WARNING, logger="warmstart"):
        done = _train(checkpoint, run)
    _assert_as_in_peace(done, peace)
    aside = run / "checkpoints" / "step-000007.rejected"
    start = _attempts(run)[2]
    assert start["began_at"] == 6 and start["redone"] == 1
    assert [entry["name"] for entry in start["set_aside"]] == ["step-000007"]
    reason = start["set_aside"][0]["reason"]
    assert f"set aside as {aside.name}: {reason}" in caplog.text and len(reason) > 10
    assert aside.is_file() or reason in (aside / "REASON.txt").read_text()


CANNOT_NOW = (
    MemoryError(),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 12 bytes."),
    *(OSError(each, os.strerror(each)) for each in (errno.EMFILE, errno.ENOMEM, errno.EACCES, errno.ESTALE, errno.EIO)),
)


def test_c15_a_snapshot_that_cannot_be_read_now_is_left_as_it_is(
    checkpoint: Path, peace: ws.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from warmstart.checkpoints import manifest
    from warmstart.training import snapshots as module

    run = _interrupted(checkpoint, tmp_path / "r")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    places: tuple[tuple[Any, str], ...] = ((os, "open"), (manifest, "sha256"), (module, "read_tensors"))
    for place, error in itertools.product(places, CANNOT_NOW):

        def fail(path: Path, *arguments: Any, error: BaseException = error) -> Any:
            raise error

        with monkeypatch.context() as patch, pytest.raises(ws.TrainingError) as caught:
            patch.setattr(*place, fail)
            newest_verified(run / "checkpoints")
        assert caught.value.code == "snapshot-unread" and "step-000007" in str(caught.value.where)
        assert (str(error.args[-1]) if error.args else "MemoryError") in caught.value.what
        assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    with monkeypatch.context() as patch, pytest.raises(ws.TrainingError):
        patch.setattr(module, "read_tensors", fail)
        _train(checkpoint, run)
    assert len(Attempts(run / "attempts.jsonl").starts()) == 1
    real = transformers.PreTrainedModel.from_pretrained.__func__  # type: ignore[attr-defined]
    for error in CANNOT_NOW[:3]:  # it was read, and could not be taken over

        def short(*arguments: Any, error: BaseException = error) -> Any:
            raise error

        calls = itertools.count()

        def second(kind: Any, *arguments: Any, error: BaseException = error, calls: Any = calls, **options: Any) -> Any:
            if next(calls) == 1:  # the first is of the checkpoint that the run began with
                raise error
            return real(kind, *arguments, **options)

        places: tuple[tuple[Any, str, Any], ...] = (
            (torch.optim.Optimizer, "load_state_dict", short),
            (transformers.PreTrainedModel, "from_pretrained", classmethod(second)),
        )
        for each in places:
            with monkeypatch.context() as patch, pytest.raises(ws.TrainingError) as caught:
                patch.setattr(*each)
                _train(checkpoint, run)
            assert caught.value.code == "snapshot-unread"
    _assert_as_in_peace(_train(checkpoint, run), peace)
    assert _attempts(run)[-2]["began_at"] == 7


def test_c15_without_any_whole_snapshot_a_run_starts_over(checkpoint: Path, peace: ws.Run, tmp_path: Path) -> None:
    run = _interrupted(checkpoint, tmp_path / "r")
    for path in snapshots(run / "checkpoints"):
        _flip_weights(path)
    _assert_as_in_peace(_train(checkpoint, run), peace)
    assert _attempts(run)[2]["began_at"] == 0 and _attempts(run)[2]["redone"] == 7
    assert len(_attempts(run)[2]["set_aside"]) == 2


def _flip_evaluation(best: Path) -> None:
    _flip(best / "evaluation.json")


@pytest.mark.parametrize(
    "damage", [shutil.rmtree, _remove_manifest, _flip_evaluation], ids=lambda damage: damage.__name__
)
def test_c15_without_its_best_weights_a_run_is_refused_and_no_whole_snapshot_set_aside(
    damage: Callable[[Path], None], checkpoint: Path, peace: ws.Run, tmp_path: Path
) -> None:
    run = _interrupted(checkpoint, tmp_path / "r")
    [best] = (run / "checkpoints").glob("best-*")
    shutil.copytree(best, tmp_path / "kept")
    damage(best)
    files = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(ws.CheckpointError) as caught:
        _train(checkpoint, run)
    error = caught.value
    assert error.code == "best-damaged" and str(best) in str(error.where) and "step-000007 is whole" in error.what
    assert "after step 5" in error.what and "--force" in error.fix
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == files
    shutil.rmtree(best, ignore_errors=True)
    shutil.copytree(tmp_path / "kept", best)
    _assert_as_in_peace(_train(checkpoint, run), peace)  # put back
    assert [line["began_at"] for line in Attempts(run / "attempts.jsonl").starts()] == [0, 7]


def test_without_its_best_weights_a_run_goes_on_by_force_or_starts_over(
    checkpoint: Path, peace: ws.Run, tmp_path: Path
) -> None:
    run = _interrupted(checkpoint, tmp_path / "r")
    shutil.rmtree(run / "checkpoints" / "best-000005")
    shutil.copytree(run, tmp_path / "again")
    forced = _train(checkpoint, run, force=True)
    assert forced.steps == 15 and forced.best_step in (10, 15) and _steps(run) == list(range(1, 16))
    [entry] = json.loads((run / "provenance.json").read_text())["lineage"]
    assert entry["after_step"] == 7 and entry["differences"] == [{"name": "best_step", "before": 5, "now": None}]
    assert json.loads((forced.model / "warmstart.json").read_text())["lineage"] == [entry]
    assert [line["began_at"] for line in Attempts(run / "attempts.jsonl").starts()] == [0, 7]
    for path in snapshots(tmp_path / "again" / "checkpoints"):
        path.rename(tmp_path / path.name)
    _assert_as_in_peace(_train(checkpoint, tmp_path / "again"), peace)


def test_what_kills_left_half_done_is_swept_and_lines_beyond_the_snapshot_are_cut(
    checkpoint: Path, peace: ws.Run, tmp_path: Path
) -> None:
    run = _interrupted(checkpoint, tmp_path / "r")
    (run / "checkpoints" / ".step-000009.tmp-0123456789ab" / "deep").mkdir(parents=True)
    (run / ".model.tmp-0123456789ab").mkdir()
    (run / ".provenance.json.tmp-0123456789ab").write_text("{")
    (run / "checkpoints" / "notes.tmp").write_text("mine")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "loss": 9.9}\n{"step": 9, "lo')
    with (run / "attempts.jsonl").open("a") as file:
        file.write('{"attempt": 2, "bega')
    done = _train(checkpoint, run)
    assert (run / "checkpoints" / "notes.tmp").read_text() == "mine"
    (run / "checkpoints" / "notes.tmp").unlink()
    _assert_as_in_peace(done, peace)
    assert not [path for path in run.rglob("*") if ".tmp-" in path.name]
    assert [line["attempt"] for line in _attempts(run)] == [1, 1, 2, 2]


def test_lost_metrics_are_told_and_lose_no_training(
    checkpoint: Path, peace: ws.Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = _interrupted(checkpoint, tmp_path / "r")
    (run / "metrics.jsonl").unlink()
    with caplog.at_level(logging.WARNING, logger="warmstart"):
        done = _train(checkpoint, run)
    assert "lines before step 7 are lost" in caplog.text
    assert weights_sha256(done) == weights_sha256(peace) and _steps(run) == list(range(8, 16))


def test_a_kill_before_the_first_record_leaves_a_place_to_start(
    checkpoint: Path, peace: ws.Run, tmp_path: Path
) -> None:
    (tmp_path / "r" / "checkpoints").mkdir(parents=True)
    (tmp_path / "r" / "config.toml").write_text("")
    (tmp_path / "r" / ".provenance.json.tmp-0123456789ab").write_text("{")
    (tmp_path / "r" / ".lock").write_text("")
    assert weights_sha256(_train(checkpoint, tmp_path / "r")) == weights_sha256(peace)


def test_a_run_whose_record_is_damaged_is_not_guessed_at(checkpoint: Path, tmp_path: Path) -> None:
    run = _interrupted(checkpoint, tmp_path / "r")
    (run / "provenance.json").write_text("{")
    with pytest.raises(ws.UsageError) as caught:
        _train(checkpoint, run, force=True)
    assert caught.value.code == "run-damaged" and "provenance.json" in str(caught.value.where)


def test_a_run_that_failed_says_so_and_can_be_resumed(checkpoint: Path, peace: ws.Run, tmp_path: Path) -> None:
    from warmstart.errors import TrainingError

    def fail(self: Any, step: Any) -> bool:
        if step.step == 7:
            raise TrainingError("loss-not-finite", "x", fix="y")
        return real(self, step)

    from warmstart.verbs.fitting import Fitting

    real = Fitting.after_step
    with pytest.MonkeyPatch.context() as patch, pytest.raises(TrainingError):
        patch.setattr(Fitting, "after_step", fail)
        _train(checkpoint, tmp_path / "r")
    assert _attempts(tmp_path / "r")[-1] == {"attempt": 1, "ended": "failed", "step": 6, "code": "loss-not-finite"}
    _assert_as_in_peace(_train(checkpoint, tmp_path / "r"), peace)
