"""Perplexity is e to the mean loss a token."""

from __future__ import annotations

import numpy as np
import pytest

from warmstart.errors import DataError, UsageError
from warmstart.metrics import perplexity
from warmstart.randomness import generator


def test_it_is_that_of_all_tokens_in_a_row() -> None:
    rng = generator(0, "test")
    rows = [rng.exponential(2.0, size=n) for n in (1, 7, 3, 40, 0, 12)]
    found = perplexity([row.sum() for row in rows], [len(row) for row in rows])
    assert found is not None
    assert found.value == pytest.approx(np.exp(np.concatenate(rows).mean()))
    assert found.lo < found.value < found.hi


def test_rows_count_by_their_tokens() -> None:
    long, short = perplexity([0.0, np.log(4)], [99, 1]), perplexity([0.0, np.log(4)], [1, 1])
    assert long is not None and short is not None
    assert long.value == pytest.approx(4**0.01)
    assert short.value == pytest.approx(2)


def test_the_interval_covers_what_was_sampled_from() -> None:
    covered = 0
    for seed in range(60):
        losses = generator(seed, "coverage").exponential(1.0, size=(80, 5)).sum(axis=1)
        found = perplexity(losses, np.full(80, 5), resamples=300)
        assert found is not None
        covered += found.lo <= np.e <= found.hi
    assert covered >= 50  # of 60, at 95 %


def test_what_it_cannot_measure() -> None:
    assert perplexity([0.0, 0.0], [0, 0]) is None
    huge = perplexity([1e6], [1])
    assert huge is not None and np.isfinite(huge.hi)
    with pytest.raises(DataError) as none:
        perplexity([], [])
    assert none.value.code == "no-rows"
    with pytest.raises(UsageError) as shapes:
        perplexity([1.0, 2.0], [1])
    assert shapes.value.code == "metric-shape"
