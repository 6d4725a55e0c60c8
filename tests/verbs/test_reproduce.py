"""`reproduce`: the same run again, and an answer that names what is different."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import warmstart as ws
from support.runs import FAST, reviews
from warmstart.cli.main import run as command_line
from warmstart.training.run import RunDirectory
from warmstart.verbs.reproduce import compared, reproduce

ROWS = reviews(60)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reproduce")
    for name, rows in (("train", ROWS[:40]), ("dev", ROWS[40:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def _train(checkpoint: Path, place: Path, output: Path, **config: Any) -> ws.Run:
    return ws.train(
        checkpoint, place / "train.jsonl", output=output, validation=place / "dev.jsonl",
        config=ws.TrainConfig(**{"epochs": 2, **FAST, **config}),
    )  # fmt: skip


@pytest.fixture(scope="module")
def run(tiny: Callable[..., Path], place: Path) -> ws.Run:
    return _train(tiny("bert"), place, place / "run")


def test_a_run_is_reproduced_to_the_bit(run: ws.Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line(["reproduce", str(run.path)]) == 0
    told = capsys.readouterr()
    assert told.out.startswith("bit-identical\n  all weights: sha256 ")


def test_other_data_are_an_answer_before_anything_is_trained(
    run: ws.Run, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "train.jsonl"
    other.write_text((place / "train.jsonl").read_text().replace("good", "god"))
    code = command_line(["reproduce", str(run.path), "-d", str(other), "-o", str(tmp_path / "new"), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert code == 1 and found["answer"] == "different" and found["reasons"][0].startswith("data.train: ")
    assert [each["name"] for each in found["differences"]] == ["data.train"] and not (tmp_path / "new").exists()


def test_other_versions_are_named_beside_the_answer(run: ws.Run, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run.path, copy)
    provenance = json.loads((copy / "provenance.json").read_text())
    provenance["environment"]["packages"]["torch"] = "1.0"
    provenance["environment"]["cpu"]["flags"] = ["avx2"]
    (copy / "provenance.json").write_text(json.dumps(provenance))
    found = reproduce(copy)
    assert found.answer == "bit-identical"
    assert {each.name for each in found.differences} == {"version.torch", "cpu.flags"}


def test_runs_that_differ_are_told_apart_by_paired_tests(
    run: ws.Run, tiny: Callable[..., Path], place: Path, tmp_path: Path
) -> None:
    near = _train(tiny("bert"), place, tmp_path / "near", seed=1)
    close = compared(RunDirectory(run.path), RunDirectory(near.path), ())
    assert close.answer == "statistically equal", close.reasons
    assert any("p = " in reason for reason in close.reasons) and any("differs, by" in r for r in close.reasons)
    far = _train(tiny("bert"), place, tmp_path / "far", epochs=10)
    apart = compared(RunDirectory(run.path), RunDirectory(far.path), ())
    assert apart.answer == "different", apart.reasons
    assert any("are the same, so far as they are recorded" in reason for reason in apart.reasons)


def test_a_run_that_was_forced_on_is_no_recipe(run: ws.Run, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run.path, copy)
    provenance = json.loads((copy / "provenance.json").read_text())
    provenance["lineage"] = [{"after_step": 4, "time": "", "differences": []}]
    (copy / "provenance.json").write_text(json.dumps(provenance))
    found = reproduce(copy)
    assert found.answer == "different" and "after step 4" in found.reasons[1]


def test_what_cannot_be_reproduced_is_an_error_with_a_next_step(
    tiny: Callable[..., Path], tmp_path: Path, run: ws.Run
) -> None:
    with pytest.raises(ws.UsageError) as caught:
        reproduce(tmp_path)
    assert caught.value.code == "run-not-found"
    unfinished = tmp_path / "unfinished"
    shutil.copytree(run.path, unfinished)
    (unfinished / "attempts.jsonl").write_text("")
    with pytest.raises(ws.UsageError) as caught:
        reproduce(unfinished)
    assert caught.value.code == "run-unfinished"
    listed = ws.train(tiny("bert"), ROWS[:24], output=tmp_path / "listed", config=ws.TrainConfig(epochs=1, **FAST))
    with pytest.raises(ws.UsageError) as caught:
        reproduce(listed.path)
    assert caught.value.code == "recipe-without-data" and "--data" in caught.value.fix
    assert reproduce(listed.path, data=ROWS[:24]).answer == "bit-identical"
