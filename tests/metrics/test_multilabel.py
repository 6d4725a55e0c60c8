"""Multi-label metrics against scikit-learn."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference

from warmstart.errors import DataError, UsageError
from warmstart.metrics import auroc, exact_match, micro_f1, multilabel_macro_f1


@given(n=st.integers(1, 40), labels=st.integers(2, 5), seed=st.integers(0, 2**32), rate=st.floats(0, 1))
@settings(max_examples=50, deadline=None)
def test_values_equal_sklearn(n: int, labels: int, seed: int, rate: float) -> None:
    rng = np.random.default_rng(seed)
    true = (rng.random((n, labels)) < rate).astype(int)
    scores = np.round(rng.normal(size=(n, labels)) + true, 1)
    pred = (scores > 0.5).astype(int)
    assert exact_match(true, pred).value == pytest.approx(reference.accuracy_score(true, pred))
    for ours, average in ((micro_f1, "micro"), (multilabel_macro_f1, "macro")):
        expected = reference.f1_score(true, pred, average=average, zero_division=0)
        metric = ours(true, pred, resamples=100)
        assert metric.value == pytest.approx(expected)
        assert 0 <= metric.lo <= metric.hi <= 1
    both = [c for c in range(labels) if 0 < true[:, c].sum() < n]
    area = auroc(true, scores, resamples=100)
    if both:
        assert area is not None
        expected = np.mean([reference.roc_auc_score(true[:, c], scores[:, c]) for c in both])
        assert area.value == pytest.approx(expected)
    else:
        assert area is None


@pytest.mark.parametrize("metric", [exact_match, micro_f1, multilabel_macro_f1, auroc])
def test_no_rows(metric: Callable[..., object]) -> None:
    with pytest.raises(DataError) as caught:
        metric(np.zeros((0, 3), int), np.zeros((0, 3), int))
    assert caught.value.code == "no-rows"


@pytest.mark.parametrize(
    ("true", "pred", "code"),
    [
        ([0, 1], [0, 1], "metric-shape"),
        ([[0, 1]], [[0, 1, 1]], "metric-shape"),
        ([[0, 2]], [[0, 1]], "metric-labels"),
        ([[0, 1]], [[0.2, 0.9]], "metric-labels"),
    ],
)
def test_wrong_arrays(true: list[object], pred: list[object], code: str) -> None:
    with pytest.raises(UsageError) as caught:
        micro_f1(true, pred)
    assert caught.value.code == code
