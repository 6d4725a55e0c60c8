"""Single-label metrics against scikit-learn, on random, tied and degenerate data."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference

from warmstart.errors import DataError, UsageError
from warmstart.metrics import Metric, accuracy, auroc, classification, confusion, macro_f1, matthews, per_class, ranking

FEW = 100  # resamples: parity concerns the value


@st.composite
def classes(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, int]:
    n, k = draw(st.integers(1, 60)), draw(st.integers(1, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    true = rng.integers(0, k, n)
    return true, np.where(rng.random(n) < 0.6, true, rng.integers(0, k, n)), k


@given(classes())
@settings(max_examples=60, deadline=None)
def test_values_equal_sklearn(case: tuple[np.ndarray, np.ndarray, int]) -> None:
    true, pred, k = case
    assert accuracy(true, pred).value == pytest.approx(reference.accuracy_score(true, pred))
    ours = macro_f1(true, pred, resamples=FEW)
    assert ours.value == pytest.approx(reference.f1_score(true, pred, average="macro", zero_division=0))
    assert matthews(true, pred, resamples=FEW).value == pytest.approx(_mcc(true, pred), abs=1e-12)
    assert 0 <= ours.lo <= ours.value <= ours.hi <= 1
    k = max(k, 2)  # scikit-learn warns of a table of one class
    np.testing.assert_array_equal(confusion(true, pred, k), reference.confusion_matrix(true, pred, labels=range(k)))
    expected = reference.precision_recall_fscore_support(true, pred, labels=range(k), zero_division=0)
    ours_by_class = np.array([[s.precision, s.recall, s.f1, s.support] for s in per_class(true, pred, k)])
    np.testing.assert_allclose(ours_by_class, np.array(expected).T, atol=1e-12)


def _mcc(true: np.ndarray, pred: np.ndarray) -> float:
    if len(np.unique(np.concatenate([true, pred]))) == 1:
        return 0.0  # what it gives too, after a warning
    return float(reference.matthews_corrcoef(true, pred))


@given(classes(), st.booleans())
@settings(max_examples=60, deadline=None)
def test_auroc_equals_sklearn(case: tuple[np.ndarray, np.ndarray, int], tied: bool) -> None:
    true, _, k = case
    rng = np.random.default_rng(len(true))
    scores = rng.normal(size=(len(true), k)) + np.eye(k)[true]
    if tied:
        scores = np.round(scores)
    each = [reference.roc_auc_score(true == c, scores[:, c]) for c in range(k) if 0 < (true == c).sum() < len(true)]
    if k == 2:
        each = [reference.roc_auc_score(true, scores[:, 1])] if each else []
    ours = auroc(true, scores, resamples=FEW) if k > 1 else auroc(true, scores[:, 0], resamples=FEW)
    if not each:
        assert ours is None
    else:
        assert ours is not None
        assert ours.value == pytest.approx(np.mean(each), abs=1e-12)
        assert 0 <= ours.lo <= ours.value <= ours.hi <= 1


@pytest.mark.parametrize("tied", [False, True])
def test_every_resample_equals_sklearn_with_the_rows_repeated(tied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A weight is a number of repeats: the statistic at counts equals the metric over repeated rows."""
    statistics: list[Callable[[np.ndarray], np.ndarray]] = []

    def spy(statistic: Callable[[np.ndarray], np.ndarray], n: int, **options: float) -> Metric:
        statistics.append(statistic)
        return Metric(0.0, 0.0, 0.0)

    monkeypatch.setattr(classification, "bootstrap", spy)
    monkeypatch.setattr(ranking, "bootstrap", spy)
    rng = np.random.default_rng(2)
    true = rng.integers(0, 4, 50)
    scores = rng.normal(size=(50, 4)) + np.eye(4)[true]
    scores = np.round(scores) if tied else scores
    pred = scores.argmax(axis=1)
    weights = np.stack([np.bincount(rng.integers(0, 50, 50), minlength=50) for _ in range(20)])
    macro_f1(true, pred), matthews(true, pred), auroc(true, scores)
    f1, mcc, area = (statistic(weights.astype(np.float32)) for statistic in statistics)
    for b, counts in enumerate(weights):
        rows = np.repeat(np.arange(50), counts)
        t, p, s = true[rows], pred[rows], scores[rows]
        assert f1[b] == pytest.approx(reference.f1_score(t, p, average="macro", zero_division=0))
        assert mcc[b] == pytest.approx(reference.matthews_corrcoef(t, p))
        assert area[b] == pytest.approx(np.mean([reference.roc_auc_score(t == c, s[:, c]) for c in range(4)]))


