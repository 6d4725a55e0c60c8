"""Correlations and errors against scipy and scikit-learn, on random, tied and extreme numbers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as reference

from warmstart.errors import DataError, UsageError
from warmstart.metrics import Metric, mae, pearson, regression, spearman


@given(n=st.integers(3, 60), seed=st.integers(0, 2**32), tied=st.booleans(), shift=st.sampled_from([0.0, 1e6, -3e9]))
@settings(max_examples=60, deadline=None)
def test_values_equal_scipy(n: int, seed: int, tied: bool, shift: float) -> None:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=n)
    y = x + rng.normal(size=n)
    x, y = (np.round(x), np.round(y) + shift) if tied else (x, y + shift)
    assert mae(x, y, resamples=100).value == pytest.approx(reference.mean_absolute_error(x, y))
    r, rho = pearson(x, y, resamples=100), spearman(x, y, resamples=100)
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        assert r is None and rho is None
        return
    assert r is not None and rho is not None
    assert r.value == pytest.approx(stats.pearsonr(x, y).statistic, abs=1e-6)
    assert rho.value == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-9)
    for metric in (r, rho):
        assert -1 <= metric.lo <= metric.value <= metric.hi <= 1


@pytest.mark.parametrize("tied", [False, True])
def test_every_resample_equals_scipy_with_the_rows_repeated(tied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    statistics: list[Callable[[np.ndarray], np.ndarray]] = []

    def spy(statistic: Callable[[np.ndarray], np.ndarray], n: int, **options: float) -> Metric:
        statistics.append(statistic)
        return Metric(0.0, 0.0, 0.0)

    monkeypatch.setattr(regression, "bootstrap", spy)
    rng = np.random.default_rng(4)
    x = rng.normal(size=40)
    y = x + rng.normal(size=40)
    x, y = (np.round(x), np.round(y)) if tied else (x, y)
    pearson(x, y), spearman(x, y), mae(x, y)
    weights = np.stack([np.bincount(rng.integers(0, 40, 40), minlength=40) for _ in range(20)])
    r, rho, error = (statistic(weights.astype(np.float32)) for statistic in statistics)
    for b, counts in enumerate(weights):
        rows = np.repeat(np.arange(40), counts)
        assert r[b] == pytest.approx(stats.pearsonr(x[rows], y[rows]).statistic)
        assert rho[b] == pytest.approx(stats.spearmanr(x[rows], y[rows]).statistic)
        assert error[b] == pytest.approx(np.abs(x - y)[rows].mean())


def test_constant_sides_have_no_correlation_but_an_error() -> None:
    for metric in (pearson, spearman):
        assert metric([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]) is None
        assert metric([1.0, 2.0, 3.0], [5.0, 5.0, 5.0]) is None
        assert metric([1.0], [2.0]) is None
    assert mae([1.0], [3.0]) == Metric(2.0, 2.0, 2.0)


@pytest.mark.parametrize("scale", [1e-300, 1e-9, 1e9, 1e300])
def test_scale_changes_no_correlation(scale: float) -> None:
    x = np.random.default_rng(0).normal(size=30)
    y = x + np.random.default_rng(1).normal(size=30)
    for metric in (pearson, spearman):
        plain, scaled = metric(x, y), metric(x * scale, y)
        assert plain is not None and scaled is not None
        assert scaled.value == pytest.approx(plain.value)
        assert (scaled.lo, scaled.hi) == pytest.approx((plain.lo, plain.hi))


def test_the_interval_of_pearson_agrees_with_fishers() -> None:
    """On normal data the bootstrap and Fisher's z-transform, two unlike methods, give nearly the same interval."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=1000)
    y = 0.7 * x + rng.normal(size=1000)
    ours, fisher = pearson(x, y), stats.pearsonr(x, y).confidence_interval(0.95)
    assert ours is not None
    assert ours.lo == pytest.approx(fisher.low, abs=0.01)
    assert ours.hi == pytest.approx(fisher.high, abs=0.01)


@pytest.mark.parametrize("metric", [pearson, spearman, mae])
def test_wrong_arrays(metric: Callable[..., object]) -> None:
    with pytest.raises(DataError) as caught:
        metric([], [])
    assert caught.value.code == "no-rows"
    with pytest.raises(UsageError) as usage:
        metric([1.0, 2.0], [1.0])
    assert usage.value.code == "metric-shape"
    with pytest.raises(DataError) as caught:
        metric([1.0, 2.0, 3.0], [1.0, 2.0, float("inf")])
    assert caught.value.code == "scores-not-finite"
    assert "row 2" in str(caught.value)
