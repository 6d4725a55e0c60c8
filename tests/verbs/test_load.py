"""`ws.load`: what it hands out, what it refuses, and in which order it looks."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import warmstart as ws
from support.damage import copy_of, edit_json
from support.runs import assert_same

TEXTS = ["a great film", "the worst plot " * 9, "dull"]
FAMILIES = ("bert", "distilbert", "roberta", "modernbert", "gpt2")


@pytest.fixture
def nothing_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def find(name: object) -> NoReturn:
        raise AssertionError(f"{name} was looked for")

    monkeypatch.setattr("warmstart.verbs.load.find", find)


@pytest.mark.parametrize("family", FAMILIES)
def test_it_hands_out_the_very_objects_of_transformers_and_agrees_with_the_textbook(
    tiny: Callable[..., Path], family: str
) -> None:
    pipe = ws.load(tiny(family))
    plain = AutoModelForSequenceClassification.from_pretrained(tiny(family), dtype=torch.float32)
    assert type(pipe.model) is type(plain) and type(pipe.tokenizer) is type(AutoTokenizer.from_pretrained(tiny(family)))
    assert not pipe.model.training and {p.dtype for p in pipe.model.parameters()} == {torch.float32}
    for text, prediction in zip(TEXTS, pipe(TEXTS), strict=True):
        with torch.no_grad():
            scores = pipe.model(**pipe.tokenizer(text, return_tensors="pt")).logits.softmax(-1)[0]
            assert torch.allclose(plain(**pipe.tokenizer(text, return_tensors="pt")).logits.softmax(-1)[0], scores)
        assert prediction.label == pipe.model.config.id2label[int(scores.argmax())]
        assert list(prediction.scores.values()) == pytest.approx(scores.tolist(), abs=1e-5)
        assert prediction.tokens == len(pipe.tokenizer(text)["input_ids"]) and not prediction.truncated


@pytest.mark.usefixtures("nothing_found")
@pytest.mark.parametrize(
    ("arguments", "code", "hint"),
    [
        ({"task": "text-clasification"}, "task-unknown", "did you mean text-classification"),
        ({"task": "sentiment"}, "task-unknown", "sentiment-analysis"),
        ({"task": ""}, "task-unknown", "known:"),
        ({"device": "gpu"}, "device-unknown", "cuda"),
        ({"device": "cuda:99"}, "device-unavailable", "cpu"),
        ({"task": "sentiment-analysis", "options": {"strid": 3}}, "option-unknown", "did you mean stride?"),
        ({"task": "text-classification", "options": {"max_len": 3}}, "option-unknown", "did you mean max_length?"),
        ({"labels": "positive"}, "labels-not-names", "labels=["),
        ({"labels": [0, 1]}, "labels-not-names", "labels=["),
        ({"labels": ["a", " "]}, "labels-not-names", "labels=["),
    ],
)
def test_g101_a_wrong_name_is_refused_before_any_file_is_touched(
    arguments: dict[str, Any], code: str, hint: str
) -> None:
    with pytest.raises(ws.UsageError) as caught:
        ws.load("anything", **arguments)
    assert caught.value.code == code and hint in caught.value.fix


def test_an_alias_is_the_task(tiny: Callable[..., Path]) -> None:
    assert ws.load(tiny("bert"), task="sentiment-analysis").task.name == "text-classification"
    assert ws.load(tiny("bert", "base"), task="feature-extraction").task.name == "sentence-embedding"


def test_labels_start_a_fresh_head(tiny: Callable[..., Path]) -> None:
    pipe = ws.load(tiny("bert", "base"), task="text-classification", labels=["low", "mid", "high"])
    assert pipe.task.labels == ("low", "mid", "high") and pipe.model.config.num_labels == 3
    assert pipe.model.config.id2label == {0: "low", 1: "mid", 2: "high"}
    assert set(pipe("good").scores) == {"low", "mid", "high"}
    number = ws.load(tiny("bert"), labels=("stars",))
    assert number.task.problem == "regression" and number("good").label == "stars"
    old = ws.load(tiny("bert")).model.classifier.weight
    renewed = ws.load(tiny("bert"), labels=["NEGATIVE", "POSITIVE"]).model.classifier.weight
    assert not torch.equal(old, renewed)  # asked for: never the old head under new names


@pytest.mark.parametrize(("labels", "code"), [([], "labels-empty"), (["a", "a"], "label-duplicate")])
def test_labels_that_cannot_be_are_refused(tiny: Callable[..., Path], labels: list[str], code: str) -> None:
    with pytest.raises(ws.WarmstartError) as caught:
        ws.load(tiny("bert"), labels=labels)
    assert caught.value.code == code


def test_labels_for_a_task_that_has_none(tiny: Callable[..., Path]) -> None:
    with pytest.raises(ws.UsageError) as caught:
        ws.load(tiny("bert", "base"), task="sentence-embedding", labels=["a", "b"])
    assert caught.value.code == "task-has-no-labels"


def test_c24_a_missing_head_is_never_made_up(tiny: Callable[..., Path]) -> None:
    start = time.perf_counter()
    with pytest.raises(ws.CheckpointError) as caught:
        ws.load(tiny("bert", "base"), task="text-classification")
    assert time.perf_counter() - start < 5
    assert caught.value.code == "head-missing" and caught.value.exit_code == 4
    assert "labels" in caught.value.fix or "train" in caught.value.fix
    assert ws.load(tiny("bert"), task="text-classification")("good").label  # the healthy twin


def test_a_base_model_does_not_say_its_task(tiny: Callable[..., Path]) -> None:
    with pytest.raises(ws.UsageError) as caught:
        ws.load(tiny("bert", "base"))
    assert caught.value.code == "task-unclear" and "text-classification" in caught.value.fix


def test_a_task_of_another_version_is_named(tiny: Callable[..., Path], tmp_path: Path) -> None:
    folder = copy_of(tiny("bert"), tmp_path / "c")
    edit_json(folder / "config.json", {"architectures": ["BertForImageClassification"]})
    with pytest.raises(ws.UsageError) as caught:
        ws.load(folder)
    assert caught.value.code == "task-unsupported" and caught.value.value == "image-classification"


@pytest.mark.parametrize(
    "options", [{"strid": 3}, {"long_text": "windowed"}, {"max_length": 0}, {"max_length": "9"}, {"max_length": True}]
)
def test_an_option_that_cannot_be_is_refused(tiny: Callable[..., Path], options: dict[str, Any]) -> None:
    with pytest.raises(ws.UsageError) as caught:
        ws.load(tiny("bert"), options=options)
    assert caught.value.code in ("option-unknown", "option-value")
    assert next(iter(options)) in str(caught.value)


def test_a_limit_the_model_cannot_have_is_said(tiny: Callable[..., Path], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="warmstart"):
        pipe = ws.load(tiny("bert"), options={"max_length": 64})
        assert pipe.task.tokenizer.limit == 64 and caplog.text == ""
        pipe = ws.load(tiny("bert"), options={"max_length": 4096})
    assert pipe.task.tokenizer.limit == 128 and "limit is 128 tokens" in caplog.text


# --- the record a run leaves beside its weights ---------------------------------------------------------------------


def _with_record(tiny: Callable[..., Path], tmp_path: Path, options: Any, task: str = "text-classification") -> Path:
    folder = copy_of(tiny("bert"), tmp_path / "c")
    (folder / "warmstart.json").write_text(json.dumps({"task": task, "options": options}))
    return folder


def test_saved_options_stand_where_none_are_given(tiny: Callable[..., Path], tmp_path: Path) -> None:
    folder = _with_record(tiny, tmp_path, {"long_text": "windows", "stride": 5, "max_length": 30})
    task = ws.load(folder).task
    assert (task.long_text, task.stride, task.tokenizer.limit) == ("windows", 5, 30)
    task = ws.load(folder, options={"stride": 7, "max_length": 40}).task
    assert (task.long_text, task.stride, task.tokenizer.limit) == ("windows", 7, 40)


def test_saved_options_of_another_version_or_task_are_left_out(
    tiny: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = _with_record(tiny, tmp_path, {"stride": 5, "merge": "max"})
    with caplog.at_level(logging.WARNING, logger="warmstart"):
        assert ws.load(folder).task.stride == 5
    assert "merge" in caplog.text
    assert ws.load(folder, task="sentence-embedding").task.stride != 5


@pytest.mark.parametrize("options", [{"stride": "5"}, {"max_length": -1}, {"max_length": 1}, {"long_text": ["x"]}])
def test_saved_options_that_cannot_be_blame_the_file(
    tiny: Callable[..., Path], tmp_path: Path, options: dict[str, Any]
) -> None:
    folder = _with_record(tiny, tmp_path, options)
    with pytest.raises(ws.CheckpointError) as caught:
        ws.load(folder)
    assert caught.value.code == "record-invalid" and "warmstart.json" in str(caught.value.where)


@pytest.mark.parametrize("options", [None, 5, "x", ["stride"]])
def test_a_record_without_options_is_none(tiny: Callable[..., Path], tmp_path: Path, options: Any) -> None:
    assert ws.load(_with_record(tiny, tmp_path, options)).task.long_text == "truncate"


def test_a_person_may_save_the_objects_and_load_the_folder(tiny: Callable[..., Path], tmp_path: Path) -> None:
    pipe = ws.load(tiny("roberta"))
    pipe.tokenizer(TEXTS, padding="max_length", truncation=True, max_length=8)  # leaves its mark in the Rust object
    pipe.model.save_pretrained(tmp_path / "mine")
    pipe.tokenizer.save_pretrained(tmp_path / "mine")
    assert_same(ws.load(tmp_path / "mine")(TEXTS), pipe(TEXTS))
