"""The arithmetic of the charts."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from warmstart.report.charts import Line, interval_bar, line_chart, scatter, smooth, thin, ticks
from warmstart.report.markup import esc, fixed, number


@given(st.floats(-1e9, 1e9), st.floats(1e-6, 1e9))
def test_ticks_are_round_and_inside(low: float, span: float) -> None:
    assume(span > abs(low) * 1e-6)
    found = ticks(low, low + span)
    assert 1 <= len(found) <= 7
    assert all(low - span * 1e-6 <= tick <= low + span * 1.000001 for tick in found)


def test_ticks_of_known_ranges() -> None:
    assert ticks(0, 1) == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert ticks(0, 1e-4) == [0.0, 2e-05, 4e-05, 6e-05, 8e-05, 1e-04]
    assert ticks(3, 3) == [3]


@given(st.lists(st.floats(-100, 100), min_size=0, max_size=3000))
def test_thinning_keeps_the_extremes_and_the_order(values: list[float]) -> None:
    points = [(float(i), y) for i, y in enumerate(values)]
    kept = thin(points)
    assert len(kept) <= 510
    assert kept == sorted(kept)
    if values:
        assert max(y for _, y in kept) == max(values)
        assert min(y for _, y in kept) == min(values)


def test_smoothing_of_a_constant_is_the_constant() -> None:
    smoothed = smooth([(float(i), 3.0) for i in range(50)])
    assert all(y == pytest.approx(3.0) for _, y in smoothed)
    assert [x for x, _ in smoothed] == [float(i) for i in range(50)]
    assert smooth([(0.0, 1.0)] * 5) == []


@given(st.lists(st.tuples(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6)), min_size=1, max_size=40))
@example([(0.0, 0.0), (5e-324, 1e-310)])
def test_every_point_is_on_the_canvas(points: list[tuple[float, float]]) -> None:
    for svg in (line_chart("t", [Line("a", points, dots=True)]), scatter("t", points, x_name="x", y_name="y")):
        dots = re.findall(r'cx="([-\d.]+)" cy="([-\d.]+)"', svg)
        assert len(dots) == len(points)
        assert all(0 <= float(x) <= 440 and 0 <= float(y) <= 250 for x, y in dots)


def test_nothing_to_draw_is_nothing() -> None:
    assert line_chart("t", [Line("a", [])]) == ""
    assert scatter("t", [], x_name="x", y_name="y") == ""


def test_one_point_with_an_interval_has_a_whisker() -> None:
    svg = line_chart("t", [Line("a", [(1.0, 0.5)], "second", dots=True, band=[(1.0, 0.4, 0.6)])])
    assert re.search(r'class="line second" d="M[\d.]+ [\d.]+V', svg)
    assert 'class="band"' not in svg


def test_the_bar_stands_where_the_interval_is() -> None:
    svg = interval_bar(0.5, 0.25, 0.75, 0.0, 1.0)
    assert 'x="42.0" y="4" width="76.0"' in svg
    assert 'cx="80.0"' in svg


def test_numbers_for_people() -> None:
    said = [number(x) for x in (0, 0.00001234, 0.86121, 12500, 3.0, 1234567.0, -0.5)]
    assert said == ["0", "1.23e-05", "0.8612", "12,500", "3", "1.23e+06", "-0.5"]
    assert number(math.inf) == "inf"
    assert [fixed(x) for x in (0.5, 1.0, 0.99996, 250.0)] == ["0.500", "1.000", "0.999", "250"]


def test_long_text_is_cut_after_it_was_cleaned() -> None:
    assert esc("<" * 30, 10) == "&lt;" * 10 + "…"
    assert "hf_" not in esc("x" * 5 + " hf_" + "a" * 40, 20)
