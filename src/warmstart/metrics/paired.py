"""How far two models' metrics are apart on the same rows: the difference, its interval, and what chance alone would do.

Shares (accuracy, exact match): the exact McNemar test, and Tango's score interval of the difference. Any other metric:
a randomization test, and an interval from a bootstrap of the rows, each row with both of its predictions. A p-value
comes from exchanging the two predictions of random rows, not from the bootstrap: under the hypothesis that it makes no
difference whose prediction is whose, that test holds its level with any metric and any number of rows, while a
bootstrap is right for many rows only (E. W. Noreen, "Computer-intensive methods for testing hypotheses", 1989; A. Yeh,
"More accurate tests for the statistical significance of result differences", COLING 2000; S. Riezler and J. T. Maxwell,
"On some pitfalls in automatic evaluation and significance testing for MT", 2005). Of a mean it is the sign-flip test.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from warmstart.metrics.interval import (
    RESAMPLES,
    Metric,
    Statistic,
    Values,
    Weights,
    over_chunks,
    quantile,
    raw_bits,
    require_rows,
    resample,
)
from warmstart.metrics.measure import Columns, Measure, shares

Bools = NDArray[np.bool_]

LEVEL, POWER = 0.05, 0.8  # at which `minimum_detectable` is stated
EXCHANGES = 1999  # random ones; with that many, 5 % is a whole number of them
_ALL_EXCHANGES = 10  # up to so many differing rows every exchange is made: 2**10
_STREAMS = 1 << 32  # of random bits, beyond those of the bootstrap


@dataclass(frozen=True, slots=True)
class Difference:
    """A metric of two models on the same rows.

    `difference` is b - a, with its 95 % interval from `lo` to `hi`. `p_value`: how often chance alone would set models
    that are equally good at least so far apart. `minimum_detectable`: the smallest true difference that as many rows
    would show at 5 % in 80 % of all cases; None where no difference would, or where the models never differ.
    """

    a: float
    b: float
    difference: float
    lo: float
    hi: float
    p_value: float
    minimum_detectable: float | None
    test: Literal["mcnemar", "randomization"]

    def as_dict(self) -> dict[str, Any]:
        """The fields, JSON-able."""
        return asdict(self)


def paired_difference(measure: Measure, a: Columns, b: Columns, *, seed: int = 0) -> Difference | None:
    """How far two models are apart by one metric, on the same rows in the same order; None where one has no value.

    A function of the arguments alone. `seed` is that of the resamples.

    >>> right = np.arange(100) % 5 > 0
    >>> found = paired_difference(Measure("share", ("correct",)), {"correct": right}, {"correct": right | True})
    >>> round(found.difference, 2), round(found.p_value, 6), round(found.minimum_detectable, 3)
    (0.2, 2e-06, 0.128)
    """
    if measure.kind == "share":
        (right_a, counted_a), (right_b, counted_b) = shares(measure, a), shares(measure, b)
        return _of_shares(right_a, right_b, counted_a & counted_b)
    first, second, either = measure.statistic(a), measure.statistic(b), measure.together(a, b)
    if first is None or second is None or either is None:
        return None
    n = measure.units(a)

    def difference(weights: Weights) -> Values:
        return np.asarray(second(weights) - first(weights))

    drawn = resample(difference, n, seed=seed, resamples=RESAMPLES)
    if drawn is None:
        return None
    whole, interval = np.ones((1, n)), drawn.percentiles(n)
    spread = (quantile(1 - LEVEL) + NormalDist().inv_cdf(POWER)) * drawn.deviation
    return Difference(
        a=float(first(whole)[0]),
        b=float(second(whole)[0]),
        difference=interval.value,
        lo=interval.lo,
        hi=interval.hi,
        p_value=randomization(either, measure.differs(a, b), seed=seed),
        minimum_detectable=spread if spread > 0 else None,
        test="randomization",
    )


def _of_shares(right_a: Bools, right_b: Bools, counted: Bools) -> Difference | None:
    n = int(counted.sum())
    if not n:
        return None
    lost, won = (int((counted & one & ~other).sum()) for one, other in ((right_a, right_b), (right_b, right_a)))
    interval = share_difference(lost, won, n)
    return Difference(
        a=int((right_a & counted).sum()) / n,
        b=int((right_b & counted).sum()) / n,
        difference=interval.value,
        lo=interval.lo,
        hi=interval.hi,
        p_value=mcnemar(lost, won),
        minimum_detectable=detectable_share(lost + won, n),
        test="mcnemar",
    )


def mcnemar(lost: int, won: int) -> float:
    """The exact two-sided McNemar test: how likely is so uneven a split of the rows on which two models disagree.

    `lost`: rows that only the first has right; `won`: that only the second has right. Source: Q. McNemar, "Note on the
    sampling error of the difference between correlated proportions", Psychometrika 12 (1947), with binomial
    probabilities.

    >>> mcnemar(0, 0), mcnemar(1, 6)
    (1.0, 0.125)
    """
    total, few = lost + won, min(lost, won)
    ways = tail = 1
    for k in range(few):
        ways = ways * (total - k) // (k + 1)
        tail += ways
    return min(1.0, 2 * tail / 2**total)


def share_difference(lost: int, won: int, n: int, *, confidence: float = 0.95) -> Metric:
    """The difference of two shares of the same n rows, (won - lost) / n, with Tango's score interval.

    It is sound for few rows, where the two never disagree, and where one is always right. Source: T. Tango,
    "Equivalence test and confidence interval for the difference in proportions for the paired-sample design", Stat.
    Med. 17 (1998); compared with others by M. Fagerland, S. Lydersen and P. Laake, Stat. Med. 33 (2014).
    Raises DataError `no-rows`, UsageError `confidence-range`.

    >>> share_difference(2, 9, 100)
    Metric(value=0.07, lo=0.0059..., hi=0.1458...)
    """
    require_rows(n)
    z, value = quantile(confidence), (won - lost) / n
    lo, hi = _lowest(won, lost, n, z), -_lowest(lost, won, n, z)
    return Metric(value, min(lo, value), max(hi, value))


def _lowest(won: int, lost: int, n: int, z: float) -> float:
    """The smallest difference that the score test does not refuse."""
    low, high = -1.0, (won - lost) / n
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _score(won, lost, n, middle) > z else (low, middle)
    return high


def _score(won: int, lost: int, n: int, delta: float) -> float:
    """Tango's statistic for a true difference of `delta`: how many standard errors the observed one is above it."""
    b = (2 * n - won + lost) * delta - won - lost
    root = math.sqrt(max(0.0, b * b + 8 * n * lost * delta * (1 - delta)))
    only_lost = (root - b) / (4 * n)  # the likeliest share of rows that only the first has right, given delta
    variance = n * (2 * only_lost + delta * (1 - delta))
    above = won - lost - n * delta
    return above / math.sqrt(variance) if variance > 1e-12 * n else math.copysign(math.inf, above)


