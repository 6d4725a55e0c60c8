"""Paired tests and intervals: parity with scipy, levels and coverage, exchanged sides."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from warmstart.metrics import Measure, mcnemar, paired_difference
from warmstart.metrics import interval as interval_module
from warmstart.metrics import paired as paired_module
from warmstart.metrics.interval import resample
from warmstart.metrics.paired import detectable_share, randomization, share_difference

Columns = dict[str, np.ndarray]


# --- shares -------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(lost=st.integers(0, 400), won=st.integers(0, 400))
def test_mcnemar_equals_scipys_binomial_test(lost: int, won: int) -> None:
    expected = stats.binomtest(lost, lost + won).pvalue if lost + won else 1.0
    assert mcnemar(lost, won) == pytest.approx(expected, abs=1e-12)
    assert mcnemar(lost, won) == mcnemar(won, lost)


@pytest.mark.parametrize("disagree", [0.05, 0.2, 0.6])
@pytest.mark.parametrize("n", [20, 80, 160])
def test_mcnemar_holds_its_level(n: int, disagree: float) -> None:
    """How often it rejects models that are equally good: exact, by summing over every outcome."""
    level = sum(
        stats.binom.pmf(m, n, disagree)
        * sum(stats.binom.pmf(k, m, 0.5) for k in range(m + 1) if mcnemar(k, m - k) <= 0.05)
        for m in range(n + 1)
        if stats.binom.pmf(m, n, disagree) > 1e-9
    )
    assert level <= 0.05


@pytest.mark.parametrize(
    ("n", "only_a", "only_b"),
    [(60, 0.1, 0.1), (60, 0.05, 0.2), (150, 0.05, 0.05), (150, 0.02, 0.1), (150, 0.3, 0.25), (400, 0.03, 0.05)],
)
def test_the_interval_of_shares_covers(n: int, only_a: float, only_b: float) -> None:
    """95 % intervals hold the true difference in 95 ± 1.5 % of samples: exact, by summing over every outcome."""
    covered = total = 0.0
    for lost, won in itertools.product(range(n + 1), repeat=2):
        if lost + won > n or abs(lost - n * only_a) > 5 * math.sqrt(n * only_a) + 3:
            continue
        if abs(won - n * only_b) > 5 * math.sqrt(n * only_b) + 3:
            continue
        chance = math.exp(
            math.lgamma(n + 1) - math.lgamma(lost + 1) - math.lgamma(won + 1) - math.lgamma(n - lost - won + 1)
            + lost * math.log(only_a) + won * math.log(only_b) + (n - lost - won) * math.log(1 - only_a - only_b)
        )  # fmt: skip
        found = share_difference(lost, won, n)
        total += chance
        covered += chance * (found.lo <= only_b - only_a <= found.hi)
    assert total == pytest.approx(1, abs=1e-4)
    assert 0.935 <= covered <= 0.965


@pytest.mark.parametrize(("only_a", "only_b"), [(0.1, 0.1), (0.05, 0.15)])
def test_accuracies_are_compared_at_their_level_from_rows(
    only_a: float, only_b: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same from drawn rows, through all that `compare` does: equal models differ in at most 6 % of samples."""
    monkeypatch.setattr(paired_module, "detectable_share", lambda disagreeing, n: None)  # slow, and not asked here
    rng, n, times = np.random.default_rng(11), 150, 4000
    measure = Measure("share", ("correct",))
    rejected = covered = 0
    for row_draws in rng.random((times, n)):
        wins, losses = row_draws < only_b, row_draws > 1 - only_a
        both = ~wins & ~losses & (row_draws < 0.7)
        found = paired_difference(measure, {"correct": both | losses}, {"correct": both | wins})
        assert found is not None and found.test == "mcnemar"
        rejected += found.p_value <= 0.05
        covered += found.lo <= only_b - only_a <= found.hi
    assert 0.935 <= covered / times <= 0.965
    if only_a == only_b:
        assert 0.02 <= rejected / times <= 0.06
    else:
        assert rejected / times > 0.5


