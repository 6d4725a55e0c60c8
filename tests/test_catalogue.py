"""Every number of the fault catalogue's part on training has a test, and each of these is bounded in time."""

from __future__ import annotations

import re

import pytest

from support.catalogue import SECONDS, TESTS, TRAINING, all_tests, numbers_of, seconds_for


def test_every_number_has_a_test_that_names_it() -> None:
    named = {number for _, name in all_tests() for number in numbers_of(name)}
    assert TRAINING - named == set()
    assert len(TRAINING) == 18


def test_a_head_of_numbers_is_read_and_nothing_else() -> None:
    assert numbers_of("test_f91_k85_a_kill") == ("f91", "k85") and numbers_of("test_r73_r") == ("r73",)
    assert numbers_of("test_a_kill_k85_here") == numbers_of("test_utf8_names") == numbers_of("test_k") == ()


@pytest.fixture
def here(request: pytest.FixtureRequest) -> float | None:
    return seconds_for(request.node)


def test_r73_has_the_usual_bound(here: float | None) -> None:
    assert here == SECONDS == 20


@pytest.mark.bounded(7)
def test_another_bound_is_said_by_a_mark(here: float | None) -> None:
    assert here == 7


def test_what_is_no_fault_has_none(here: float | None) -> None:
    assert here is None


def test_k83_is_left_to_pytests_own(here: float | None) -> None:
    assert here is None


def test_nightly_makes_at_least_a_hundred_random_kills_and_the_suite_five() -> None:
    from support.kills import COVER, RECIPES

    [nightly] = re.findall(
        r"WARMSTART_KILLS=(\d+) .*tests/verbs/test_kills\.py", (TESTS.parent / "Makefile").read_text()
    )
    assert int(nightly) * (len(COVER) + len(RECIPES)) >= 100
    assert len(COVER) >= 5  # each once, in `make test`
