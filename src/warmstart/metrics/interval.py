"""A number and its interval: Wilson's for proportions, the bias-corrected accelerated bootstrap for everything else.

A statistic is written once, over *weights*: how often each row stands in a resample. The plain value is the statistic
at weight one everywhere, a bootstrap resample is one row of multinomial counts, a jackknife group is a row of ones with
some zeros. So sorting and grouping happen once per metric, not once per resample.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from warmstart.errors import DataError, UsageError

Weights = NDArray[np.floating[Any]]  # (B, N): B resamples of N rows
Values = NDArray[np.float64]  # (B,): the statistic of each resample, NaN where it is undefined
Statistic = Callable[[Weights], Values]

RESAMPLES = 1000
_GROUPS = 200  # jackknife groups: enough for the acceleration, and far fewer than rows
_CHUNK = 1 << 20  # weights held at a time: 4 MB as float32
_EXACT_IN_FLOAT32 = 1 << 24  # whole numbers below this are exact in float32


@dataclass(frozen=True, slots=True)
class Metric:
    """A value and the ends of its interval (95 % unless the caller chose otherwise); lo <= value <= hi."""

    value: float
    lo: float
    hi: float

    def as_dict(self) -> dict[str, float]:
        """The three numbers, JSON-able, in the shape the command line prints."""
        return asdict(self)


def wilson(successes: int, n: int, *, confidence: float = 0.95) -> Metric:
    """Wilson's score interval for a proportion: sound at 0 %, at 100 % and for few rows.

    Source: E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927).
    Raises DataError `no-rows` for n = 0, UsageError `confidence-range` or `proportion-range`.

    >>> wilson(9, 10)
    Metric(value=0.9, lo=0.5958..., hi=0.9821...)
    """
    require_rows(n)
    if not 0 <= successes <= n:
        raise UsageError(
            "proportion-range",
            "a count of successes must lie between 0 and the number of trials",
            value=f"{successes} of {n}",
            fix="count the successes among these n rows only",
        )
    z = quantile(confidence)
    p = successes / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # At 0 % and 100 % the formula gives the end itself up to rounding: keep the value inside its interval.
    return Metric(p, min(p, max(0.0, middle - half)), max(p, min(1.0, middle + half)))


@dataclass(frozen=True, slots=True)
class Resampled:
    """A statistic's value, its values in bootstrap resamples (sorted) and without each jackknife group; none is NaN."""

    value: float
    draws: Values
    left_out: Values

    @property
    def deviation(self) -> float:
        """The statistic's standard error, as the resamples estimate it."""
        return float(self.draws.std(ddof=1)) if self.draws.size > 1 else 0.0

    def interval(self, confidence: float = 0.95) -> Metric:
        """The BCa interval; see `bootstrap`. Raises UsageError `confidence-range`."""
        z = quantile(confidence)
        if not self._moves:
            return Metric(self.value, self.value, self.value)
        lo, hi = _bca(self.value, self.draws, self.left_out, z)
        return Metric(self.value, min(lo, self.value), max(hi, self.value))

    def percentiles(self, rows: int, confidence: float = 0.95) -> Metric:
        """The expanded percentile interval of a statistic of so many rows, for differences, which are hardly skewed.

        It is as much wider than the plain percentiles as Student's interval is than the normal one, and as a sample
        deviates more than its resamples: T. Hesterberg, "What teachers should know about the bootstrap", Am. Stat. 69
        (2015). BCa would estimate a skewness that is not there. Raises UsageError `confidence-range`.
        """
        z = quantile(confidence)
        if not self._moves:
            return Metric(self.value, self.value, self.value)
        if rows > 1:
            z = math.sqrt(rows / (rows - 1)) * _student(z, rows - 1)
        lo, hi = (float(np.quantile(self.draws, NormalDist().cdf(end))) for end in (-z, z))
        return Metric(self.value, min(lo, self.value), max(hi, self.value))

    @property
    def _moves(self) -> bool:
        return self.draws.size > 0 and not self.draws[0] == self.value == self.draws[-1]


def bootstrap(
    statistic: Statistic,
    n: int,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    confidence: float = 0.95,
) -> Metric | None:
    """The value of a statistic over n rows with its BCa bootstrap interval; None where the value is undefined.

    `statistic` takes weights (B, n), whole numbers, and returns (B,) float64, NaN where undefined; it is called with at
    most 2**20 weights at a time (one resample, if n is larger), so memory stays flat. Resample b is a function of
    (seed, b, n) alone, drawn from the raw bits of Philox, a counter-based generator: no other draw, chunk size, thread
    or numpy version changes it. Resamples in which the statistic is undefined are left out of the interval.

    The acceleration comes from a jackknife over at most 200 random groups of rows. A statistic that no resample changes
    (a perfect score) has an interval of width zero: a bootstrap cannot see what the sample does not hold; read the
    accuracy's Wilson interval there. The interval is widened to the value if the correction would leave it out.

    Sources: B. Efron, "Better bootstrap confidence intervals", JASA 82 (1987), for BCa; B. Efron and R. Tibshirani, "An
    introduction to the bootstrap" (1993), chapters 11 (grouped jackknife) and 14; J. Salmon et al., "Parallel random
    numbers: as easy as 1, 2, 3", SC11, for Philox.
    Raises DataError `no-rows`, UsageError `confidence-range` or `resamples-range`.

    >>> x = np.arange(100.0)
    >>> bootstrap(lambda weights: weights @ x / weights.sum(axis=1), 100)
    Metric(value=49.5, lo=43.4..., hi=54.9...)
    """
    quantile(confidence)
    found = resample(statistic, n, seed=seed, resamples=resamples)
    return None if found is None else found.interval(confidence)


