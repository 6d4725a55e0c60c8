"""Medians, ratios inside repeats, agreement, padding, tables."""

from __future__ import annotations

import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from warmstart.verbs.bench_figures import (
    agreement,
    aligned,
    disagreements,
    markdown,
    of,
    padding,
    ratio,
    removed,
    rows_per_second,
    undisturbed,
)
from warmstart.verbs.bench_race import Trial

SECONDS = st.floats(min_value=1e-3, max_value=1e3)


def trial(repeat: int, seconds: float, *, name: str = "a", workload: str = "w", cpu: float | None = None) -> Trial:
    return Trial(workload, name, None, repeat, 0, 100, seconds, seconds if cpu is None else cpu, None)


@given(st.lists(st.tuples(SECONDS, SECONDS), min_size=1, max_size=9), st.floats(min_value=0.1, max_value=10))
def test_a_ratio_is_the_median_of_the_ratios_of_each_repeat(pairs: list[tuple[float, float]], load: float) -> None:
    ours, theirs = ([trial(i, pair[k]) for i, pair in enumerate(pairs)] for k in (0, 1))
    found = ratio(ours, theirs)
    assert found is not None and found.repeats == len(pairs)
    each = [other / mine for mine, other in pairs]
    assert found.value == pytest.approx(statistics.median(each))
    assert (found.least, found.most) == pytest.approx((min(each), max(each)))
    back = ratio(theirs, ours)
    assert back is not None and (back.least, back.most) == pytest.approx((1 / found.most, 1 / found.least))
    # A load that slows a whole repeat, ours and theirs alike, moves no ratio.
    slowed = ratio([trial(0, pairs[0][0] * load), *ours[1:]], [trial(0, pairs[0][1] * load), *theirs[1:]])
    assert slowed is not None and slowed.value == pytest.approx(found.value)


def test_a_ratio_takes_only_the_repeats_that_both_ran() -> None:
    ours = [trial(0, 1.0), trial(1, 2.0), trial(2, 4.0)]
    found = ratio(ours, [trial(1, 6.0)])
    assert found is not None and (found.value, found.repeats) == (3.0, 1)
    assert ratio(ours, []) is None and ratio([], ours) is None and ratio(ours, [trial(7, 1.0)]) is None


def test_rows_a_second_is_a_median_that_one_slow_repeat_does_not_move() -> None:
    assert rows_per_second([trial(0, 1.0), trial(1, 1.25), trial(2, 50.0)]) == 80


def test_trials_are_found_by_workload_and_name_in_the_order_of_repeats() -> None:
    trials = [trial(1, 1.0), trial(0, 2.0), trial(0, 3.0, name="b"), trial(0, 4.0, workload="v")]
    assert [each.seconds for each in of(trials, "w", "a")] == [2.0, 1.0]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("POSITIVE", "POSITIVE", True),
        ("POSITIVE", "NEGATIVE", False),
        (["a", "b"], ("a", "b"), True),
        (["a"], ["b"], False),
        (["a"], [], False),
        ([], (), True),
        (0.5, 0.5004, True),
        (0.5, 0.51, False),
        (1e-9, 0.0, True),
        ([1.0, 0.0], [1.0, 0.001], True),
        ([1.0, 0.0], [0.0, 1.0], False),
        ([1.0, 0.0], [1.0], False),
        ([0.0, 0.0], [0.0, 0.0], True),
        ([0.0, 0.0], [0.0, 1.0], False),
        ({"a": 1}, {"a": 1}, True),
        ("a", ["a"], False),
    ],
)
def test_answers_agree_as_labels_sets_numbers_or_vectors(one: object, other: object, same: bool) -> None:
    assert agreement([one], [other]) == float(same)
    assert agreement([other], [one]) == float(same)
    assert disagreements([one, one], [one, other]) == ([] if same else [1])


@given(st.lists(st.booleans(), min_size=1))
def test_agreement_is_the_share_of_equal_rows(same: list[bool]) -> None:
    assert agreement(["x"] * len(same), ["x" if each else "y" for each in same]) == pytest.approx(np.mean(same))


def test_answers_of_different_length_are_no_share() -> None:
    with pytest.raises(ValueError, match="shorter"):
        agreement(["a", "b"], ["a"])


@given(st.integers(1, 10**6), st.integers(0, 10**6))
def test_padding_is_what_is_computed_beyond_the_tokens(tokens: int, extra: int) -> None:
    share = padding(tokens + extra, tokens)
    assert share is not None and share * (tokens + extra) == pytest.approx(extra)
    assert removed(tokens, tokens + extra) == pytest.approx(share)


def test_what_is_not_known_stays_unknown() -> None:
    assert padding(None, 5) is None and padding(0, 5) is None and padding(5, None) is None
    assert removed(None, 5) is None and removed(5, None) is None and removed(5, 0) is None
    assert padding(3, 5) == 0


def test_a_busy_machine_is_seen_in_the_processor_time() -> None:
    assert undisturbed([trial(0, 2.0, cpu=1.0), trial(1, 2.0, cpu=2.0)]) == 0.75
    assert undisturbed([trial(0, 1.0, cpu=1.01)]) == 1 and undisturbed([]) == 1


@given(st.lists(st.lists(st.text(alphabet="ab |1", max_size=6), min_size=3, max_size=3), max_size=4))
def test_tables_keep_every_cell_in_its_column(lines: list[list[str]]) -> None:
    written = markdown(["x", "y", "z"], lines)
    assert len(written) == 2 + len(lines)
    assert all(line.replace("\\|", "").count("|") == 4 for line in written)
    plain = aligned(["x", "y", "z"], lines)
    assert len(plain) == 1 + len(lines)
    width = max(len(line[0]) for line in [["x"], *lines])
    assert all(text[:width].rstrip() == line[0].rstrip() for text, line in zip(plain[1:], lines, strict=True))
