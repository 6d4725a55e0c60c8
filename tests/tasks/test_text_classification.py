"""Labels, losses, scores: checked against transformers' own losses and scikit-learn's metrics."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.metrics
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import warmstart as ws
from support.damage import copy_of, edit_json
from warmstart.batching import collate
from warmstart.engine.runtime_torch import to_tensors
from warmstart.errors import CheckpointError, DataError, UsageError
from warmstart.features import Feature
from warmstart.rows import Row
from warmstart.tasks.text_classification import TextClass, TextClassification

ABC = ("a", "b", "c")


@pytest.fixture(scope="module")
def bare(tiny: Callable[..., Path]) -> TextClassification:
    """The task over a tiny tokenizer, without labels."""
    pipe = ws.load(tiny("bert"), device="cpu")
    assert isinstance(pipe.task, TextClassification)
    return dataclasses.replace(pipe.task, labels=())


def rows(*labels: Any) -> list[Row]:
    return [Row({"text": f"a film {i}", "label": label}) for i, label in enumerate(labels)]


def config(labels: tuple[str, ...], problem: str | None) -> Mapping[str, Any]:
    return {"id2label": {str(i): label for i, label in enumerate(labels)}, "problem_type": problem}


# --- what the checkpoint says -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "written", "problem"),
    [
        (ABC, None, "single"),
        (ABC, "single_label_classification", "single"),
        (ABC, "multi_label_classification", "multi"),
        (("a",), "multi_label_classification", "multi"),
        (("score",), "regression", "regression"),
        (("score",), None, "regression"),
        ((), None, "single"),
    ],
)
def test_the_problem_is_the_checkpoints(
    bare: TextClassification, tmp_path: Path, labels: tuple[str, ...], written: str | None, problem: str
) -> None:
    made = TextClassification.from_checkpoint(bare.tokenizer, config(labels, written), tmp_path, {})
    assert (made.labels, made.problem) == (labels, problem)


def test_labels_are_in_the_order_of_their_numbers(bare: TextClassification, tmp_path: Path) -> None:
    names = {str(i): f"l{i}" for i in reversed(range(12))}  # as text, "10" comes before "2"
    made = TextClassification.from_checkpoint(bare.tokenizer, {"id2label": names}, tmp_path, {})
    assert made.labels == tuple(f"l{i}" for i in range(12))


def test_several_numbers_are_refused(bare: TextClassification, tmp_path: Path) -> None:
    """Squared error of (rows, 3) against (rows,) would broadcast, and train on nonsense."""
    with pytest.raises(CheckpointError) as caught:
        TextClassification.from_checkpoint(bare.tokenizer, config(ABC, "regression"), tmp_path, {})
    assert caught.value.code == "regression-outputs"
    assert caught.value.where.field == "problem_type"


@pytest.mark.parametrize("given_labels", [ABC, ("x",)])
@pytest.mark.parametrize("problem", ["single", "multi", "regression"])
def test_a_fresh_head_is_one_that_the_checkpoint_class_gives_back(
    bare: TextClassification, tmp_path: Path, given_labels: tuple[str, ...], problem: Any
) -> None:
    made = dataclasses.replace(bare, labels=("old",), problem=problem).with_labels(given_labels)
    head = json.loads(json.dumps(made.head()))
    assert head["num_labels"] == len(given_labels)
    assert head["label2id"] == {label: i for i, label in enumerate(given_labels)}
    again = TextClassification.from_checkpoint(bare.tokenizer, head, tmp_path, {})
    assert (again.labels, again.problem) == (given_labels, made.problem)
    assert made.problem == ("regression" if len(given_labels) == 1 else "multi" if problem == "multi" else "single")


def test_labels_that_are_none(bare: TextClassification) -> None:
    with pytest.raises(UsageError) as empty:
        bare.with_labels(())
    assert empty.value.code == "labels-empty"
    with pytest.raises(DataError) as twice:
        bare.with_labels(("a", "b", " a"))
    assert twice.value.code == "label-duplicate"


# --- what the rows say ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "names", "problem"),
    [
        (["b", "a", "b"], ("a", "b"), "single"),
        ([1, 0, 10, 2], ("0", "1", "2", "10"), "single"),
        ([True, False], ("false", "true"), "single"),
        ([["b"], ["a", "c"], []], ABC, "multi"),
        ([[1, 0, 1], [0, 0, 0]], ("0", "1", "2"), "multi"),
        ([0.5, 1, 2], ("score",), "regression"),
        (["0.5", "-1"], ("score",), "regression"),
    ],
)
def test_learning_labels(bare: TextClassification, labels: list[Any], names: tuple[str, ...], problem: str) -> None:
    learned = bare.learn(rows(*labels))
    assert (learned.labels, learned.problem) == (names, problem)
    assert len(list(learned.encode(rows(*labels), train=True))) == len(labels)


@pytest.mark.parametrize(
    ("known", "problem", "labels", "same"),
    [
        (ABC, "single", ["a", "b", "a"], True),
        (ABC, "single", [0, 1, 2], True),  # ids
        (ABC, "single", ["A", " b "], True),  # spelled otherwise
        (ABC, "single", ["a", "d"], False),
        (ABC, "multi", [["a"], []], True),
        (ABC, "multi", [["a"], ["d"]], False),
        (ABC, "single", [["a"], ["b"]], False),
        (("score",), "regression", [0.5, 1.5], True),
        (("score",), "regression", ["a", "b"], False),
    ],
)
def test_a_head_that_fits_is_kept(
    bare: TextClassification, known: tuple[str, ...], problem: Any, labels: list[Any], same: bool
) -> None:
    task = dataclasses.replace(bare, labels=known, problem=problem)
    assert (task.learn(rows(*labels)) is task) == same


def test_what_cannot_be_learned_from_names_its_row(bare: TextClassification) -> None:
    for labels, code, place in (
        (["a", "b", None], "label-missing", 2),
        ([["a"], ["b", {}]], "label-unusable", 1),
        (["a", "a"], "label-one-class", None),
        (["a", ["b"]], "label-mixed", None),
    ):
        given_rows = [Row(row, ws_where(i)) for i, row in enumerate(rows(*labels))]
        with pytest.raises(DataError) as caught:
            bare.learn(given_rows)
        assert (caught.value.code, caught.value.where.row) == (code, place)


def ws_where(i: int) -> Any:
    from warmstart.errors import Where

    return Where(row=i)


def test_training_without_labels_says_how_to_get_them(bare: TextClassification) -> None:
    with pytest.raises(UsageError) as caught:
        list(bare.encode(rows("a"), train=True))
    assert caught.value.code == "labels-unknown"
    assert len(list(bare.encode(rows("a")))) == 1  # predicting needs none


def test_a_label_the_head_does_not_know_names_its_place(bare: TextClassification) -> None:
    task = dataclasses.replace(bare, labels=ABC)
    given_rows = [Row(row, ws_where(i)) for i, row in enumerate(rows("a", "zebra"))]
    with pytest.raises(DataError) as caught:
        list(task.encode(given_rows, train=True))
    assert (caught.value.code, str(caught.value.where)) == ("label-unknown", "row 1, field 'label'")


# --- loss -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "problem", "labels"),
    [
        (ABC, "single_label_classification", ["a", "c", "b", "a"]),
        (ABC, "multi_label_classification", [["a"], [], ["b", "c"], ["a", "b", "c"]]),
        (("score",), "regression", [0.5, -1.0, 2.25, 0.0]),
    ],
)
def test_the_loss_is_that_of_transformers(
    tiny: Callable[..., Path], tmp_path: Path, names: tuple[str, ...], problem: str, labels: list[Any]
) -> None:
    folder = copy_of(tiny("bert", labels=names), tmp_path / "model")
    edit_json(folder / "config.json", {"problem_type": problem})
    pipe = ws.load(folder, device="cpu")
    batch = to_tensors(collate(list(pipe.task.encode(rows(*labels), train=True)), pipe.task.pads), "cpu")
    with torch.no_grad():
        theirs = pipe.model(**batch.inputs, labels=batch.targets["labels"]).loss
        losses, weights = pipe.task.loss(pipe.task.forward(pipe.model, batch), batch)
    assert losses.shape == weights.shape == (4,)
    torch.testing.assert_close((losses * weights).sum() / weights.sum(), theirs)


def test_the_windows_of_a_row_weigh_as_much_as_one_row(bare: TextClassification) -> None:
    tokenizer = dataclasses.replace(bare.tokenizer, limit=12)
    task = dataclasses.replace(bare, tokenizer=tokenizer, labels=ABC, long_text="windows", stride=2)
    given_rows = [Row({"text": "film " * 50, "label": "a"}), Row({"text": "b", "label": "b"})]
    features = list(task.encode(given_rows, train=True))
    batch = to_tensors(collate(features, task.pads), "cpu")
    _, weights = task.loss({"logits": torch.zeros(len(features), 3)}, batch)
    assert len(features) > 3
    of_first = sum(weight for weight, feature in zip(weights.tolist(), features, strict=True) if feature.row == 0)
    assert of_first == pytest.approx(1)
    assert weights[-1] == 1


# --- decoding ---------------------------------------------------------------------------------------------------------


def decode(task: TextClassification, *logits: list[float], lengths: tuple[int, ...] = ()) -> TextClass:
    meta = {"truncated": False, "flags": (), "pieces": len(logits)}
    features = [Feature(0, i, {}, meta=meta, length=(lengths or (3,) * 9)[i]) for i in range(len(logits))]
    return task.decode(Row({}), features, [{"logits": np.array(each, np.float32)} for each in logits])


@given(arrays(np.float32, 3, elements=st.floats(-(2.0**20), 2.0**20, width=32)), st.sampled_from(["single", "multi"]))
@settings(deadline=None)
def test_scores_are_probabilities_whatever_the_logits(logits: Any, problem: Any) -> None:
    task = TextClassification(tokenizer=None, labels=ABC, problem=problem)  # type: ignore[arg-type]
    found = decode(task, logits.tolist())
    values = np.array(list(found.scores.values()))
    assert ((values >= 0) & (values <= 1)).all()
    assert found.score == values.max()
    expected = torch.tensor(logits, dtype=torch.float64)
    wanted = expected.softmax(-1) if problem == "single" else expected.sigmoid()
    np.testing.assert_allclose(values, wanted.numpy(), atol=1e-12)
    if problem == "single":
        assert found.label == ABC[int(values.argmax())]
    else:
        assert found.label == tuple(name for name, value in zip(ABC, values, strict=True) if value >= 0.5)


def test_a_number_is_a_number(bare: TextClassification) -> None:
    task = dataclasses.replace(bare, labels=("stars",), problem="regression")
    found = decode(task, [-3.25])
    assert (found.label, found.score, found.scores) == ("stars", -3.25, {"stars": -3.25})


def test_the_threshold_decides_between_labels(bare: TextClassification) -> None:
    for threshold, expected in ((0.0, ABC), (0.5, ("a", "b")), (0.6, ("a",)), (1.0, ())):
        task = dataclasses.replace(bare, labels=ABC, problem="multi", threshold=threshold)
        assert decode(task, [2.0, 0.0, -2.0]).label == expected


def test_windows_are_averaged_by_their_tokens(bare: TextClassification) -> None:
    task = dataclasses.replace(bare, labels=ABC)
    logits = np.array([[1.0, 0.0, 2.0], [0.0, 3.0, -1.0]])
    found = decode(task, *logits.tolist(), lengths=(10, 30))
    mean = (logits[0] * 10 + logits[1] * 30) / 40
    np.testing.assert_allclose(list(found.scores.values()), np.exp(mean) / np.exp(mean).sum())
    assert found.tokens == 40


# --- judging ----------------------------------------------------------------------------------------------------------


def _predictions(scores: Any, names: tuple[str, ...] = ABC) -> list[TextClass]:
    return [
        TextClass(names[int(np.argmax(row))], float(max(row)), dict(zip(names, map(float, row), strict=True)), 3, False)
        for row in scores
    ]


def test_judging_labels_is_scikit_learns(bare: TextClassification) -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, 200)
    scores = rng.dirichlet((1, 1, 1), 200) * 0.5 + np.eye(3)[truth] * 0.5 * rng.random((200, 1))
    scores /= scores.sum(axis=1, keepdims=True)
    found = dataclasses.replace(bare, labels=ABC).score(_predictions(scores), rows(*[ABC[i] for i in truth]))
    predicted = scores.argmax(axis=1)
    values = {name: metric.value for name, metric in found.metrics.items()}
    assert values == pytest.approx(
        {
            "accuracy": sklearn.metrics.accuracy_score(truth, predicted),
            "macro_f1": sklearn.metrics.f1_score(truth, predicted, average="macro"),
            "mcc": sklearn.metrics.matthews_corrcoef(truth, predicted),
            "auroc": sklearn.metrics.roc_auc_score(truth, scores, multi_class="ovr"),
        }
    )
    assert (found.per_example["correct"] == (predicted == truth)).all()
    assert found.per_example["loss"].mean() == pytest.approx(sklearn.metrics.log_loss(truth, scores))
    assert all(metric.lo <= metric.value <= metric.hi for metric in found.metrics.values())


def test_judging_sets_is_scikit_learns(bare: TextClassification) -> None:
    rng = np.random.default_rng(1)
    truth = rng.integers(0, 2, (150, 3))
    scores = np.clip(truth * 0.3 + rng.random((150, 3)) * 0.7, 0.01, 0.99)
    task = dataclasses.replace(bare, labels=ABC, problem="multi")
    names = [[ABC[i] for i in range(3) if row[i]] for row in truth]
    found = task.score(_predictions(scores), rows(*names))
    predicted = scores >= 0.5
    values = {name: metric.value for name, metric in found.metrics.items()}
    assert values["accuracy"] == pytest.approx(sklearn.metrics.accuracy_score(truth, predicted))
    assert values["micro_f1"] == pytest.approx(sklearn.metrics.f1_score(truth, predicted, average="micro"))
    assert values["macro_f1"] == pytest.approx(sklearn.metrics.f1_score(truth, predicted, average="macro"))
    wanted = torch.nn.functional.binary_cross_entropy(torch.tensor(scores), torch.tensor(truth, dtype=torch.float64))
    assert found.per_example["loss"].mean() == pytest.approx(wanted.item())


def test_judging_numbers(bare: TextClassification) -> None:
    rng = np.random.default_rng(2)
    truth = rng.normal(size=100)
    predicted = truth + rng.normal(size=100) * 0.3
    task = dataclasses.replace(bare, labels=("score",), problem="regression")
    found = task.score(_predictions(predicted[:, None], ("score",)), rows(*truth.tolist()))
    assert found.metrics["mae"].value == pytest.approx(np.abs(truth - predicted).mean())
    assert found.metrics["pearson"].value == pytest.approx(np.corrcoef(truth, predicted)[0, 1])
    np.testing.assert_allclose(found.per_example["error"], predicted - truth, atol=1e-6)  # targets are float32
    np.testing.assert_allclose(found.per_example["loss"], (predicted - truth) ** 2, atol=1e-6)


def test_a_certain_and_wrong_prediction_has_a_finite_loss(bare: TextClassification) -> None:
    task = dataclasses.replace(bare, labels=ABC)
    found = task.score(_predictions([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]), rows("b", "b"))
    assert np.isfinite(found.per_example["loss"]).all()


def test_metrics_that_these_rows_do_not_define_are_left_out(bare: TextClassification) -> None:
    task = dataclasses.replace(bare, labels=ABC)
    assert "auroc" not in task.score(_predictions([[0.5, 0.3, 0.2]] * 3), rows("a", "a", "a")).metrics


# --- windows of a pair ------------------------------------------------------------------------------------------------


def test_a_first_text_without_room_for_windows_names_its_row(tiny: Callable[..., Path]) -> None:
    options = {"long_text": "windows", "max_length": 16, "stride": 4}
    pipe = ws.load(tiny("bert"), options=options, device="cpu")
    pairs = [("a film", "good " * 50), ("long " * 30, "second"), ("a", "b")]
    with pytest.raises(DataError) as caught:
        pipe(pairs)
    assert (caught.value.code, caught.value.where.row) == ("window-too-small", 1)
    assert [prediction.truncated for prediction in pipe([pairs[0], pairs[2]])] == [False, False]


def test_windows_that_share_all_they_have_are_refused(tiny: Callable[..., Path]) -> None:
    pipe = ws.load(tiny("bert"), options={"long_text": "windows", "max_length": 16, "stride": 14}, device="cpu")
    with pytest.raises(UsageError) as caught:
        pipe("a film")
    assert caught.value.code == "stride-too-large"


def test_options_are_said_in_the_way_they_were_given(
    tiny: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    """Windows read all of a text, and so warn of nothing."""
    with caplog.at_level(logging.WARNING, "warmstart"):
        pipe = ws.load(tiny("bert"), options={"long_text": "windows"}, device="cpu")
        [prediction] = pipe(["good " * 500])
    assert prediction.tokens > 500
    assert not prediction.truncated
    assert not caplog.records
