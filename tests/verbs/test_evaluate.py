"""`ws.evaluate`: metrics as scikit-learn has them, of the same predictions; a bad row is named before any work."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy import stats
from sklearn import metrics as sk

import warmstart as ws
from support.runs import reviews
from warmstart.errors import WarmstartError
from warmstart.rows import texts
from warmstart.verbs.evaluate import Evaluation, evaluate_rows


@pytest.fixture(scope="module")
def pipe(tiny: Callable[..., Path]) -> ws.Pipeline:
    loaded: ws.Pipeline = ws.load(tiny("bert"))
    return loaded


@pytest.fixture(scope="module")
def result(pipe: ws.Pipeline) -> Evaluation:
    return ws.evaluate(pipe, reviews(60))


def test_the_json_shape(result: Evaluation) -> None:
    shape = result.as_dict()
    assert list(shape) == ["task", "rows", "metrics"]
    assert (shape["task"], shape["rows"]) == ("text-classification", 60)
    assert list(shape["metrics"]) == ["accuracy", "macro_f1", "mcc", "auroc"]
    for metric in shape["metrics"].values():
        assert list(metric) == ["value", "lo", "hi"] and metric["lo"] <= metric["value"] <= metric["hi"]
    assert json.loads(json.dumps(shape, allow_nan=False)) == shape


def test_single_label_metrics_equal_scikit_learn(pipe: ws.Pipeline, result: Evaluation) -> None:
    rows = reviews(60)
    predictions = pipe([row["text"] for row in rows])
    truth, found = [row["label"] for row in rows], [p.label for p in predictions]
    positive = [p.scores["POSITIVE"] for p in predictions]
    expected = {
        "accuracy": sk.accuracy_score(truth, found),
        "macro_f1": sk.f1_score(truth, found, average="macro", zero_division=0),
        "mcc": sk.matthews_corrcoef(truth, found),
        "auroc": sk.roc_auc_score([label == "POSITIVE" for label in truth], positive),
    }
    assert {name: metric.value for name, metric in result.metrics.items()} == pytest.approx(expected, abs=1e-9)
    probabilities = [[p.scores["NEGATIVE"], p.scores["POSITIVE"]] for p in predictions]
    assert result.loss == pytest.approx(sk.log_loss(truth, probabilities), abs=1e-6)
    assert result.rank == (result.metrics["accuracy"].value, -result.loss)


def test_multi_label_metrics_equal_scikit_learn(tiny: Callable[..., Path]) -> None:
    base = ws.load(tiny("bert", labels=("a", "b", "c")))
    pipe = dataclasses.replace(base, task=dataclasses.replace(base.task, problem="multi"))
    rows = [
        {"text": row["text"], "label": [name for k, name in enumerate("abc") if (n >> k) & 1]}
        for n, row in enumerate(reviews(40))
    ]
    result = ws.evaluate(pipe, rows)
    truth = np.array([[name in row["label"] for name in "abc"] for row in rows], dtype=int)
    scores = np.array([list(p.scores.values()) for p in pipe([row["text"] for row in rows])])
    found = (scores >= 0.5).astype(int)
    expected = {
        "accuracy": sk.accuracy_score(truth, found),
        "micro_f1": sk.f1_score(truth, found, average="micro", zero_division=0),
        "macro_f1": sk.f1_score(truth, found, average="macro", zero_division=0),
        "auroc": sk.roc_auc_score(truth, scores, average="macro"),
    }
    assert {name: metric.value for name, metric in result.metrics.items()} == pytest.approx(expected, abs=1e-9)


def test_regression_metrics_equal_scipy(tiny: Callable[..., Path]) -> None:
    pipe = ws.load(tiny("bert", labels=("score",)))
    rows = [{"text": row["text"], "label": str(n / 7)} for n, row in enumerate(reviews(40))]
    result = ws.evaluate(pipe, rows)
    truth = np.array([float(row["label"]) for row in rows])
    found = np.array([p.score for p in pipe([row["text"] for row in rows])])
    expected = {
        "pearson": stats.pearsonr(truth, found).statistic,
        "spearman": stats.spearmanr(truth, found).statistic,
        "mae": sk.mean_absolute_error(truth, found),
    }
    assert {name: metric.value for name, metric in result.metrics.items()} == pytest.approx(expected, abs=1e-6)
    assert result.loss == pytest.approx(sk.mean_squared_error(truth, found), rel=1e-5)
    assert result.rank[0] == result.metrics["pearson"].value


def test_pairs_are_read_as_pairs(pipe: ws.Pipeline) -> None:
    rows = [{"premise": row["text"], "hypothesis": "it is", "label": row["label"]} for row in reviews(10)]
    result = ws.evaluate(pipe, rows)
    alone = ws.evaluate(pipe, [{"text": row["premise"], "label": row["label"]} for row in rows])
    assert sum(p.tokens for p in result.predictions) == sum(p.tokens for p in alone.predictions) + 30


def test_numbers_do_not_depend_on_how_rows_are_batched(pipe: ws.Pipeline, result: Evaluation) -> None:
    backwards = ws.evaluate(pipe, reviews(60)[::-1])
    assert backwards.loss == pytest.approx(result.loss, abs=1e-7)
    assert backwards.per_example["loss"][::-1] == pytest.approx(result.per_example["loss"], abs=1e-6)


# --- rows that cannot be judged -------------------------------------------------------------------------------------


@pytest.fixture
def nothing_predicted(monkeypatch: pytest.MonkeyPatch) -> None:
    def predict_rows(*arguments: Any, **named: Any) -> Iterator[Any]:
        raise AssertionError("predicting has begun")

    monkeypatch.setattr(ws.Pipeline, "predict_rows", predict_rows)


@pytest.mark.usefixtures("nothing_predicted")
@pytest.mark.parametrize(
    ("name", "content", "code", "line"),
    [
        ("r.jsonl", '{"text": "good", "label": "POSITIVE"}\n{"text": "so", "label": "NEUTRAL"}\n', "label-unknown", 2),
        ("r.csv", "text,label\ngood,POSITIVE\nbad,NEGATIVE\nso,NEUTRAL\n", "label-unknown", 4),
        ("r.jsonl", '{"text": "good", "label": "POSITIVE"}\n{"text": "so", "label": null}\n', "field-missing", 2),
        ("r.jsonl", '{"text": "good", "label": "POSITIVE"}\n{"text": 5, "label": "POSITIVE"}\n', "field-not-text", 2),
    ],
)
def test_d40_a_row_that_cannot_be_judged_is_named_before_anything_is_predicted(
    pipe: ws.Pipeline, tmp_path: Path, name: str, content: str, code: str, line: int
) -> None:
    file = tmp_path / name
    file.write_text(content)
    with pytest.raises(ws.DataError) as caught:
        ws.evaluate(pipe, file)
    assert caught.value.code == code and caught.value.exit_code == 3
    assert caught.value.where.source == str(file) and caught.value.where.line == line


@pytest.mark.usefixtures("nothing_predicted")
def test_d41_an_empty_file_and_absent_labels_are_refused(pipe: ws.Pipeline, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "texts.txt").write_text("good\nbad\n")
    for file, code in (("empty.jsonl", "no-rows"), ("texts.txt", "column-missing")):
        with pytest.raises(ws.DataError) as caught:
            ws.evaluate(pipe, tmp_path / file)
        assert caught.value.code == code


@pytest.mark.usefixtures("nothing_predicted")
def test_a_task_without_metrics_is_refused_before_anything_is_read(
    tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = ws.load(tiny("bert", "base"), task="sentence-embedding")
    monkeypatch.setattr(type(pipe.task), "trainable", False)
    monkeypatch.setattr(type(pipe.task), "fields", type(pipe.task).fields[:1])
    with pytest.raises(ws.UsageError) as caught:
        ws.evaluate(pipe, "no/such/file.jsonl")
    assert caught.value.code == "task-without-metrics"


def test_one_class_alone_has_an_accuracy_and_no_auroc(pipe: ws.Pipeline) -> None:
    result = ws.evaluate(pipe, [row for row in reviews(10) if row["label"] == "POSITIVE"])
    assert "accuracy" in result.metrics and "auroc" not in result.metrics


def test_c14_a_model_that_gives_nan_is_an_error_and_never_a_number(tiny: Callable[..., Path]) -> None:
    pipe = ws.load(tiny("bert"))
    pipe.model.classifier.bias.data[0] = float("nan")
    with pytest.raises(WarmstartError) as caught:
        ws.evaluate(pipe, reviews(8))
    assert caught.value.code == "output-not-a-number"


# --- what is written ------------------------------------------------------------------------------------------------


def test_files_are_written_into_a_new_folder(result: Evaluation, tmp_path: Path) -> None:
    result.write(tmp_path / "deep" / "er")
    assert json.loads((tmp_path / "deep" / "er" / "metrics.json").read_text()) == result.as_dict()
    table = pq.read_table(tmp_path / "deep" / "er" / "predictions.parquet")
    assert table.num_rows == 60 and table.column_names[0] == "row"


def test_a_field_named_as_a_column_of_ours_is_kept_under_another_name(pipe: ws.Pipeline, tmp_path: Path) -> None:
    mine = {"row": "r", "prediction": "p", "loss": "l", "correct": "c", "input_row": "i"}
    result = evaluate_rows(pipe, list(texts([{**row, **mine} for row in reviews(4)])))
    result.write_predictions(tmp_path / "p.parquet")
    rows = pq.read_table(tmp_path / "p.parquet").to_pylist()
    assert [row["row"] for row in rows] == [0, 1, 2, 3]
    assert rows[0]["loss"] == pytest.approx(result.per_example["loss"][0])
    kept = {key: rows[0][key] for key in rows[0] if key.startswith("input_")}
    assert sorted(kept.values()) == sorted(mine.values())


def test_t51_a_lone_surrogate_or_a_nested_value_does_not_stop_the_writing(pipe: ws.Pipeline, tmp_path: Path) -> None:
    rows = [{**row, "text": row["text"] + "\ud800", "extra": {"n": [1, n]}} for n, row in enumerate(reviews(4))]
    result = ws.evaluate(pipe, rows)
    result.write_predictions(tmp_path / "p.parquet")
    written = pq.read_table(tmp_path / "p.parquet").to_pylist()
    assert written[0]["text"].endswith("?") and json.loads(written[1]["extra"]) == {"n": [1, 1]}
    assert "surrogates-replaced" in json.loads(written[0]["prediction"])["flags"]


def test_f89_a_place_that_cannot_be_written_to_is_named(result: Evaluation, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for call in (
        lambda: result.write(tmp_path / "file"),
        lambda: result.write(tmp_path / "file" / "below"),
        lambda: result.write_predictions(tmp_path / "absent" / "p.parquet"),
    ):
        with pytest.raises(WarmstartError) as caught:
            call()
        assert caught.value.code == "output-failed" and str(tmp_path) in str(caught.value.where)
