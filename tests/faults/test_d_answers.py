"""The fault catalogue, D44: answers that do not stand where they are said to, or that no window holds as a whole."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import Any

import pytest

import warmstart as ws
from support.models import tiny_checkpoint
from warmstart.errors import DataError, Where
from warmstart.rows import Row
from warmstart.training.batches import make_batches

CONTEXT = "The cast is great but the story never begins? The cast is said to be happy."
SECONDS = 2.0


@pytest.fixture(scope="module")
def pipe(tiny_root: Path) -> ws.Pipeline:
    return ws.load(tiny_checkpoint(tiny_root, "bert", "question-answering"), device="cpu")


def rows(*answers: Any) -> list[Row]:
    known = {"question": "is it fun?", "context": CONTEXT}
    return [Row(known | {"answers": answer}, Where(row=i)) for i, answer in enumerate(answers)]


def batches(pipe: ws.Pipeline, *answers: Any) -> Any:
    started = time.process_time()
    made = make_batches(pipe.task, rows(*answers), seed=0, batch_size=4, max_tokens=None)
    assert time.process_time() - started < SECONDS
    return made


def spelled(pipe: ws.Pipeline, features: Any) -> str:
    [feature] = features
    first, last = (int(feature.targets[f"{name}_positions"]) for name in ("start", "end"))
    return str(pipe.tokenizer.decode(feature.inputs["input_ids"][first : last + 1]))


def test_d44_healthy_answers_are_learned_as_they_are(pipe: ws.Pipeline, caplog: pytest.LogCaptureFixture) -> None:
    made = batches(pipe, {"text": ["great"], "answer_start": [12]}, "story", [])
    assert caplog.text == ""
    assert made.left_out == ()
    assert [features[0].meta["answer"] for features in made.features] == ["as-given", "only", "none"]
    assert [spelled(pipe, features) for features in made.features[:2]] == ["great", "story"]


def test_d44_a_wrong_start_is_counted_and_moved_to_the_nearest(
    pipe: ws.Pipeline, caplog: pytest.LogCaptureFixture
) -> None:
    good = {"text": ["cast"], "answer_start": [50]}
    made = batches(pipe, good, {"text": ["cast"], "answer_start": [47]}, {"text": ["cast"], "answer_start": [5]})
    assert "2 of 3 answers do not begin at their answer_start" in caplog.text
    assert "first at row 1" in caplog.text
    assert [features[0].meta["answer"] for features in made.features] == ["as-given", "moved", "moved"]
    starts = [int(features[0].targets["start_positions"]) for features in made.features]
    assert starts[0] == starts[1] > starts[2]  # the second "cast", and the first


def test_d44_one_text_at_several_places_is_counted(pipe: ws.Pipeline, caplog: pytest.LogCaptureFixture) -> None:
    made = batches(pipe, "cast", "great")
    assert "1 of 2 answers have no answer_start and occur several times; the first is taken" in caplog.text
    assert [features[0].meta["answer"] for features in made.features] == ["first", "only"]


def test_d44_an_answer_that_is_not_in_the_context_is_counted_and_left_out(
    pipe: ws.Pipeline, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "train.jsonl"
    lines = rows({"text": "great", "answer_start": 12}, {"text": "terrible", "answer_start": 12}, "story")
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    config = ws.TrainConfig(max_steps=1, device="cpu")
    run = ws.train(pipe.name, path, output=tmp_path / "run", config=config)
    assert f"1 of 3 answers do not occur in their context: nothing to learn from: first at {path}:2" in caplog.text
    assert json.loads((run.path / "provenance.json").read_text())["data"]["left_out"] == [1]
    judged = ws.evaluate(run.pipeline, path)  # it is judged nonetheless: by its text
    assert judged.rows == 3
    assert judged.per_example["f1"][1] == 0


@pytest.mark.parametrize("long_text", ["truncate", "windows"])
def test_d44_an_answer_outside_every_window_is_counted_and_left_out(
    tiny_root: Path, caplog: pytest.LogCaptureFixture, long_text: str
) -> None:
    """Cut off with the end of the context; or longer than what windows have in common, and across a seam."""
    folder = tiny_checkpoint(tiny_root, "bert", "question-answering")
    pipe = ws.load(folder, options={"long_text": long_text, "max_length": 20, "stride": 2}, device="cpu")
    outside = "said to be happy." if long_text == "truncate" else CONTEXT[4:70]
    made = batches(pipe, "great", outside)
    assert "1 of 2 answers lie in no window as a whole" in caplog.text
    assert made.left_out == (1,)
    assert len(made.features) == len(made.plan[0]) == 1
    caplog.clear()
    whole = ws.load(folder, options={"long_text": long_text}, device="cpu")
    assert batches(whole, "great", outside).left_out == ()
    assert caplog.text == ""


def test_d44_nothing_to_learn_at_all_is_an_error(pipe: ws.Pipeline, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(DataError) as caught:
        batches(pipe, "terrible", "awful")
    assert caught.value.code == "no-rows"
    assert "2 of 2 answers" in caplog.text


def test_d44_counting_takes_no_time_that_grows_with_the_square(
    pipe: ws.Pipeline, caplog: pytest.LogCaptureFixture
) -> None:
    """A long context that is all but the answer, at every place."""
    caplog.set_level(logging.ERROR)
    context = "aaaaaaaaab" * 20_000
    wrong = Row({"question": "is it?", "context": context, "answers": {"text": "a" * 10, "answer_start": 5}})
    started = time.process_time()
    with pytest.raises(DataError):
        make_batches(pipe.task, [wrong], seed=0, batch_size=4, max_tokens=None)
    assert time.process_time() - started < 10
