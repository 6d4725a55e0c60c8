"""Every random choice is a function of its place; these values must never change, or old runs cannot be resumed."""

from __future__ import annotations

import doctest

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from warmstart import randomness
from warmstart.randomness import derive, generator, permutation

paths = st.lists(st.one_of(st.integers(-(2**70), 2**70), st.text(max_size=5)), max_size=4).map(tuple)


def test_docstrings() -> None:
    assert doctest.testmod(randomness).failed == 0


def test_values_are_pinned() -> None:
    assert derive(0, "order", 1) == 5809311166825673185
    assert derive(7) == 8333924190356522945
    assert generator(0, "vary", 3, 2).integers(0, 1000, 5).tolist() == [218, 628, 722, 42, 273]
    assert permutation(8, 0, "order", 0).tolist() == [6, 1, 5, 3, 2, 7, 0, 4]


@given(st.integers(-(2**70), 2**70), paths)
def test_seeds_fit_what_generators_take(seed: int, path: tuple[int | str, ...]) -> None:
    value = derive(seed, *path)
    assert 0 <= value < 2**63
    assert derive(seed, *path) == value


def test_places_have_their_own_seeds() -> None:
    places = [(), ("order",), ("order", 0), ("order", 1), ("order", "1"), ("vary", 1), ("order", 1, 1), (1, "order")]
    places += [("epoch", n) for n in range(5000)]
    seeds = {derive(seed, *place) for seed in (0, 1) for place in places}
    assert len(seeds) == 2 * len(places)


def test_a_numpy_integer_is_the_integer() -> None:
    """Positions come out of arrays now and then; the type of a number is not a place."""
    assert derive(0, "vary", np.int64(3), np.int32(1)) == derive(0, "vary", 3, 1)


def test_a_generator_is_nobody_elses() -> None:
    state = np.random.get_state()[1].copy()  # type: ignore[index]
    one, other = generator(0, "a"), generator(0, "a")
    one.random(100)
    assert other.random() == generator(0, "a").random()
    assert (np.random.get_state()[1] == state).all()  # type: ignore[index]


@given(st.integers(0, 200), st.integers(0, 5))
def test_a_permutation_is_one(n: int, seed: int) -> None:
    assert sorted(permutation(n, seed, "order").tolist()) == list(range(n))
