"""The best spans over windows, against a search that tries every one."""

from __future__ import annotations

import math
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from warmstart.tasks.answer_spans import Spans, Window, best_spans, target_tokens, window_loss


def window(first: int, tokens: int, rng: np.random.Generator, *, lead: int = 2, gap: int = -1) -> Window:
    """A window over tokens `first` to `first + tokens` of a context whose k-th token stands at 10k to 10k + 7; `lead`
    tokens of a question before them and one special after; `gap` is a token of space."""
    spans = np.full((lead + tokens + 1, 2), -1)
    for i in range(tokens):
        if first + i != gap:
            spans[lead + i] = 10 * (first + i), 10 * (first + i) + 7
    size = len(spans)
    return Window(spans, rng.normal(size=size).astype(np.float32), rng.normal(size=size).astype(np.float32))


def every_span(windows: list[Window], longest: int) -> dict[tuple[int, int], float]:
    found: dict[tuple[int, int], float] = {}
    for each in windows:
        for i in range(len(each.spans)):
            for j in range(i, min(i + longest, len(each.spans))):
                if each.spans[i, 0] >= 0 and each.spans[j, 0] >= 0:
                    key = int(each.spans[i, 0]), int(each.spans[j, 1])
                    found[key] = max(found.get(key, -math.inf), float(each.start[i]) + float(each.end[j]))
    return found


@given(
    size=st.integers(1, 12),
    overlap=st.integers(0, 11),
    parts=st.integers(1, 4),
    longest=st.integers(1, 15),
    count=st.integers(1, 40),
    gap=st.integers(-1, 15),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=200, deadline=None)
def test_the_best_are_those_of_trying_all(
    size: int, overlap: int, parts: int, longest: int, count: int, gap: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    step = max(1, size - overlap)
    windows = [window(step * part, size, rng, gap=gap) for part in range(parts)]
    found = best_spans(windows, longest=longest, count=count)
    spans = every_span(windows, longest)
    none = min(float(each.start[0]) + float(each.end[0]) for each in windows)
    total = math.exp(none) + sum(map(math.exp, spans.values()))
    ranked = sorted(spans.items(), key=lambda item: (-item[1], item[0]))[:count]
    assert [tuple(span) for span in found.characters.tolist()] == [span for span, _ in ranked]
    np.testing.assert_allclose(found.scores, [math.exp(score) / total for _, score in ranked], rtol=1e-9)
    assert found.none == pytest.approx(math.exp(none) / total)
    if len(spans) <= count:
        assert found.scores.sum() + found.none == pytest.approx(1)


def test_equal_scores_go_to_the_earliest_and_shortest() -> None:
    flat = window(0, 4, np.random.default_rng(0))
    flat = Window(flat.spans, np.zeros(7, np.float32), np.zeros(7, np.float32))
    assert best_spans([flat], longest=2, count=3).characters.tolist() == [[0, 7], [0, 17], [10, 17]]


def test_a_context_without_tokens_has_no_answer() -> None:
    found = best_spans([window(0, 0, np.random.default_rng(0))], longest=3, count=2)
    assert (found.characters.shape, found.none, found.none_or_best) == ((0, 2), 1.0, 1.0)


def test_huge_and_lowest_logits_neither_overflow_nor_vanish() -> None:
    each = window(0, 5, np.random.default_rng(0))
    start, end = np.full(8, np.finfo(np.float32).min), np.full(8, 1e4, np.float32)
    start[3] = 1e4
    found = best_spans([Window(each.spans, start, end)], longest=1, count=1)
    assert found.characters.tolist() == [[10, 17]]
    assert found.scores.tolist() == [1.0]
    assert found.none == 0.0


def test_no_answer_beside_the_best_alone_is_the_logistic_function_of_their_difference() -> None:
    each = window(0, 9, np.random.default_rng(1))
    found = best_spans([each], longest=9, count=1)
    difference = float(each.start[0]) + float(each.end[0]) - max(every_span([each], 9).values())
    assert found.none_or_best == pytest.approx(1 / (1 + math.exp(-difference)))
    assert Spans(np.zeros((0, 2)), np.zeros(0), 0.0).none_or_best == 1.0


def test_a_long_context_takes_time_and_memory_of_its_windows_only() -> None:
    rng = np.random.default_rng(0)
    windows = [window(384 * part, 512, rng) for part in range(100)]  # 40,000 tokens, 1.5 million spans
    tracemalloc.start()
    started = time.process_time()
    best_spans(windows, longest=30, count=5)
    seconds, (_, peak) = time.process_time() - started, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert seconds < 10
    assert peak < 20_000_000


@pytest.mark.parametrize(
    ("start", "end", "tokens"),
    [(0, 7, (2, 2)), (10, 27, (3, 4)), (12, 15, (3, 3)), (8, 12, None), (30, 47, None), (-9, -2, None)],
)
def test_target_tokens(start: int, end: int, tokens: tuple[int, int] | None) -> None:
    """Four tokens from character 0 to 37; an answer may cut a token, and never leaves the window."""
    assert target_tokens(window(0, 4, np.random.default_rng(0)).spans, start, end) == tokens


def test_the_loss_is_the_mean_of_two_cross_entropies() -> None:
    each = window(0, 6, np.random.default_rng(3))
    expected = [
        -math.log(math.exp(logits[at]) / np.exp(logits.astype(float)).sum())
        for logits, at in ((each.start, 3), (each.end, 5))
    ]
    assert window_loss(each, 3, 5) == pytest.approx(sum(expected) / 2)
