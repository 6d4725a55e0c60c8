"""`ws.compare`: rows paired whatever their order, other rows refused by name, the same from files as from objects."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import warmstart as ws
from support.runs import reviews
from warmstart.evaluation import Evaluation, read_predictions
from warmstart.evaluation.disagreement import decision
from warmstart.rows import Row
from warmstart.tasks.problems import MultiLabel, Regression, SingleLabel, make_problem
from warmstart.tasks.text_classification import TextClass

LABELS = ("NEGATIVE", "POSITIVE")


def judged(scores: Sequence[float], rows: Sequence[dict[str, Any]], labels: tuple[str, str] = LABELS) -> Evaluation:
    """The evaluation of a model that gives these probabilities of POSITIVE, as `evaluate_rows` makes it."""
    problem = make_problem("single", labels, 0.5)
    table = np.array([[p if name == "POSITIVE" else 1 - p for name in labels] for p in scores])
    truth = np.array([labels.index(row["label"]) for row in rows])
    found = problem.score(truth, table)
    predictions = tuple(
        TextClass(
            labels[int(each.argmax())], float(each.max()), dict(zip(labels, each.tolist(), strict=True)), 5, False
        )
        for each in table
    )
    return Evaluation(
        "text-classification", len(rows), found.metrics, found.primary, found.per_example,
        tuple(Row(row) for row in rows), predictions, found.measures, found.labels, found.by_label,
    )  # fmt: skip


ROWS = reviews(60)
FIRST = [0.9 if row["label"] == "POSITIVE" else 0.2 for row in ROWS]
SECOND = [1 - p if i % 6 == 0 else p + 0.01 for i, p in enumerate(FIRST)]  # wrong in every sixth row
THIRD = [1 - p if i % 4 == 1 else p - 0.01 for i, p in enumerate(FIRST)]


def comparable(found: ws.Comparison) -> dict[str, Any]:
    """All numbers of a comparison, rounded where sums in another order may differ."""
    return {
        name: {key: round(value, 9) if isinstance(value, float) else value for key, value in each.as_dict().items()}
        for name, each in found.metrics.items()
    }


def test_the_numbers_of_a_comparison() -> None:
    found = ws.compare(judged(FIRST, ROWS), judged(SECOND, ROWS))
    assert (found.task, found.rows, found.primary, found.left_out) == ("text-classification", 60, "accuracy", ())
    assert list(found.metrics) == ["accuracy", "macro_f1", "mcc", "auroc", "loss"]
    accuracy = found.metrics["accuracy"]
    assert (accuracy.a, accuracy.b, accuracy.test) == (1.0, 50 / 60, "mcnemar")
    assert accuracy.difference == pytest.approx(-10 / 60) and accuracy.p_value == pytest.approx(2 / 2**10)
    assert accuracy.lo < -10 / 60 < accuracy.hi < 0 and accuracy.minimum_detectable == pytest.approx(0.14, abs=0.03)
    assert found.metrics["macro_f1"].test == "randomization" and found.metrics["macro_f1"].p_value < 0.01
    assert {each.row_a for each in found.disagreements} == set(range(0, 60, 6))
    shape = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert list(shape) == ["task", "rows", "a", "b", "primary", "metrics", "left_out", "disagreements"]
    first = shape["disagreements"][0]
    assert first["fields"] == ROWS[first["a"]["row"]]
    assert first["a"]["prediction"]["label"] != first["b"]["prediction"]["label"]
    assert (first["a"]["correct"], first["b"]["correct"]) == (True, False)


def test_disagreements_begin_with_the_largest_change_of_the_loss() -> None:
    second = list(FIRST)
    second[7], second[20] = 0.45 if FIRST[7] > 0.5 else 0.55, 0.001 if FIRST[20] > 0.5 else 0.999
    found = ws.compare(judged(FIRST, ROWS), judged(second, ROWS))
    assert [each.row_a for each in found.disagreements] == [20, 7]


def test_sides_exchanged_change_the_sign_alone() -> None:
    a, b = judged(SECOND, ROWS), judged(THIRD, ROWS)
    one, other = ws.compare(a, b), ws.compare(b, a)
    for name, each in one.metrics.items():
        back = other.metrics[name]
        assert (each.difference, each.lo, each.hi) == pytest.approx((-back.difference, -back.hi, -back.lo), abs=1e-9)
        assert (each.a, each.p_value) == pytest.approx((back.b, back.p_value), abs=1e-9)
    assert [each.row_a for each in one.disagreements] == [each.row_b for each in other.disagreements]


def test_a_result_does_not_differ_from_itself() -> None:
    found = ws.compare(judged(SECOND, ROWS), judged(SECOND, ROWS))
    assert all((each.difference, each.p_value) == (0.0, 1.0) for each in found.metrics.values())
    assert found.disagreements == ()


def test_labels_in_another_case_are_the_same_labels() -> None:
    expected = ws.compare(judged(SECOND, ROWS), judged(THIRD, ROWS))
    b = judged(THIRD, ROWS)
    lower = tuple(dataclasses.replace(each, label=str(each.label).lower()) for each in b.predictions)
    found = ws.compare(judged(SECOND, ROWS), dataclasses.replace(b, labels=("negative", "positive"), predictions=lower))
    assert comparable(found) == comparable(expected) and len(found.disagreements) == len(expected.disagreements)


@pytest.mark.parametrize("seed", [1, 2])
def test_the_order_of_rows_does_not_matter(seed: int) -> None:
    expected = ws.compare(judged(SECOND, ROWS), judged(THIRD, ROWS))
    orders = [random.Random(seed * k).sample(range(60), 60) for k in (1, 2)]
    first, second = (
        judged([scores[i] for i in order], [ROWS[i] for i in order])
        for scores, order in zip((SECOND, THIRD), orders, strict=True)
    )
    found = ws.compare(first, second)
    assert comparable(found) == comparable(expected)
    here = [(orders[0][each.row_a], orders[1][each.row_b]) for each in found.disagreements]
    assert all(i == j for i, j in here)
    assert {i for i, _ in here} == {each.row_a for each in expected.disagreements}


def test_equal_rows_are_paired_as_often_as_they_occur() -> None:
    doubled = [*ROWS, *ROWS[:5]]
    found = ws.compare(judged(SECOND + SECOND[:5], doubled), judged(THIRD + THIRD[:5], doubled))
    assert found.rows == 65
    with pytest.raises(ws.DataError) as caught:
        ws.compare(judged(SECOND + SECOND[:5], doubled), judged(THIRD, ROWS))
    assert caught.value.code == "comparison-rows" and "5 only in A, 0 only in B" in caught.value.what


def test_labels_in_another_order_are_the_same_labels() -> None:
    expected = ws.compare(judged(SECOND, ROWS), judged(THIRD, ROWS))
    found = ws.compare(judged(SECOND, ROWS), judged(THIRD, ROWS, labels=("POSITIVE", "NEGATIVE")))
    assert comparable(found) == comparable(expected)


# --- what cannot be compared ----------------------------------------------------------------------------------------


def test_other_rows_are_refused_and_named() -> None:
    others = [*ROWS[:58], {"text": "quite another film", "label": "POSITIVE"}, {**ROWS[59], "label": "NEGATIVE"}]
    with pytest.raises(ws.DataError) as caught:
        ws.compare(judged(FIRST, ROWS), judged(FIRST, others))
    told = str(caught.value)
    assert caught.value.code == "comparison-rows" and caught.value.exit_code == 3
    assert "2 only in A, 2 only in B; 1 of them differ in nothing but what is true of them" in told
    assert "only in B, row 58: {'text': 'quite another film'" in told and "only in A, row 59" in told


def test_many_other_rows_are_counted() -> None:
    with pytest.raises(ws.DataError) as caught:
        ws.compare(judged(FIRST, ROWS), judged(FIRST[:20], reviews(20, seed=9)))
    assert "60 only in A, 20 only in B" in caught.value.what and "only in B, 17 more: rows [3, 4," in caught.value.what


def test_other_tasks_and_labels_are_refused() -> None:
    a = judged(FIRST, ROWS)
    for other, code in (
        (dataclasses.replace(a, task="token-classification"), "comparison-tasks"),
        (dataclasses.replace(a, labels=("NEGATIVE", "NEUTRAL")), "comparison-labels"),
    ):
        with pytest.raises(ws.UsageError) as caught:
            ws.compare(a, other)
        assert caught.value.code == code and caught.value.exit_code == 2


def test_a_metric_of_one_side_alone_is_left_out_and_said() -> None:
    a, b = judged(SECOND, ROWS), judged(THIRD, ROWS)
    less = dataclasses.replace(b, measures={"accuracy": b.measures["accuracy"]})
    unknown = {**a.per_example, "loss": np.full(60, np.nan)}
    found = ws.compare(dataclasses.replace(a, per_example=unknown), less)
    assert list(found.metrics) == ["accuracy"] and found.left_out == ("macro_f1", "mcc", "auroc", "loss")


# --- files ----------------------------------------------------------------------------------------------------------


def test_files_say_the_same_as_the_objects(tmp_path: Path) -> None:
    a, b = judged(SECOND, ROWS), judged(THIRD, ROWS)
    for name, each in (("a", a), ("b", b)):
        each.write(tmp_path / name)
    expected = ws.compare(a, b)
    for pair in ((tmp_path / "a", tmp_path / "b"), (str(tmp_path / "a" / "predictions.parquet"), b)):
        found = ws.compare(*pair)
        assert found.metrics == expected.metrics
        assert [each.as_dict() for each in found.disagreements] == [each.as_dict() for each in expected.disagreements]
    assert found.a == str(tmp_path / "a" / "predictions.parquet") and found.b == "B"


def test_what_is_read_back_is_what_was_written(tmp_path: Path) -> None:
    rows = [{**row, "row": 5, "true": None, "extra": [1, "é"]} for row in ROWS[:9]]
    result = judged(SECOND[:9], rows)
    result.write_predictions(tmp_path / "p.parquet")
    back = read_predictions(tmp_path / "p.parquet")
    assert (back.task, back.rows, back.primary, back.metrics) == (result.task, 9, "accuracy", result.metrics)
    assert (back.measures, back.labels, back.by_label) == (result.measures, result.labels, result.by_label)
    assert back.predictions == result.predictions
    for name, values in result.per_example.items():
        assert back.per_example[name].dtype == values.dtype and (back.per_example[name] == values).all()
    assert back.examples[0] == {**ROWS[0], "row": "5", "extra": '[1, "é"]'}


def test_what_holds_no_predictions_is_said(tmp_path: Path) -> None:
    a = judged(FIRST, ROWS)
    (tmp_path / "damaged.parquet").write_bytes(b"PAR1 and nothing more")
    pq.write_table(pa.table({"loss": [1.0], "prediction": ["{}"]}), tmp_path / "old.parquet")
    a.write_predictions(tmp_path / "cut.parquet")
    cut = pq.read_table(tmp_path / "cut.parquet")
    pq.write_table(cut.drop_columns(["scores"]), tmp_path / "cut.parquet")
    for path, code in (
        (tmp_path / "absent", "predictions-missing"),
        (tmp_path, "predictions-missing"),
        (tmp_path / "damaged.parquet", "predictions-unreadable"),
        (tmp_path / "old.parquet", "predictions-unreadable"),
        (tmp_path / "cut.parquet", "predictions-unreadable"),
    ):
        with pytest.raises(ws.WarmstartError) as caught:
            ws.compare(a, path)
        assert caught.value.code == code and str(path) in str(caught.value.where)
    with pytest.raises(ws.UsageError) as wrong:
        ws.compare(a, 5)  # type: ignore[arg-type]
    assert wrong.value.code == "comparison-of"


# --- what a task stores ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("problem", ["single", "multi", "regression"])
def test_metrics_are_what_their_measures_make_of_the_stored_numbers(problem: Any) -> None:
    rng = np.random.default_rng(4)
    labels = ("score",) if problem == "regression" else ("a", "b", "c")
    scores = rng.dirichlet(np.ones(len(labels)), size=30) if problem != "regression" else rng.normal(size=(30, 1))
    truth = {
        "single": rng.integers(0, 3, 30),
        "multi": rng.integers(0, 2, (30, 3)).astype(np.float32),
        "regression": rng.normal(size=30).astype(np.float32),
    }[problem]
    found = make_problem(problem, labels, 0.5).score(truth, scores)
    assert isinstance(make_problem(problem, labels, 0.5), SingleLabel | MultiLabel | Regression)
    assert set(found.metrics) == set(found.measures) and found.primary in found.metrics
    for name, measure in found.measures.items():
        assert measure.of(found.per_example) == found.metrics[name]


def test_a_decision_is_what_is_left_without_scores() -> None:
    assert decision({"label": "a", "score": 0.5, "scores": {"a": 0.5}, "tokens": 3}) == {"label": "a", "scores": {}}
    ranked = {"labels": ["b", "a"], "scores": [0.9, 0.1], "truncated": False}
    assert decision(ranked) == {"label": "b"}
    entity = {"entity_group": "PER", "score": 0.9, "start": 0, "end": 3}
    assert decision({"entities": [entity]}) == {"entities": [{"entity_group": "PER", "start": 0, "end": 3}]}
