"""`verify-resume` passes a trainer that resumes, and fails one that starts over or goes on otherwise."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import warmstart as ws
from support.kills import COVER, SAVE_EVERY
from warmstart.cli.main import run
from warmstart.verbs.attempts import Attempter, KillIn, Outcome
from warmstart.verbs.verify_resume import kill_and_resume, verify_resume


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("verify")


@pytest.fixture(scope="module")
def recipe(place: Path, tiny: Callable[..., Path]) -> Path:
    return COVER[3].recipe(place, tiny)


@pytest.fixture(scope="module")
def peace(attempter: Attempter, recipe: Path, place: Path) -> Path:
    assert attempter.attempt(recipe, place / "peace").code == 0
    return place / "peace"


@dataclass
class Unfaithful:
    """A trainer that does something else when it is called the second time."""

    real: Any
    change: Callable[[Path, Path], Path]  # (recipe, output) → recipe

    def attempt(self, recipe: Path, output: Path, **kill: Any) -> Outcome:
        if (output / "attempts.jsonl").exists():
            recipe = self.change(recipe, output)
        found: Outcome = self.real.attempt(recipe, output, **kill)
        return found


def _problems(attempter: Attempter, recipe: Path, peace: Path, output: Path, change: Any) -> str:
    trainer: Any = Unfaithful(attempter, change)
    moment = KillIn("save", 4, 0.0)  # after step 6, say, with snapshots of earlier ones
    kill = kill_and_resume(trainer, recipe, output, moment, peace=peace, save_every=SAVE_EVERY)
    assert not kill.identical and kill.step > SAVE_EVERY
    return " | ".join(kill.problems)


def test_a_trainer_that_starts_over_from_nothing_fails(
    attempter: Attempter, recipe: Path, peace: Path, tmp_path: Path
) -> None:
    """Its weights are identical: only the records tell."""

    def start_over(recipe: Path, output: Path) -> Path:
        shutil.rmtree(output)
        return recipe

    told = _problems(attempter, recipe, peace, tmp_path / "r", start_over)
    assert "started over" in told and "weights" not in told


def test_a_trainer_that_loses_its_snapshots_fails(
    attempter: Attempter, recipe: Path, peace: Path, tmp_path: Path
) -> None:
    def forget(recipe: Path, output: Path) -> Path:
        for path in (output / "checkpoints").glob("step-*"):
            shutil.rmtree(path)
        return recipe

    told = _problems(attempter, recipe, peace, tmp_path / "r", forget)
    assert "steps were made again, at most 2 expected" in told and "weights" not in told


def test_a_trainer_that_goes_on_with_another_order_is_told_the_step_and_the_weights(
    attempter: Attempter, recipe: Path, peace: Path, tmp_path: Path
) -> None:
    """A forged record makes it believe that its seed was this one from the start."""

    def reseed(recipe: Path, output: Path) -> Path:
        config = output / "config.toml"
        config.write_text(config.read_text().replace("seed = 0", "seed = 1"))
        other = tmp_path / "other.toml"
        other.write_text(recipe.read_text().replace("[train]\n", "[train]\nseed = 1\n", 1))
        return other

    told = _problems(attempter, recipe, peace, tmp_path / "r", reseed)
    assert "step " in told and "weights: " in told and "differs, by" in told


def test_a_resumed_run_that_fails_is_told_in_its_own_words(
    attempter: Attempter, recipe: Path, peace: Path, tmp_path: Path
) -> None:
    def break_it(recipe: Path, output: Path) -> Path:
        other = tmp_path / "other.toml"
        other.write_text(recipe.read_text().replace("[train]\n", "[train]\nseed = 1\n", 1))
        return other

    assert "resume-differs" in _problems(attempter, recipe, peace, tmp_path / "r", break_it)


def test_the_command_proves_a_recipe(
    attempter: Attempter, recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("warmstart.verbs.verify_resume.opened", lambda: nullcontext(attempter))
    assert run(["verify-resume", "--config", str(recipe), "--kills", "1", "--seed", "3"]) == 0
    told = capsys.readouterr()
    assert told.out == "identical: 1/1\n" and "snapshots every 2 steps" in told.err
    assert told.err.count("resumed after step") == 1


def test_the_command_fails_where_a_run_is_not_identical(
    attempter: Attempter, recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def start_over(recipe: Path, output: Path) -> Path:
        shutil.rmtree(output)
        return recipe

    trainer = Unfaithful(attempter, start_over)
    monkeypatch.setattr("warmstart.verbs.verify_resume.opened", lambda: nullcontext(trainer))
    monkeypatch.setattr("warmstart.verbs.verify_resume.random.Random.uniform", lambda self, low, high: low)
    code = run(["verify-resume", "--config", str(recipe), "--kills", "1", "--seed", "3", "--json"])
    told = capsys.readouterr()
    found = json.loads(told.out)
    assert code == 1 and found["identical"] == 0 and found["seed"] == 3 and "--seed 3" in told.err
    assert "started over" in found["kills"][0]["problems"][0]


def test_a_trainer_that_is_only_seen_to_start_over_does_not_pass(
    attempter: Attempter, recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Killed right after its first snapshot it makes no more steps again than `save_every`."""

    def forget(recipe: Path, output: Path) -> Path:
        for path in (output / "checkpoints").glob("step-*"):
            shutil.rmtree(path)
        return recipe

    trainer = Unfaithful(attempter, forget)
    monkeypatch.setattr("warmstart.verbs.verify_resume.opened", lambda: nullcontext(trainer))
    monkeypatch.setattr("warmstart.verbs.verify_resume.random.Random.uniform", lambda self, low, high: low)
    monkeypatch.setattr("warmstart.verbs.verify_resume.random.Random.randint", lambda self, low, high: low)
    code = run(["verify-resume", "--config", str(recipe), "--kills", "1", "--seed", "3", "--json"])
    told = capsys.readouterr()
    found = json.loads(told.out)
    assert found["kills"][0]["step"] == SAVE_EVERY and found["kills"][0]["resumed_at"] == 0
    assert (code, found["identical"], found["resumed"]) == (1, 1, 0) and "nothing is proved" in told.err