def test_auroc_in_resamples_without_a_class() -> None:
    """One positive in six rows: a third of the resamples lack it; the interval is of those that have it."""
    metric = auroc([1, 0, 0, 0, 0, 0], [0.5, 0.1, 0.9, 0.2, 0.3, 0.4])
    assert metric is not None
    assert metric.value == pytest.approx(0.8)
    assert 0 <= metric.lo < 0.8 < metric.hi <= 1


def test_auroc_of_one_class_is_none() -> None:
    assert auroc([1, 1], [0.3, 0.4]) is None
    assert auroc([2, 2], np.ones((2, 3))) is None
    assert auroc([0, 1], [0.3, 0.4]) is not None


def test_a_class_never_predicted_has_f1_zero() -> None:
    assert macro_f1([0, 0, 1], [0, 0, 0]).value == pytest.approx(0.4)
    assert per_class([0, 0, 1], [0, 0, 0], 2)[1].precision == 0.0
    assert per_class([0, 0, 1], [0, 0, 0], 3)[2].as_dict() == {
        "label": 2, "precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0,
    }  # fmt: skip


def test_one_row_and_one_class() -> None:
    assert macro_f1([0], [0]) == Metric(1.0, 1.0, 1.0)
    assert matthews([0], [0]) == Metric(0.0, 0.0, 0.0)
    assert accuracy([0], [1]).value == 0.0


@pytest.mark.parametrize("metric", [accuracy, macro_f1, matthews, auroc])
def test_no_rows(metric: Callable[..., object]) -> None:
    with pytest.raises(DataError) as caught:
        metric([], [])
    assert caught.value.code == "no-rows"


@pytest.mark.parametrize(
    ("y_true", "y_pred", "code"),
    [
        ([0, 1], [0], "metric-shape"),
        ([[0, 1]], [[0, 1]], "metric-shape"),
        ([0.5, 1], [0, 1], "metric-labels"),
        ([0, -1], [0, 1], "metric-labels"),
        (["a", "b"], ["a", "b"], "metric-labels"),
    ],
)
def test_wrong_arrays(y_true: list[object], y_pred: list[object], code: str) -> None:
    with pytest.raises(UsageError) as caught:
        accuracy(y_true, y_pred)
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("y_true", "scores", "code"),
    [
        ([0, 1], [0.1], "metric-shape"),
        ([[0, 1]], [[0.1]], "metric-shape"),
        ([0, 2], [0.1, 0.2], "metric-labels"),
        ([0, 3], np.ones((2, 3)), "metric-labels"),
    ],
)
def test_wrong_scores(y_true: list[object], scores: object, code: str) -> None:
    with pytest.raises(UsageError) as caught:
        auroc(y_true, scores)
    assert caught.value.code == code


def test_a_score_that_is_not_a_number_names_its_row() -> None:
    with pytest.raises(DataError) as caught:
        auroc([0, 1, 1], [0.1, np.nan, 0.3])
    assert caught.value.code == "scores-not-finite"
    assert "row 1" in str(caught.value)


def test_confusion_refuses_a_class_it_has_no_room_for() -> None:
    with pytest.raises(UsageError) as caught:
        confusion([0, 2], [0, 1], 2)
    assert (caught.value.code, caught.value.value) == ("metric-labels", 2)


def test_all_four_are_fast_on_150_classes() -> None:
    """4,500 rows of 150 classes, the hardest case (scores without signal) included: under 3 s each, on one core."""
    rng = np.random.default_rng(0)
    true = np.repeat(np.arange(150), 30)
    scores = rng.normal(size=(4500, 150)).astype(np.float32)
    start = time.process_time()
    for y_true in (true, scores.argmax(axis=1)):
        pred = scores.argmax(axis=1)
        accuracy(y_true, pred), macro_f1(y_true, pred), matthews(y_true, pred), auroc(y_true, scores)
    assert time.process_time() - start < 6
