"""`ws.train` on every kind of rows, problem and family; what it makes loads everywhere."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import warmstart as ws
from support.runs import FAST, assert_same, reviews, train_reviews, weights_sha256

TEXTS = ["a great film", "the worst plot " * 9, "dull and tired"]


def _datasets(rows: list[dict[str, Any]], folder: Path) -> Any:
    import datasets

    return datasets.Dataset.from_list(rows)


def _pandas(rows: list[dict[str, Any]], folder: Path) -> Any:
    import pandas

    return pandas.DataFrame(rows)


def _csv(rows: list[dict[str, Any]], folder: Path) -> Any:
    lines = [f"{row['text']},{row['label']}" for row in rows]
    (folder / "rows.csv").write_text("\n".join(["review,category", *lines]))
    return folder / "rows.csv"


@pytest.mark.parametrize("kind", [_datasets, _pandas, _csv])
def test_rows_from_anywhere_train_the_same_weights(
    tiny: Callable[..., Path], tmp_path: Path, kind: Callable[..., Any]
) -> None:
    rows = reviews(16)
    config = ws.TrainConfig(epochs=1, **FAST)
    plain = ws.train(tiny("bert"), rows, output=tmp_path / "list", config=config)
    other = ws.train(tiny("bert"), kind(rows, tmp_path), output=tmp_path / "other", config=config)
    assert weights_sha256(other) == weights_sha256(plain)


def test_a_share_is_held_out_and_columns_are_pinned(tiny: Callable[..., Path], tmp_path: Path) -> None:
    rows = [{"body": row["text"], "text": "always the same", "kind": row["label"]} for row in reviews(40)]
    config = ws.TrainConfig(epochs=1, **FAST)
    columns = {"text": "body", "label": "kind"}
    run = ws.train(tiny("bert"), rows, output=tmp_path / "r", validation=0.25, columns=columns, config=config)
    assert run.validation is not None and 3 <= run.validation.rows <= 17
    lines = map(json.loads, (run.path / "metrics.jsonl").read_text().splitlines())
    assert sum(line.get("rows", 0) for line in lines) == 40 - run.validation.rows
    table = pq.read_table(run.path / "predictions.parquet")
    told = {"row", "text", "input_text", "label", "prediction", "loss", "correct"}
    assert set(table.column_names) == told | {"true", "predicted", "scores"}  # what metrics are computed from
    assert set(table["input_text"].to_pylist()) == {"always the same"}


@pytest.mark.parametrize(
    ("labels", "problem", "metric"),
    [
        ([["a"], ["a", "b"], [], ["b"]] * 5, "multi_label_classification", "micro_f1"),
        ([0.5, 2.25, 1.0, 4.0] * 5, "regression", "pearson"),
        (["x", "y", "z", "x"] * 5, "single_label_classification", "auroc"),
    ],
)
def test_each_problem_trains_evaluates_and_loads_in_transformers(
    tiny: Callable[..., Path], tmp_path: Path, labels: list[Any], problem: str, metric: str
) -> None:
    rows = [
        {"text": f"{row['text']} {n}", "label": label}
        for n, (row, label) in enumerate(zip(reviews(20), labels, strict=True))
    ]
    config = ws.TrainConfig(epochs=2, **FAST)
    run = ws.train(tiny("bert", "base"), rows[:12], output=tmp_path / "r", validation=rows[12:], config=config)
    assert metric in run.metrics
    plain = AutoModelForSequenceClassification.from_pretrained(run.model)
    assert plain.config.problem_type == problem
    again = ws.load(run.path)
    assert_same(again(TEXTS), run.pipeline(TEXTS))
    [batch] = ws.batches(rows[12:], again.task)
    assert plain(**batch).loss.item() == pytest.approx(ws.evaluate(again, rows[12:]).loss, rel=1e-4)
    columns = pq.read_table(run.path / "predictions.parquet").column_names
    assert ("error" if problem == "regression" else "correct") in columns


def test_pairs_train_and_the_long_option_survives(tiny: Callable[..., Path], tmp_path: Path) -> None:
    rows = [
        {"premise": row["text"], "hypothesis": f"it is {n % 3}", "label": row["label"]}
        for n, row in enumerate(reviews(20))
    ]
    options = {"long_text": "windows", "stride": 3, "max_length": 40}
    config = ws.TrainConfig(epochs=1, **FAST)
    run = ws.train(tiny("bert"), rows[:14], output=tmp_path / "r", validation=rows[14:], config=config, options=options)
    task = ws.load(run.path).task
    assert (task.long_text, task.stride, task.tokenizer.limit) == ("windows", 3, 40)
    prediction = ws.load(run.path)("wonderful story " * 80)
    assert not prediction.truncated and prediction.tokens > 128
    assert ws.load(run.path, options={"long_text": "truncate"})("good " * 200).truncated


@pytest.mark.parametrize("family", ["bert", "distilbert", "roberta", "modernbert", "gpt2"])
def test_every_family_fine_tunes_and_its_result_loads_everywhere(
    tiny: Callable[..., Path], tmp_path: Path, family: str
) -> None:
    rows = reviews(24)
    config = ws.TrainConfig(epochs=1, batch_size=5, learning_rate=1e-3)
    run = ws.train(tiny(family, "base"), rows[:18], output=tmp_path / "r", validation=rows[18:], config=config)
    expected = run.pipeline(TEXTS)  # three texts of unequal length: gpt2 has no padding token of its own
    singly = [run.pipeline(text) for text in TEXTS]
    for one, other in zip(expected, singly, strict=True):
        assert one.label == other.label and one.score == pytest.approx(other.score, abs=1e-5)
    assert_same(ws.load(run.path)(TEXTS), expected)
    plain = AutoModelForSequenceClassification.from_pretrained(run.model)
    tokenizer = AutoTokenizer.from_pretrained(run.model)
    for text, prediction in zip(TEXTS, expected, strict=True):
        with torch.no_grad():
            scores = plain(**tokenizer(text, return_tensors="pt")).logits.softmax(-1)
        assert scores.max().item() == pytest.approx(prediction.score, abs=1e-5)


def test_a_trained_head_that_fits_goes_on_and_another_is_started_afresh(
    tiny: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = train_reviews(tiny("bert", "base"), tmp_path / "first", epochs=2)
    config = ws.TrainConfig(epochs=1, max_steps=1, learning_rate=1e-9)
    with caplog.at_level(logging.INFO, logger="warmstart"):
        more = ws.train(run.path, reviews(8), output=tmp_path / "more", config=config)
    assert "fresh head" not in caplog.text
    assert [p.label for p in more.pipeline(TEXTS)] == [p.label for p in run.pipeline(TEXTS)]
    with caplog.at_level(logging.INFO, logger="warmstart"):
        other = ws.train(run.path, reviews(8, labels=("low", "high")), output=tmp_path / "other", config=config)
    assert "starting a fresh head" in caplog.text and other.pipeline.task.labels == ("high", "low")
    assert not torch.equal(other.pipeline.model.classifier.weight, run.pipeline.model.classifier.weight)
    same = torch.equal(
        other.pipeline.model.bert.embeddings.position_embeddings.weight[60:],
        run.pipeline.model.bert.embeddings.position_embeddings.weight[60:],
    )
    assert same  # the encoder is still the run's