def test_a_kill_comes_after_the_first_snapshot(
    attempter: Attempter, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also with this seed, whose first number is nearly 0."""
    monkeypatch.setattr("warmstart.verbs.verify_resume.opened", lambda: nullcontext(attempter))
    found = verify_resume(recipe, kills=1, seed=165)
    [kill] = found.kills
    assert found.passed and kill.resumed and min(kill.step, kill.resumed_at) >= SAVE_EVERY


def test_a_run_that_makes_no_snapshot_has_nothing_to_resume(
    attempter: Attempter, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("warmstart.verbs.verify_resume.opened", lambda: nullcontext(attempter))
    with pytest.raises(ws.UsageError) as caught:
        verify_resume(recipe, kills=1, settings=["save_every=1000"])
    assert caught.value.code == "nothing-to-resume" and "save_every=" in caught.value.fix


def test_the_precision_that_the_run_in_peace_measured_is_that_of_the_killed_one(
    attempter: Attempter, tiny: Callable[..., Path], tmp_path: Path
) -> None:
    """It is a matter of the clock which one it is: here the other one is written down."""
    recipe = COVER[0].recipe(tmp_path, tiny)
    recipe.write_text(recipe.read_text().replace("[train]\n", '[train]\nprecision = "bf16"\n', 1))
    assert attempter.attempt(recipe, tmp_path / "peace").code == 0
    record = json.loads((tmp_path / "peace" / "provenance.json").read_text())
    other = {"bf16": "fp32", "fp32": "bf16"}[record["precision"]["used"]]
    record["precision"]["used"] = other
    (tmp_path / "peace" / "provenance.json").write_text(json.dumps(record))
    kill = kill_and_resume(
        attempter, recipe, tmp_path / "r", KillIn("prune", 1), peace=tmp_path / "peace", save_every=SAVE_EVERY
    )
    assert kill.resumed and kill.resumed_at == SAVE_EVERY
    assert json.loads((tmp_path / "r" / "provenance.json").read_text())["precision"]["used"] == other


def test_what_is_wrong_with_the_call_is_told_before_anything_runs(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(ws.UsageError) as caught:
        verify_resume(recipe, kills=0)
    assert caught.value.code == "kills-number"
    with pytest.raises(ws.UsageError) as caught:
        verify_resume(tmp_path / "absent.toml")
    assert caught.value.code == "config-not-toml"


def test_a_recipe_that_cannot_train_is_an_error_that_says_why(
    attempter: Attempter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("warmstart.verbs.verify_resume.opened", lambda: nullcontext(attempter))
    (tmp_path / "run.toml").write_text('model = "starter-encoder"\n')
    with pytest.raises(ws.TrainingError) as caught:
        verify_resume(tmp_path / "run.toml", kills=1)
    assert caught.value.code == "attempt-failed" and "what the data is" in caught.value.what
