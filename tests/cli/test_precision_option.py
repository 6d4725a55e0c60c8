"""`--precision` of evaluate, serve and bench, by the same helper as predict's; `inspect -m`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import warmstart as ws
from support.exports import tiny_export
from warmstart.verbs import bench as bench_verb
from warmstart.verbs.choice import Choice


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WARMSTART_CACHE", str(tmp_path / "cache"))


def test_evaluate_judges_in_the_precision_it_is_told(warmstart: Any, tiny: Callable[..., Path], files: Path) -> None:
    model, metrics = tiny("bert"), {}
    for precision in ("fp32", "bf16"):
        done = warmstart("evaluate", "-m", model, "-d", "train.jsonl", "--precision", precision, "-o", precision)
        assert done.code == 0, done.err
        pipe, _ = ws.load_for(model, precision=precision)
        metrics[precision] = ws.evaluate(pipe, "train.jsonl")
        assert f"mean loss {metrics[precision].loss:.4f}" in done.out
    assert metrics["fp32"].loss != metrics["bf16"].loss


@pytest.mark.parametrize("precision", ["int8", "auto"])
def test_rows_that_judge_calibrate_nothing(
    warmstart: Any, tiny: Callable[..., Path], files: Path, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def refusing(model: Any, *, data: Any, **given: Any) -> None:
        seen.append(data)
        raise ws.UsageError("export-rows-needed", "rows are needed", fix="-d ROWS")

    monkeypatch.setattr("warmstart.verbs.choose.load_for", refusing)
    done = warmstart("evaluate", "-m", tiny("bert"), "-d", "train.jsonl", "--precision", precision)
    assert done.code == 2 and seen == [None]
    assert "warmstart export" in done.err and "-m FOLDER" in done.err


def test_int8_without_rows_says_how_to_make_the_graph(warmstart: Any, tiny: Callable[..., Path], files: Path) -> None:
    for command in (("evaluate", "-d", "train.jsonl"), ("serve",), ("predict", "a text")):
        done = warmstart(*command, "-m", tiny("bert"), "--precision", "int8")
        assert done.code == 2 and "export-rows-needed" in done.err and "warmstart export" in done.err


def test_serve_loads_every_model_in_the_precision(
    warmstart: Any, tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    served: list[Any] = []
    monkeypatch.setattr("warmstart.serving.server.serve", lambda pipelines, **given: served.append(pipelines))
    assert warmstart("serve", "-m", f"a={tiny('bert')}", "-m", f"b={tiny('roberta')}", "--precision", "bf16").code == 0
    assert warmstart("serve", "-m", f"a={tiny('bert')}").code == 0
    low, plain = served
    assert {name: str(pipe.model.dtype) for name, pipe in low.items()} == {"a": "torch.bfloat16", "b": "torch.bfloat16"}
    assert str(plain["a"].model.dtype) == "torch.float32"


@pytest.mark.parametrize("command", [("evaluate", "-d", "train.jsonl"), ("serve",), ("bench", "-i", "train.jsonl")])
def test_a_precision_that_is_none_is_refused(
    warmstart: Any, tiny: Callable[..., Path], files: Path, command: tuple[str, ...]
) -> None:
    done = warmstart(*command, "-m", tiny("bert"), "--precision", "int9")
    assert done.code == 2 and "precision-unknown" in done.err and "int8" in done.err


def test_bench_runs_ours_in_the_precision_and_says_so(
    warmstart: Any, tiny: Callable[..., Path], files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_verb, "_peers", lambda facts, folder: iter(()))
    arguments = ("bench", "-m", tiny("bert"), "-i", "reviews.csv", "--rows", "4", "--repeats", "1", "--threads", "1")
    done = warmstart(*arguments, "--precision", "bf16", "--json")
    assert done.code == 0, done.err
    assert done.lines[0]["precision"] == "torch bf16" and "torch bf16" in done.err


def test_what_bench_hands_to_its_contestant(
    tiny: Callable[..., Path], tiny_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = bench_verb._subject(tiny("bert"), None, "auto")
    assert subject.precision == "torch fp32" and "dtype" not in subject.own.settings
    texts = [{"text": "a good film"}]
    low = bench_verb._in_precision(subject, tiny("bert"), "bf16", texts, None, "auto")
    assert (low.precision, low.own.settings["dtype"], low.source) == ("torch bf16", "bfloat16", subject.source)
    assert low.own.settings["model"] == str(tiny("bert")) and low.own.settings["exported"] is False
    graph = tiny_export(tiny_root, "openvino")
    seen: list[Any] = []

    def chosen(model: Any, **given: Any) -> tuple[ws.Pipeline, Choice | None]:
        seen.append(given["data"])
        return ws.load(graph), None

    monkeypatch.setattr(bench_verb, "load_for", chosen)
    exported = bench_verb._in_precision(subject, tiny("bert"), "int8", texts, None, "auto")
    assert exported.precision == "openvino fp32" and exported.own.settings["exported"] is True
    assert exported.own.settings["model"] == str(graph) and exported.source == subject.source and seen == [texts]


def test_inspect_takes_its_model_either_way(warmstart: Any, tiny: Callable[..., Path]) -> None:
    folder = tiny("bert")
    named, placed = warmstart("inspect", "-m", folder, "--json"), warmstart("inspect", folder, "--json")
    assert named.code == 0 and named.lines == placed.lines and named.lines[0]["model_type"] == "bert"
    both = warmstart("inspect", folder, "-m", folder)
    assert both.code == 2 and "option-conflict" in both.err
    neither = warmstart("inspect")
    assert neither.code == 2 and "MODEL" in neither.err