@settings(max_examples=25, deadline=None)
@given(data=st.data(), n=st.integers(8, 200))
def test_the_interval_of_shares_is_tangos(data: st.DataObject, n: int) -> None:
    """Its ends are where the score test changes its mind, with the constrained likelihood maximised by scipy."""
    lost = data.draw(st.integers(1, n // 2 - 1))
    won = data.draw(st.integers(1, n // 2 - 1))
    found = share_difference(lost, won, n)
    for end in (found.lo, found.hi):

        def unlikely(only_lost: float, end: float = end) -> float:
            rest = 1 - 2 * only_lost - end
            parts = ((won, only_lost + end), (lost, only_lost), (n - lost - won, rest))
            return -sum(count * math.log(max(p, 1e-300)) for count, p in parts if count)

        bounds = (max(0.0, -end), (1 - end) / 2)
        only_lost = optimize.minimize_scalar(unlikely, bounds=bounds, method="bounded", options={"xatol": 1e-12}).x
        z = (won - lost - n * end) / math.sqrt(n * (2 * only_lost + end - end**2))
        assert abs(z) == pytest.approx(1.959964, abs=2e-3)


def test_the_interval_of_shares_at_its_ends() -> None:
    same = share_difference(0, 0, 50)
    assert (same.value, same.lo) == (0.0, -same.hi) and 0 < same.hi < 0.1
    assert share_difference(0, 50, 50).hi == pytest.approx(1.0)
    assert 0.8 < share_difference(0, 50, 50).lo < 1


@settings(deadline=None)
@given(lost=st.integers(0, 40), won=st.integers(0, 40), rest=st.integers(1, 200))
def test_exchanged_sides_mirror_the_interval(lost: int, won: int, rest: int) -> None:
    one, other = share_difference(lost, won, lost + won + rest), share_difference(won, lost, lost + won + rest)
    assert (one.value, one.lo, one.hi) == pytest.approx((-other.value, -other.hi, -other.lo), abs=1e-12)
    assert -1 <= one.lo <= one.value <= one.hi <= 1


def _power(n: int, disagree: float, difference: float) -> float:
    """Of the exact McNemar test, by scipy."""
    total = 0.0
    for m in range(n + 1):
        chance = stats.binom.pmf(m, n, disagree)
        if chance > 1e-9:
            k = np.arange(m + 1)
            rejects = [mcnemar(int(each), int(m - each)) <= 0.05 for each in k]
            total += chance * float(stats.binom.pmf(k, m, (1 + difference / disagree) / 2) @ rejects)
    return total


@pytest.mark.parametrize(("disagreeing", "n"), [(0, 40), (4, 100), (20, 100), (60, 120)])
def test_the_detectable_share_is_found_in_eighty_percent(disagreeing: int, n: int) -> None:
    found = detectable_share(disagreeing, n)
    assert found is not None
    for difference, low, high in ((found, 0.795, 0.805), (0.9 * found, 0.0, 0.8)):
        assert low <= _power(n, max(disagreeing / n, difference), difference) <= high


def test_too_few_rows_detect_nothing() -> None:
    assert detectable_share(3, 5) is None
    assert detectable_share(0, 100_000) == pytest.approx(7.9e-5, rel=0.02)


# --- any metric ---------------------------------------------------------------------------------------------------


def _mean(n: int) -> Callable[[Any], Any]:
    return lambda values: lambda weights: weights.astype(np.float64) @ values / n


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=2, max_size=9))
def test_every_exchange_equals_scipys_permutation_test(pairs: list[tuple[int, int]]) -> None:
    a, b = np.array(pairs, dtype=float).T
    theirs = stats.permutation_test(
        (a, b), lambda x, y, axis: np.mean(x - y, axis=axis), permutation_type="samples", vectorized=True
    )
    ours = randomization(_mean(len(a))(np.concatenate([a, b])), a != b)
    assert ours == pytest.approx(theirs.pvalue, abs=1e-12)


def test_random_exchanges_agree_with_scipys_sign_test_of_many_rows() -> None:
    rng = np.random.default_rng(0)
    a = rng.normal(size=200)
    b = a + rng.normal(0.12, 1, size=200)
    theirs = stats.ttest_rel(a, b).pvalue
    assert randomization(_mean(200)(np.concatenate([a, b])), a != b) == pytest.approx(theirs, abs=0.03)


def _means(rng: np.random.Generator, n: int) -> tuple[Measure, Columns, Columns]:
    common = rng.normal(size=n)
    return Measure("mean", ("v",)), {"v": common + rng.exponential(size=n)}, {"v": common + rng.exponential(size=n)}


def _classes(rng: np.random.Generator, n: int) -> tuple[Measure, Columns, Columns]:
    true, hard = rng.integers(0, 3, n), rng.random(n) < 0.5
    sides = []
    for _ in range(2):
        wrong = rng.random(n) < np.where(hard, 0.5, 0.05)
        sides.append({"true": true, "predicted": np.where(wrong, (true + rng.integers(1, 3, n)) % 3, true)})
    return Measure("macro-f1", ("true", "predicted")), sides[0], sides[1]


@pytest.mark.parametrize("draw", [_means, _classes])
def test_levels_and_coverage(draw: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Equally good models, many times: the test rejects in at most 6 %, the bootstrap covers 0 in 95 ± 1.5 %."""
    monkeypatch.setattr(interval_module, "raw_bits", cache(interval_module.raw_bits))  # the same draws, drawn once
    monkeypatch.setattr(interval_module, "_resample", cache(interval_module._resample))
    monkeypatch.setattr(paired_module, "raw_bits", interval_module.raw_bits)
    rng, n, times = np.random.default_rng(3), 80, 1500
    rejected = covered = 0
    for i in range(times):
        measure, a, b = draw(rng, n)
        first, second, either = measure.statistic(a), measure.statistic(b), measure.together(a, b)
        assert first is not None and second is not None and either is not None
        found = resample(lambda w, one=first, other=second: other(w) - one(w), n, resamples=600)  # type: ignore[misc]
        assert found is not None
        interval = found.percentiles(n)
        covered += interval.lo <= 0 <= interval.hi
        # Fifty sets of exchanges, since one set's own level is 5 ± 1.5 %.
        rejected += randomization(either, measure.differs(a, b), seed=i % 50, exchanges=199) <= 0.05
    assert 0.03 <= rejected / times <= 0.06
    assert 0.935 <= covered / times <= 0.965


def test_the_interval_is_as_much_wider_as_students() -> None:
    for degrees in (9, 30, 200):
        assert interval_module._student(1.959964, degrees) == pytest.approx(stats.t.ppf(0.975, degrees), rel=2e-3)


def test_the_detectable_difference_is_that_of_the_t_test() -> None:
    rng = np.random.default_rng(1)
    a = {"v": rng.normal(size=400)}
    b = {"v": a["v"] + rng.normal(0.1, 1, size=400)}
    found = paired_difference(Measure("mean", ("v",)), a, b)
    assert found is not None and found.test == "randomization"
    assert found.minimum_detectable == pytest.approx((1.95996 + 0.84162) / math.sqrt(400), rel=0.1)


# --- every kind ---------------------------------------------------------------------------------------------------


def _both(kind: str, n: int, seed: int) -> tuple[Measure, Columns, Columns]:
    """A measure of this kind and two models' columns."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 2, n)
    flags, noise = rng.integers(0, 2, (n, 3)), rng.normal(size=(2, n))
    units = np.arange(n) // 2
    made: dict[str, tuple[Measure, list[Columns]]] = {
        "share": (Measure("share", ("r", "c")), [{"r": e > 0, "c": truth > 0} for e in noise]),
        "mean": (Measure("mean", ("v",)), [{"v": np.where(truth > 0, e, np.nan)} for e in noise]),
        "mean-absolute": (Measure("mean-absolute", ("v",)), [{"v": e} for e in noise]),
        "ratio": (Measure("ratio", ("p", "w")), [{"p": np.minimum(abs(e), 1), "w": truth + 1} for e in noise]),
        "perplexity": (Measure("perplexity", ("l", "t")), [{"l": abs(e), "t": truth + 1} for e in noise]),
        "macro-f1": (Measure("macro-f1", ("t", "p")), [{"t": truth, "p": (truth + e > 0.5) * 1} for e in noise]),
        "mcc": (Measure("mcc", ("t", "p")), [{"t": truth, "p": (truth + e > 0.5) * 1} for e in noise]),
        "micro-f1": (Measure("micro-f1", ("t", "p")), [{"t": flags, "p": flags ^ (e > 1)[:, None]} for e in noise]),
        "multilabel-macro-f1": (
            Measure("multilabel-macro-f1", ("t", "p")), [{"t": flags, "p": flags ^ (e > 1)[:, None]} for e in noise]),
        "auroc": (Measure("auroc", ("t", "s")), [{"t": truth, "s": truth + e} for e in noise]),
        "pearson": (Measure("pearson", ("t", "s")), [{"t": truth * 1.0, "s": truth + e} for e in noise]),
        "spearman": (Measure("spearman", ("t", "s")), [{"t": truth * 1.0, "s": truth + e} for e in noise]),
        "list-auroc": (
            Measure("list-auroc", ("t", "s"), unit="u"),
            [{"t": _lists(truth), "s": _lists(truth + e), "u": units} for e in noise]),
        "list-spearman": (
            Measure("list-spearman", ("t", "s"), unit="u"),
            [{"t": _lists(truth * 2.0), "s": _lists(truth + e), "u": units} for e in noise]),
    }  # fmt: skip
    for kind_of_spans in ("span-f1", "span-precision", "span-recall", "span-macro-f1"):
        counts = [np.stack([np.minimum(flags, e[:, None] > 0), flags * 0 + 1, flags], axis=-1) for e in noise]
        made[kind_of_spans] = Measure(kind_of_spans, ("n",)), [{"n": each} for each in counts]  # type: ignore[arg-type]
    for kind_of_texts, orders in (("bleu", 4), ("chrf", 6)):
        given = truth[:, None, None] + np.full((n, orders, 3), 6)
        matched = [np.clip(given[..., :1] - abs(e * 2).astype(int)[:, None, None], 0, None) for e in noise]
        counts = [np.concatenate([each, given[..., 1:]], axis=2) for each in matched]
        made[kind_of_texts] = Measure(kind_of_texts, ("n",)), [{"n": each} for each in counts]  # type: ignore[arg-type]
    measure, (a, b) = made[kind]
    return measure, a, b


def _lists(values: np.ndarray) -> np.ndarray:
    """Each row's list: one value, or two."""
    second = np.where(np.arange(len(values)) % 3 == 0, np.nan, values[::-1].astype(float))
    return np.stack([values.astype(float), second], axis=1)


KINDS = (
    "share", "mean", "mean-absolute", "ratio", "perplexity", "macro-f1", "mcc", "micro-f1", "multilabel-macro-f1",
    "auroc", "pearson", "spearman", "list-auroc", "list-spearman", "span-f1", "span-precision", "span-recall",
    "span-macro-f1", "bleu", "chrf",
)  # fmt: skip


def test_these_are_all_kinds() -> None:
    from warmstart.metrics.measure import _MAKERS

    assert set(KINDS) == set(_MAKERS)


@pytest.mark.parametrize("kind", KINDS)
def test_exchanged_sides_change_the_sign_alone(kind: str) -> None:
    measure, a, b = _both(kind, 40, 7)
    one, other = paired_difference(measure, a, b), paired_difference(measure, b, a)
    assert one is not None and other is not None
    # `==`, but for the last digits of sums in another order.
    assert (one.a, one.b, one.p_value) == pytest.approx((other.b, other.a, other.p_value), abs=1e-9)
    assert (one.difference, one.lo, one.hi) == pytest.approx((-other.difference, -other.hi, -other.lo), abs=1e-9)
    assert one.minimum_detectable == pytest.approx(other.minimum_detectable, abs=1e-9)
    assert one.difference == pytest.approx(one.b - one.a, abs=1e-9)
    for side, value in ((a, one.a), (b, one.b)):
        metric = measure.of(side)
        assert metric is not None and metric.value == pytest.approx(value, abs=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_does_not_differ_from_itself(kind: str) -> None:
    measure, a, _ = _both(kind, 30, 2)
    found = paired_difference(measure, a, {name: values.copy() for name, values in a.items()})
    assert found is not None
    assert (found.difference, found.p_value) == (0.0, 1.0) and found.lo <= 0 <= found.hi
    assert not measure.differs(a, a).any()


@pytest.mark.parametrize("kind", ["auroc", "spearman", "pearson", "list-auroc", "list-spearman"])
def test_another_scale_of_the_scores_is_no_difference(kind: str) -> None:
    measure, a, _ = _both(kind, 30, 2)
    found = paired_difference(measure, a, {**a, "s": 1000 * a["s"] + 5})
    assert found is not None
    assert (found.difference, found.p_value) == pytest.approx((0.0, 1.0), abs=1e-9)


def test_rows_of_one_unit_are_drawn_together() -> None:
    rng = np.random.default_rng(0)
    value = rng.normal(size=30).repeat(10)
    single = paired_difference(Measure("mean", ("v",)), {"v": value * 0}, {"v": value})
    columns = {"v": value, "u": np.arange(30).repeat(10)}
    grouped = paired_difference(Measure("mean", ("v",), unit="u"), {**columns, "v": value * 0}, columns)
    assert single is not None and grouped is not None
    assert (grouped.hi - grouped.lo) / (single.hi - single.lo) == pytest.approx(math.sqrt(10), rel=0.15)


def test_a_metric_that_one_side_does_not_define_has_no_difference() -> None:
    truth = np.array([0, 0, 1, 1])
    measure = Measure("spearman", ("t", "s"))
    constant = {"t": truth * 1.0, "s": np.ones(4)}
    assert paired_difference(measure, constant, {"t": truth * 1.0, "s": truth * 2.0}) is None
    assert paired_difference(Measure("share", ("r", "c")), *[{"r": truth > 0, "c": truth > 5}] * 2) is None
