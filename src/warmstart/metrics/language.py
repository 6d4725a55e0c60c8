"""How well a model guesses tokens."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from warmstart.errors import UsageError
from warmstart.metrics.interval import RESAMPLES, Metric, Statistic, Values, Weights, bootstrap, require_rows


def perplexity(
    losses: ArrayLike, tokens: ArrayLike, *, seed: int = 0, resamples: int = RESAMPLES, confidence: float = 0.95
) -> Metric | None:
    """e to the mean loss a token, with a bootstrap interval over rows; None where no row has a token.

    `losses` (N,): each row's summed negative log likelihood, in nats; `tokens` (N,): how many tokens that is over. Rows
    count by their tokens. Raises DataError `no-rows`, UsageError `metric-shape`.

    >>> perplexity([0.0, 2 * np.log(4)], [2, 2]).value
    2.0
    """
    statistic = perplexity_statistic(losses, tokens)
    return bootstrap(statistic, len(np.asarray(losses)), seed=seed, resamples=resamples, confidence=confidence)


def perplexity_statistic(losses: ArrayLike, tokens: ArrayLike) -> Statistic:
    """`perplexity` as a function of weights (B, N)."""
    sums, counts = np.asarray(losses, np.float64), np.asarray(tokens, np.float64)
    if sums.ndim != 1 or sums.shape != counts.shape:
        raise UsageError(
            "metric-shape",
            "losses and tokens must both have shape (N,)",
            value=f"{sums.shape} and {counts.shape}",
            fix="give one sum and one count for each row",
        )
    require_rows(len(sums))

    def statistic(weights: Weights) -> Values:
        total = weights @ counts
        mean = np.divide(weights @ sums, total, out=np.full(len(weights), np.nan), where=total > 0)
        return np.exp(np.minimum(mean, 700.0))  # below infinity

    return statistic
