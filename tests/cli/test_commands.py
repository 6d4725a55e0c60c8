"""train, evaluate, inspect, get, tasks and doctor: what they print for programs and for people."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import warmstart as ws
from support.damage import copy_of, edit_json
from support.runs import assert_same
from warmstart.tasks import TASKS

QUICK = ("--set", "batch_size=8", "--set", "learning_rate=5e-3", "--set", "epochs=1")


# --- train ----------------------------------------------------------------------------------------------------------


def test_train_prints_one_json_line_and_leaves_a_run_that_predicts(
    warmstart: Any, tiny: Callable[..., Path], files: Path
) -> None:
    arguments = ("-m", tiny("bert", "base"), "-d", "train.jsonl", "--validation", "dev.jsonl", "-o", "runs/a")
    done = warmstart("train", *arguments, *QUICK, "--json")
    assert done.code == 0, done.err
    [line] = done.lines
    assert set(line) == {"run", "model", "steps", "metrics"} and line["steps"] == 3
    assert (line["run"], line["model"]) == ("runs/a", "runs/a/model")
    assert set(line["metrics"]["accuracy"]) == {"value", "lo", "hi"}
    assert "step 3/3" in done.err and "validation loss" in done.err and "fresh head" in done.err
    again = warmstart("predict", "-m", "runs/a", "good")
    assert again.code == 0 and again.lines[0]["scores"] == pytest.approx(ws.load("runs/a")("good").scores, abs=1e-6)
    evaluated = warmstart("evaluate", "-m", "runs/a", "-d", "dev.jsonl", "--json")
    assert evaluated.lines[0]["metrics"] == line["metrics"]


def test_train_equals_ws_train(warmstart: Any, tiny: Callable[..., Path], files: Path) -> None:
    arguments = ("-m", tiny("bert", "base"), "-d", "train.jsonl", "-o", "cli")
    assert warmstart("train", *arguments, *QUICK, "--set", "seed=3").code == 0
    config = ws.TrainConfig(batch_size=8, learning_rate=5e-3, epochs=1, seed=3)
    run = ws.train(tiny("bert", "base"), "train.jsonl", output="library", config=config)
    assert_same(ws.load("cli")(["good", "bad film"]), run.pipeline(["good", "bad film"]))
    assert Path("cli/model/model.safetensors").read_bytes() == (run.model / "model.safetensors").read_bytes()


def test_train_for_a_person_shows_where_things_are(warmstart: Any, tiny: Callable[..., Path], files: Path) -> None:
    done = warmstart("train", "-m", tiny("bert"), "-d", "train.jsonl", "--validation", "0.3", "-o", "runs/b", *QUICK)
    assert done.code == 0, done.err
    assert "runs/b/model" in done.out and "runs/b/report.html" in done.out
    assert "accuracy" in done.out and "95 % interval" in done.out and "█" in done.out


def test_train_reads_a_config_file_and_stdin(warmstart: Any, tiny: Callable[..., Path], files: Path) -> None:
    (files / "run.toml").write_text("[train]\nepochs = 0.5\nbatch_size = 4\nseed = 9\n")
    stdin = (files / "train.jsonl").read_bytes()
    done = warmstart(
        "train",
        "-m",
        tiny("bert"),
        "-d",
        "-",
        "-o",
        "r",
        "--config",
        "run.toml",
        "--set",
        "seed=1",
        "--device",
        "cpu",
        stdin=stdin,
    )
    assert done.code == 0, done.err
    config = (files / "r" / "config.toml").read_text()
    assert (
        "seed = 1" in config and 'device = "cpu"' in config and "batch_size = 4" in config and "epochs = 0.5" in config
    )
    rerun = warmstart("train", "-m", tiny("bert"), "-d", "train.jsonl", "-o", "s", "--config", "r/config.toml")
    assert rerun.code == 0, rerun.err  # what is given with the command goes before what the file says
    assert (files / "s/model/model.safetensors").read_bytes() == (files / "r/model/model.safetensors").read_bytes()


def test_on_a_terminal_the_progress_line_is_rewritten_and_an_error_takes_its_place(
    warmstart: Any, tiny: Callable[..., Path], files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("warmstart.cli.console.is_terminal", lambda stream: stream is sys.stderr)
    monkeypatch.setenv("TERM", "xterm")
    arguments = ("train", "-m", tiny("bert"), "-d", "train.jsonl", "--set", "learning_rate=1e38", "--set", "warmup=0")
    done = warmstart(*arguments, "-o", "r")
    assert done.code == 1 and "\r\x1b[Kstep 1/" in done.err
    assert done.err.rpartition("\r\x1b[K")[2].startswith("\x1b[1;31merror:\x1b[0m")
    monkeypatch.setenv("TERM", "dumb")
    assert "\x1b" not in warmstart(*arguments, "-o", "s").err


# --- evaluate -------------------------------------------------------------------------------------------------------


def test_evaluate_prints_the_shape_and_writes_its_files(warmstart: Any, tiny: Callable[..., Path], files: Path) -> None:
    done = warmstart("evaluate", "-m", tiny("bert"), "-d", "reviews.csv", "--json", "-o", "judged/here")
    assert done.code == 0, done.err
    [line] = done.lines
    assert list(line) == ["task", "rows", "metrics"] and line["rows"] == 8
    assert json.loads((files / "judged/here/metrics.json").read_text()) == line
    assert pq.read_table(files / "judged/here/predictions.parquet").num_rows == 8
    assert "review" in done.err  # the guessed column is said
    shown = warmstart("evaluate", "-m", tiny("bert"), "-d", "reviews.csv")
    assert shown.code == 0 and "8 rows" in shown.out and "95 % interval" in shown.out


def test_g104_metrics_fit_a_narrow_terminal(
    warmstart: Any, tiny: Callable[..., Path], files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    done = warmstart("evaluate", "-m", tiny("bert"), "-d", "reviews.csv")
    assert done.code == 0 and max(map(len, done.out.splitlines())) <= 60


# --- inspect, get ---------------------------------------------------------------------------------------------------


def test_inspect_tells_what_a_checkpoint_is(warmstart: Any, tiny: Callable[..., Path]) -> None:
    done = warmstart("inspect", tiny("bert"), "--json")
    [facts] = done.lines
    assert done.code == 0 and list(facts) == [
        "name", "source", "folder", "model_type", "batches", "task", "trained_head", "labels", "parameters", "dtypes",
        "bytes", "max_positions", "findings",
    ]  # fmt: skip
    assert facts["batches"] == "no padding; layers written out"
    assert facts["task"] == "text-classification" and facts["trained_head"] is True
    assert facts["labels"] == ["NEGATIVE", "POSITIVE"] and facts["dtypes"] == ["F32"]
    assert facts["parameters"] == sum(p.numel() for p in ws.load(tiny("bert")).model.parameters())
    assert facts["bytes"] > 4 * facts["parameters"] and facts["max_positions"] == 128 and facts["findings"] == []
    shown = warmstart("inspect", tiny("bert", "base"))
    assert shown.code == 0 and "model_type     bert" in shown.out


def test_inspect_says_why_layers_are_not_written_out(warmstart: Any, tiny: Callable[..., Path], tmp_path: Path) -> None:
    folder = copy_of(tiny("bert"), tmp_path / "relu")
    edit_json(folder / "config.json", {"hidden_act": "relu"})
    said = "no padding; the layers' own code: the activation is relu, no exact GELU"
    assert said in warmstart("inspect", folder).out
    [facts] = warmstart("inspect", folder, "--json").lines
    assert facts["batches"] == said


def test_c23_inspect_escapes_hostile_names(warmstart: Any, tiny: Callable[..., Path], tmp_path: Path) -> None:
    folder = copy_of(tiny("bert", labels=("\x1b[2Jbad", "good\u202e")), tmp_path / "c")
    edit_json(folder / "config.json", {"auto_map": {"AutoModel": "\x1b[31mevil.py"}})
    done = warmstart("inspect", folder)
    assert done.code == 0 and "\\x1b[2Jbad" in done.out and "\\u202e" in done.out
    assert "\x1b" not in done.out + done.err and "\u202e" not in done.out + done.err


def test_get_prints_the_folder_and_nothing_else(warmstart: Any, tiny: Callable[..., Path], encoder: Path) -> None:
    assert warmstart("get", tiny("bert")).out == f"{tiny('bert')}\n"
    assert warmstart("get", "starter-encoder").out == f"{encoder}\n"


# --- tasks, doctor --------------------------------------------------------------------------------------------------


ROWS = {
    "text-classification": ["text", "text_pair", "label"],
    "token-classification": ["text", "tokens", "tags"],
    "question-answering": ["question", "context", "answers"],
    "sentence-embedding": ["text", "text_pair", "negative", "score"],
    "rerank": ["query", "passages", "labels"],
    "zero-shot-classification": ["text", "labels", "label"],
    "fill-mask": ["text"],
    "text-generation": ["prompt", "messages", "completion", "seed"],
    "text-to-text": ["source", "target"],
}


def test_tasks_are_listed_with_rows_and_predictions(warmstart: Any) -> None:
    done = warmstart("tasks", "--json")
    [tasks] = [json.loads(done.out)]
    assert done.code == 0 and [task["name"] for task in tasks] == list(TASKS)
    assert all(set(task) == {"name", "row", "prediction"} for task in tasks)
    assert {task["name"]: task["row"] for task in tasks} == ROWS
    assert {"label", "score", "scores", "tokens", "truncated"} <= set(tasks[0]["prediction"])
    shown = warmstart("tasks").out
    assert "sentiment-analysis" in shown and "feature-extraction" in shown and "to train and evaluate" in shown


def test_doctor_tells_versions_devices_and_cache(warmstart: Any, encoder: Path) -> None:
    done = warmstart("doctor", "--json")
    [facts] = done.lines
    assert {"python", "packages", "threads", "devices", "cache", "cached", "problems"} <= set(facts)
    assert done.code == (1 if facts["problems"] else 0)
    assert facts["devices"][-1] == "cpu" and facts["packages"]["warmstart"] == ws.__version__
    assert "starter-encoder" in facts["cached"]
    assert "devices" in warmstart("doctor").out


def test_q97_doctor_finds_a_full_disk_and_exits_with_1(warmstart: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("warmstart.cli.doctor.FREE_BYTES_WANTED", 1e30)
    done = warmstart("doctor", "--json")
    assert done.code == 1 and "WARMSTART_CACHE" in done.lines[0]["problems"][0]


def test_f92_doctor_finds_a_cache_that_cannot_be_written(warmstart: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("warmstart.cli.doctor._is_writable", lambda folder: False)
    done = warmstart("doctor")
    assert done.code == 1 and "cannot be written" in done.out
