"""Intervals: known values, determinism, coverage by simulation."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from warmstart.errors import DataError, UsageError
from warmstart.metrics import Metric, bootstrap, wilson
from warmstart.metrics.interval import Values, Weights


def mean_of(x: np.ndarray) -> Callable[[Weights], Values]:
    def statistic(weights: Weights) -> Values:
        return weights.astype(np.float64) @ x / weights.sum(axis=1, dtype=np.float64)

    return statistic


@given(n=st.integers(1, 5000), data=st.data(), confidence=st.sampled_from([0.8, 0.95, 0.99]))
def test_wilson_equals_scipy(n: int, data: st.DataObject, confidence: float) -> None:
    k = data.draw(st.integers(0, n))
    ours = wilson(k, n, confidence=confidence)
    theirs = stats.binomtest(k, n).proportion_ci(confidence, method="wilson")
    assert ours.value == k / n
    assert math.isclose(ours.lo, theirs.low, abs_tol=1e-12)
    assert math.isclose(ours.hi, theirs.high, abs_tol=1e-12)
    assert 0 <= ours.lo <= ours.value <= ours.hi <= 1


def test_wilson_of_a_perfect_score_still_has_width() -> None:
    assert wilson(10, 10).lo == pytest.approx(0.7225, abs=1e-4)
    assert wilson(0, 10).hi == pytest.approx(0.2775, abs=1e-4)


def test_no_rows_is_a_data_error() -> None:
    for call in (lambda: wilson(0, 0), lambda: bootstrap(mean_of(np.zeros(0)), 0)):
        with pytest.raises(DataError) as caught:
            call()
        assert caught.value.code == "no-rows"


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95.0, -0.5])
def test_confidence_is_a_share(confidence: float) -> None:
    with pytest.raises(UsageError) as caught:
        wilson(1, 2, confidence=confidence)
    assert caught.value.code == "confidence-range"
    assert caught.value.value == confidence


def test_other_arguments_out_of_range() -> None:
    with pytest.raises(UsageError) as caught:
        wilson(3, 2)
    assert caught.value.code == "proportion-range"
    with pytest.raises(UsageError) as caught:
        bootstrap(mean_of(np.arange(3.0)), 3, resamples=5)
    assert caught.value.code == "resamples-range"


def test_bootstrap_equals_scipys_bca_up_to_monte_carlo_error() -> None:
    x = np.random.default_rng(0).exponential(size=150)  # skewed, so that BCa differs from the plain percentiles
    ours = bootstrap(mean_of(x), x.size, resamples=20_000)
    theirs = stats.bootstrap((x,), np.mean, n_resamples=20_000, method="BCa", rng=0).confidence_interval
    assert ours is not None
    width = theirs.high - theirs.low
    assert ours.lo == pytest.approx(theirs.low, abs=0.03 * width)
    assert ours.hi == pytest.approx(theirs.high, abs=0.03 * width)


def test_same_seed_same_interval_and_another_seed_another() -> None:
    x = np.random.default_rng(1).normal(size=80)
    np.random.seed(5)  # the global generator has no say
    first = bootstrap(mean_of(x), 80, seed=3)
    np.random.seed(6)
    assert bootstrap(mean_of(x), 80, seed=3) == first
    assert bootstrap(mean_of(x), 80, seed=4) != first
    assert bootstrap(mean_of(x), 80, seed=-1) is not None


def test_the_resamples_are_pinned() -> None:
    """The draws are part of every published interval: a change of numpy or of ours must not move them."""
    seen: list[np.ndarray] = []

    def statistic(weights: Weights) -> Values:
        seen.append(weights.copy())
        return weights[:, 0].astype(np.float64)

    bootstrap(statistic, 6, seed=7, resamples=100)
    assert seen[1][:3].tolist() == [
        [1.0, 1.0, 2.0, 0.0, 1.0, 1.0],
        [1.0, 0.0, 1.0, 2.0, 0.0, 2.0],
        [1.0, 1.0, 0.0, 2.0, 1.0, 1.0],
    ]


def test_chunks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(1).normal(size=97)
    whole = bootstrap(mean_of(x), 97)
    sizes: list[int] = []

    def counted(weights: Weights) -> Values:
        sizes.append(weights.size)
        return mean_of(x)(weights)

    monkeypatch.setattr("warmstart.metrics.interval._CHUNK", 1000)
    small = bootstrap(counted, 97)
    assert max(sizes) <= 1000
    assert whole is not None and small is not None
    assert (small.lo, small.hi) == pytest.approx((whole.lo, whole.hi), abs=1e-12)


def test_an_undefined_value_gives_none_and_undefined_resamples_are_left_out() -> None:
    assert bootstrap(lambda weights: np.full(len(weights), np.nan), 5) is None

    def only_with_row_0(weights: Weights) -> Values:
        return np.where(weights[:, 0] > 0, weights[:, 0], np.nan).astype(np.float64)

    metric = bootstrap(only_with_row_0, 5)
    assert metric is not None
    assert metric.lo >= 1  # a third of the resamples lack row 0 and would have given 0


def test_a_statistic_that_never_moves_has_no_width() -> None:
    assert bootstrap(lambda weights: np.ones(len(weights)), 50) == Metric(1.0, 1.0, 1.0)
    assert bootstrap(mean_of(np.array([3.0])), 1) == Metric(3.0, 3.0, 3.0)


def test_metric_is_json() -> None:
    assert json.loads(json.dumps(Metric(0.5, 0.25, 0.75).as_dict())) == {"value": 0.5, "lo": 0.25, "hi": 0.75}


def test_wilson_covers() -> None:
    """95 % intervals hold the truth about 95 % of the time: exact, by summing over every outcome."""
    n, p = 40, 0.9
    covered = sum(stats.binom.pmf(k, n, p) for k in range(n + 1) if (m := wilson(k, n)).lo <= p <= m.hi)
    assert 0.93 <= covered <= 0.98


def test_bootstrap_covers() -> None:
    """300 samples of 80 skewed numbers: the interval of the mean holds the true mean in about 95 % of them."""
    rng = np.random.default_rng(11)
    hits = 0
    for seed in range(300):
        metric = bootstrap(mean_of(rng.exponential(size=80)), 80, seed=seed, resamples=400)
        assert metric is not None
        hits += metric.lo <= 1.0 <= metric.hi
    assert 0.91 <= hits / 300 <= 0.98  # three standard errors of the simulation are 0.038
