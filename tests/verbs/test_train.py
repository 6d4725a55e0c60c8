"""`ws.train`: what a run writes, which weights it keeps, and what is refused before its first step."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import warmstart as ws
from support.runs import FAST, assert_same, reviews, train_reviews, weights_sha256
from warmstart.checkpoints import verify
from warmstart.training.config import plain, read_config

FILES = {
    "config.toml",
    "provenance.json",
    "metrics.jsonl",
    "predictions.parquet",
    "report.html",
    "checkpoints",
    "model",
    "attempts.jsonl",
    ".lock",
}
MODEL_FILES = {
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "README.md",
    "warmstart.json",
    "MANIFEST.json",
}
TEXTS = ["a great film", "the worst plot " * 9, "dull and tired"]


@pytest.fixture(scope="module")
def run(tiny: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> ws.Run:
    return train_reviews(tiny("bert", "base"), tmp_path_factory.mktemp("runs") / "a", epochs=5)


def _lines(run: ws.Run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]


def _steps(run: ws.Run) -> list[dict[str, Any]]:
    return [line for line in _lines(run) if "loss" in line]


def _evaluations(run: ws.Run) -> list[dict[str, Any]]:
    return [line for line in _lines(run) if "validation" in line]


# --- the run directory ---------------------------------------------------------------------------------------------


def test_a_run_learns_and_holds_exactly_the_promised_files(run: ws.Run) -> None:
    assert run.metrics["accuracy"].value >= 0.9
    assert {path.name for path in run.path.iterdir()} == FILES
    assert {path.name for path in run.model.iterdir()} == MODEL_FILES
    assert run.model == run.path / "model" and [p.name for p in (run.path / "checkpoints").iterdir()] == ["best"]
    assert repr(run.pipeline).startswith("Pipeline(")


def test_metrics_have_each_step_once_and_the_rates_of_the_schedule(run: ws.Run) -> None:
    steps = _steps(run)
    assert [line["step"] for line in steps] == list(range(1, run.steps + 1)) == list(range(1, 41))
    assert set(steps[0]) == {
        "step",
        "epoch",
        "loss",
        "learning_rate",
        "grad_norm",
        "tokens",
        "rows",
        "seconds",
        "parts",
    }
    assert steps[-1]["epoch"] == 5 and sum(line["rows"] for line in steps) == 300
    rates = [line["learning_rate"] for line in steps]
    assert rates.index(max(rates)) == 4 and rates[4] == FAST["learning_rate"]
    assert rates[5:] == sorted(rates[5:], reverse=True)
    assert [line["step"] for line in _evaluations(run)] == [8, 16, 24, 32, 40]
    last = _evaluations(run)[-1]["validation"]
    assert set(last) == {"loss", "accuracy", "macro_f1", "mcc", "auroc"} and set(last["mcc"]) == {"value", "lo", "hi"}


def test_the_config_is_resolved_and_can_be_run_again(run: ws.Run) -> None:
    document = tomllib.loads((run.path / "config.toml").read_text())
    assert set(document) == {"model", "task", "options", "train"} and document["task"] == "text-classification"
    assert "data" not in document  # the rows came from no file
    assert document["train"]["max_steps"] == "none" and set(document["train"]) == set(plain(ws.TrainConfig()))
    config = read_config(run.path / "config.toml")
    assert config == ws.TrainConfig(epochs=5, **FAST)


def test_predictions_have_a_line_for_each_validation_example(run: ws.Run) -> None:
    assert run.validation is not None
    table = pq.read_table(run.path / "predictions.parquet")
    assert table.column_names[:6] == ["row", "label", "text", "prediction", "loss", "correct"]
    assert set(table.column_names[6:]) == {"true", "predicted", "scores"}  # what metrics are computed from
    rows = table.to_pylist()
    assert [row["row"] for row in rows] == list(range(20))
    for row, again in zip(rows, run.pipeline([row["text"] for row in rows]), strict=True):
        prediction = json.loads(row["prediction"])
        assert prediction["label"] == again.label and prediction["score"] == pytest.approx(again.score, abs=1e-6)
        assert row["correct"] == (row["label"] == again.label)
        probability = torch.tensor(prediction["scores"][row["label"]], dtype=torch.float64)
        assert row["loss"] == pytest.approx(-probability.log().item(), abs=1e-6)


def test_the_report_is_one_page_that_fetches_nothing(run: ws.Run) -> None:
    page = (run.path / "report.html").read_text()
    assert "<html" in page and "accuracy" in page
    assert "<script" not in page and "src=" not in page and "http" not in page.replace("http-equiv", "")


def test_the_model_is_a_checkpoint_that_transformers_loads_with_the_same_logits(run: ws.Run) -> None:
    plain = AutoModelForSequenceClassification.from_pretrained(run.model)
    tokenizer = AutoTokenizer.from_pretrained(run.model)
    ours = run.pipeline
    assert type(plain) is type(ours.model) and plain.config.id2label == {0: "NEGATIVE", 1: "POSITIVE"}
    for text in TEXTS:  # but for rounding: ours computes the last layer for the first token alone
        with torch.no_grad():
            inputs = tokenizer(text, return_tensors="pt")
            torch.testing.assert_close(plain(**inputs).logits, ours.model(**inputs).logits, rtol=0, atol=1e-6)
    stored, held = plain.state_dict(), ours.model.state_dict()
    assert stored.keys() == held.keys() and all(torch.equal(stored[name], held[name]) for name in held)
    with torch.no_grad():
        logits = plain(**tokenizer(TEXTS, padding=True, return_tensors="pt")).logits
    for row, prediction in zip(logits.softmax(-1), ours(TEXTS), strict=True):
        assert row.max().item() == pytest.approx(prediction.score, abs=1e-5)
        assert plain.config.id2label[int(row.argmax())] == prediction.label
    stored = json.loads((run.model / "tokenizer.json").read_text())
    assert stored["truncation"] is None and stored["padding"] is None


def test_the_card_and_the_record_say_what_the_run_was(run: ws.Run) -> None:
    _, front, body = (run.model / "README.md").read_text().split("---\n", 2)
    known = yaml.safe_load(front)
    assert known["library_name"] == "transformers" and known["pipeline_tag"] == "text-classification"
    assert known["base_model"].endswith("bert-base-none") and "accuracy" in body and "`epochs`: 5" in body
    record = json.loads((run.model / "warmstart.json").read_text())
    assert record["task"] == "text-classification" and record["training_rows"] == 60 and record["steps"] == 40
    assert record["options"]["long_text"] == "truncate" and record["settings"]["learning_rate"] == 5e-3
    assert record["metrics"]["accuracy"]["value"] == run.metrics["accuracy"].value
    provenance = json.loads((run.path / "provenance.json").read_text())
    assert set(provenance) == {"checkpoint", "data", "environment", "task", "numerics", "lineage"}
    assert provenance["lineage"] == [] and provenance["task"]["name"] == "text-classification"
    assert verify(run.model).findings == ()


@pytest.mark.parametrize("name", ['quote "x": #y', "- dash", "@at: colon", "line\nbreak", "[list", "Ünïcode"])
def test_the_cards_front_matter_is_yaml_whatever_the_base_is_called(name: str) -> None:
    from warmstart.training.model_card import RunFacts

    facts = RunFacts("text-classification", name, {}, {}, {}, 1, 0, 1)
    front = facts.files()["README.md"].decode().split("\n---\n", 1)[0]
    assert yaml.safe_load(front.removeprefix("---\n"))["base_model"] == name


def test_run_directory_and_its_model_load_again(run: ws.Run) -> None:
    expected = run.pipeline(TEXTS)
    for name in (run.path, str(run.path), run.model):
        again = ws.load(name)
        assert again.task.labels == run.pipeline.task.labels
        assert_same(again(TEXTS), expected)


# --- which weights are kept -----------------------------------------------------------------------------------------


def test_the_best_weights_are_what_is_saved_and_what_the_pipeline_has(run: ws.Run) -> None:
    assert run.validation is not None
    seen = {line["step"]: line["validation"] for line in _evaluations(run)}
    best = max(seen, key=lambda step: (seen[step]["accuracy"]["value"], -seen[step]["loss"]))
    assert run.best_step == best
    assert run.validation.loss == pytest.approx(seen[best]["loss"])
    again = ws.evaluate(run.pipeline, reviews(80)[60:])
    assert again.loss == pytest.approx(seen[best]["loss"], abs=1e-7)
    best_file = run.path / "checkpoints" / "best" / "model.safetensors"
    assert best_file.read_bytes() == (run.model / "model.safetensors").read_bytes()


def test_patience_ends_a_run_and_an_earlier_best_is_taken_back(tiny: Callable[..., Path], tmp_path: Path) -> None:
    """At a rate that ruins the model, the first evaluation stays the best."""
    config = {"epochs": 20, "evaluate_every": 2, "patience": 3, "learning_rate": 0.5, "schedule": "constant"}
    run = train_reviews(tiny("bert"), tmp_path / "r", **config)
    steps = [line["step"] for line in _evaluations(run)]
    assert run.best_step < run.steps and run.steps == steps[-1] < 160
    assert steps.index(run.steps) - steps.index(run.best_step) == 3
    assert run.validation is not None
    assert ws.evaluate(ws.load(run.path), reviews(80)[60:]).loss == pytest.approx(run.validation.loss, abs=1e-7)


def test_without_validation_the_last_weights_are_kept(tiny: Callable[..., Path], tmp_path: Path) -> None:
    config = ws.TrainConfig(epochs=1, **FAST)
    run = ws.train(tiny("bert"), reviews(20), output=tmp_path / "r", config=config)
    assert run.metrics == {} and run.validation is None and run.best_step == run.steps == 3
    assert not (run.path / "predictions.parquet").exists() and list((run.path / "checkpoints").iterdir()) == []
    assert (run.path / "report.html").exists()
    assert_same(run.pipeline(TEXTS), ws.load(run.path)(TEXTS))
    assert not run.pipeline.model.training


def test_step_checkpoints_are_saved_and_the_newest_kept(tiny: Callable[..., Path], tmp_path: Path) -> None:
    run = train_reviews(tiny("bert"), tmp_path / "r", epochs=2, save_every=3, keep=2)
    names = sorted(path.name for path in (run.path / "checkpoints").iterdir())
    assert names == ["best", "step-000012", "step-000015"]
    for name in names:
        assert ws.load(run.path / "checkpoints" / name)(TEXTS)


def test_checkpoints_are_pruned_by_number_not_by_name(tmp_path: Path) -> None:
    from warmstart.training.run import RunDirectory

    directory = RunDirectory(tmp_path / "r")
    directory.create()
    for step in (999_998, 999_999, 1_000_000, 1_000_001):
        directory.step_checkpoint(step).mkdir()
    directory.best.mkdir()
    (tmp_path / "r" / "checkpoints" / "step-notes").mkdir()
    directory.prune(2)
    left = sorted(path.name for path in (tmp_path / "r" / "checkpoints").iterdir())
    assert left == ["best", "step-1000000", "step-1000001", "step-notes"]


def test_a_regression_is_ranked_by_its_correlation_even_where_that_is_undefined_at_first(
    tiny: Callable[..., Path], tmp_path: Path
) -> None:
    """Constant predictions have no correlation; a mean error must never be taken for one (larger is not better)."""
    from warmstart.verbs.evaluate import evaluate_rows

    rows = [{"text": row["text"], "label": 0.5 + (row["label"] == "POSITIVE")} for row in reviews(24)]
    config = ws.TrainConfig(epochs=1, **FAST)
    run = ws.train(tiny("bert", "base"), rows[:16], output=tmp_path / "r", validation=rows[16:], config=config)
    assert set(run.metrics) == {"pearson", "spearman", "mae"}
    with torch.no_grad():
        run.pipeline.model.classifier.weight.zero_()
    from warmstart.rows import texts

    flat = evaluate_rows(run.pipeline, list(texts(rows[16:])))
    assert "pearson" not in flat.metrics and flat.rank[0] == float("-inf")
    assert run.validation is not None and run.validation.rank > flat.rank


# --- seeds and workers ----------------------------------------------------------------------------------------------


def test_r79_the_same_seed_gives_the_same_weights_with_any_workers_and_another_seed_others(
    tiny: Callable[..., Path], tmp_path: Path
) -> None:
    def sha256(name: str, **config: Any) -> str:
        torch.manual_seed(len(name))  # the caller's own randomness plays no part
        return weights_sha256(train_reviews(tiny("bert", "base"), tmp_path / name, epochs=1, **config))

    one = sha256("one")
    assert sha256("again, elsewhere") == one
    assert sha256("workers", workers=2) == one
    assert sha256("seed", seed=1) != one


def test_accumulation_changes_memory_and_nothing_else(tiny: Callable[..., Path], tmp_path: Path) -> None:
    """Over a whole run, but for rounding; without dropout, whose masks have a batch's shape."""
    config = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    folder = tmp_path / "checkpoint"
    pipe = ws.load(tiny("bert"))
    pipe.model.config.update(config)
    pipe.model.save_pretrained(folder)
    pipe.tokenizer.save_pretrained(folder)
    losses = []
    for name, size, accumulate in (("whole", 60, 1), ("parts", 7, 9)):
        run = train_reviews(folder, tmp_path / name, epochs=3, batch_size=size, accumulate=accumulate)
        losses.append([line["loss"] for line in _steps(run)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4) and len(losses[0]) == 3