def resample(statistic: Statistic, n: int, *, seed: int = 0, resamples: int = RESAMPLES) -> Resampled | None:
    """The draws that `bootstrap` makes its interval of; None where the value is undefined. Raises as it does.

    >>> x = np.arange(100.0)
    >>> round(resample(lambda weights: weights @ x / weights.sum(axis=1), 100).deviation, 1)
    3.0
    """
    require_rows(n)
    if resamples < 100:
        raise UsageError(
            "resamples-range",
            "an interval needs at least 100 bootstrap resamples",
            value=resamples,
            fix=f"leave it out ({RESAMPLES}) or give 100 or more",
        )
    dtype = np.float32 if n < _EXACT_IN_FLOAT32 else np.float64
    value = float(statistic(np.ones((1, n), dtype))[0])
    if math.isnan(value):
        return None
    draws = over_chunks(statistic, lambda b: _resample(seed, b, n), resamples, n)
    draws = np.sort(draws[~np.isnan(draws)])
    found = Resampled(value, draws, np.zeros(0))
    if not found._moves:
        return found
    groups = min(n, _GROUPS)
    group_of = np.argsort(raw_bits(seed, resamples, n), kind="stable") % groups
    left_out = over_chunks(statistic, lambda g: group_of != g, groups, n)
    return Resampled(value, draws, left_out[~np.isnan(left_out)])


def require_rows(n: int) -> None:
    """Refuse to measure nothing."""
    if n < 1:
        raise DataError("no-rows", "a metric needs at least one row, and got none", fix="give rows that carry labels")


def quantile(confidence: float) -> float:
    """How many standard errors a normal interval reaches to each side. Raises UsageError `confidence-range`."""
    if not 0 < confidence < 1:
        raise UsageError(
            "confidence-range",
            "the confidence of an interval lies between 0 and 1",
            value=confidence,
            fix="0.95 is the usual one",
        )
    return NormalDist().inv_cdf((1 + confidence) / 2)


def raw_bits(seed: int, stream: int, n: int) -> NDArray[np.uint64]:
    """n uint64 that depend on nothing but the arguments: the stream is the second word of Philox's counter."""
    words = np.array([0, stream, 0, 0], dtype=np.uint64)
    return np.random.Philox(key=seed % (1 << 128), counter=words).random_raw(n)


def _resample(seed: int, index: int, n: int) -> NDArray[np.int64]:
    """How often each of n rows was drawn in n draws with replacement: (n,)."""
    # The high 32 bits scaled to [0, n): the bias is below n / 2**32.
    rows = ((raw_bits(seed, index, n) >> np.uint64(32)) * np.uint64(n)) >> np.uint64(32)
    return np.bincount(rows.astype(np.int64), minlength=n)


def over_chunks(statistic: Statistic, weights_of: Callable[[int], NDArray[Any]], count: int, n: int) -> Values:
    """The statistic at `count` rows of n weights, as many of them in memory at a time as the budget allows."""
    dtype = np.float32 if n < _EXACT_IN_FLOAT32 else np.float64
    step = max(1, _CHUNK // n)
    values = np.empty(count)
    for start in range(0, count, step):
        stop = min(start + step, count)
        chunk = np.empty((stop - start, n), dtype)
        for i in range(start, stop):
            chunk[i - start] = weights_of(i)
        values[start:stop] = statistic(chunk)
    return values


def _student(z: float, degrees: int) -> float:
    """The quantile of Student's t where the normal one is z, to the second order of Cornish and Fisher's expansion."""
    return z + (z**3 + z) / (4 * degrees) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)


def _bca(value: float, draws: Values, left_out: Values, z: float) -> tuple[float, float]:
    """The two percentiles of the sorted draws, moved for bias (z0) and for a changing variance (a)."""
    normal = NormalDist()
    below = (np.searchsorted(draws, value, "left") + np.searchsorted(draws, value, "right")) / 2  # a tie counts half
    z0 = normal.inv_cdf(min(max(below / draws.size, 1 / (draws.size + 1)), draws.size / (draws.size + 1)))
    influence = left_out.mean() - left_out if left_out.size else left_out
    spread = float((influence**2).sum())
    a = float((influence**3).sum()) / (6 * spread**1.5) if spread > 0 else 0.0

    def end(z_end: float) -> float:
        shifted = z0 + z_end
        # Where the correction leaves its range of validity, the outermost draw is the honest end.
        level = normal.cdf(z0 + shifted / (1 - a * shifted)) if a * shifted < 1 else float(shifted > 0)
        return float(np.quantile(draws, level))

    return end(-z), end(z)