def detectable_share(disagreeing: int, n: int) -> float | None:
    """The smallest true difference of two shares that the exact McNemar test would find at 5 % in 80 % of all samples.

    Models that disagree on `disagreeing` of n rows are taken to do so elsewhere, or as often as the difference asks for
    if that is more. The power is summed over how many rows they would disagree on. None for fewer than 6 rows, where no
    test can reach 5 %.

    >>> round(detectable_share(20, 200), 3), round(detectable_share(0, 200), 3), detectable_share(2, 5)
    (0.065, 0.039, None)
    """
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])  # of factorials
    share = disagreeing / n
    critical: dict[int, int] = {}

    def power(delta: float) -> float:
        """Of the test, where the true difference is `delta`."""
        disagree = max(share, delta)
        middle, reach = n * disagree, 6 * math.sqrt(n * disagree * (1 - disagree)) + 1
        ends = max(0, math.floor(middle - reach)), min(n, math.ceil(middle + reach))
        totals = np.unique(np.linspace(*ends, 41).round().astype(int))  # as many say enough of large samples
        chances = _binomial(logs, n, totals, disagree)
        found = [_rejects(logs, int(m), (1 + delta / disagree) / 2, critical) for m in totals]
        return float(chances @ found / chances.sum())

    if power(1.0) < POWER:
        return None
    low, high = 0.0, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if power(middle) < POWER else (low, middle)
    return high


def _rejects(logs: Values, total: int, p: float, critical: dict[int, int]) -> float:
    """How often McNemar's test rejects at `total` disagreements, of which a share p goes one way."""
    if total not in critical:  # the most for the fewer side at which it still rejects; -1 for none
        tails = np.cumsum(_binomial(logs, total, np.arange(total // 2 + 1), 0.5))
        critical[total] = int(np.searchsorted(2 * tails, LEVEL * (1 + 1e-12), side="right")) - 1
    few = np.arange(critical[total] + 1)
    return float(_binomial(logs, total, few, p).sum() + _binomial(logs, total, few, 1 - p).sum())


def _binomial(logs: Values, n: int, k: NDArray[Any], p: float) -> Values:
    """The chances of k successes in n trials; `logs` are those of the factorials from 0 to n."""
    ways = logs[n] - logs[k] - logs[n - k]
    with np.errstate(divide="ignore", invalid="ignore"):  # no successes at chance 0 are certain: 0 times -inf is 0 here
        successes = np.where(k > 0, k * np.log(p), 0)
        failures = np.where(k < n, (n - k) * np.log1p(-p), 0)
    return np.asarray(np.exp(ways + successes + failures))


def randomization(either: Statistic, differs: Bools, *, seed: int = 0, exchanges: int = EXCHANGES) -> float:
    """How often exchanging the two models' predictions at random sets their metrics as far apart as they are.

    `either` takes weights (B, 2 n): those of the first model's n rows, then the second's. Rows that do not differ
    (`differs` (n,)) need no exchange: with at most 10 others every exchange is made and the p-value is exact, otherwise
    `exchanges` random ones, of which the observed is one more. An exchange that leaves a metric undefined counts as one
    that sets them apart.

    >>> x = np.array([0.1, 0.4, 0.3, 0.2, 0.5, 0.0])
    >>> randomization(lambda w: w @ np.concatenate([x, x + 1]) / 6, np.ones(6, bool))
    0.03125
    """
    n, where = len(differs), np.flatnonzero(differs)

    def apart(exchanged: Weights) -> Values:
        first, second = np.hstack([1 - exchanged, exchanged]), np.hstack([exchanged, 1 - exchanged])
        return np.abs(either(second) - either(first))

    def exchange(index: int) -> NDArray[Any]:
        row = np.zeros(n, np.uint8)
        if len(where) <= _ALL_EXCHANGES:
            row[where] = index >> np.arange(len(where)) & 1
        else:
            words = raw_bits(seed, _STREAMS + index, -(-n // 64)).astype("<u8")
            row[where] = np.unpackbits(words.view(np.uint8), bitorder="little")[:n][where]
        return row

    observed = float(apart(np.zeros((1, n)))[0])
    least = observed - 1e-9 * max(1.0, observed)  # sums in another order are no other result
    exact = len(where) <= _ALL_EXCHANGES
    found = over_chunks(apart, exchange, 1 << len(where) if exact else exchanges, n)
    as_far = int((~(found < least)).sum())
    return as_far / len(found) if exact else (as_far + 1) / (len(found) + 1)
