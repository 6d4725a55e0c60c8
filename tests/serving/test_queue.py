"""The queue: fair between clients, bounded in tokens, and rid of what nobody waits for."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from warmstart.features import Feature
from warmstart.rows import Row
from warmstart.serving.queue import FairQueue, Job, QueueClosedError, QueueFullError
from warmstart.serving.refusal import Refusal


def job(client: str, *lengths: int, seconds: float = 60.0) -> Job:
    features = [Feature(row, 0, {"input_ids": np.zeros(length)}, length=length) for row, length in enumerate(lengths)]
    return Job(client, [Row({})] * len(lengths), time.monotonic() + seconds, features)


def queue(most_tokens: int = 10_000) -> tuple[FairQueue, list[str]]:
    told: list[str] = []
    return FairQueue(most_tokens, told=told.append), told


def drawn(waiting: FairQueue, budget: int) -> list[tuple[str, int]]:
    return [(piece.job.client, piece.index) for piece in waiting.take(budget) or []]


def test_what_is_there_is_drawn_at_once_up_to_the_budget() -> None:
    waiting, _ = queue()
    waiting.put(job("a", 10, 10, 10))
    assert drawn(waiting, 20) == [("a", 0), ("a", 1)]
    assert waiting.tokens == 10
    assert drawn(waiting, 1) == [("a", 2)]  # one goes, however long
    assert waiting.tokens == 0


def test_no_more_is_drawn_than_may_share_a_batch_with_the_longest() -> None:
    waiting, _ = queue()
    waiting.put(job("a", *[10] * 6, 30, *[10] * 3))
    sizes = [len(waiting.take(1_000, rows_at_most=lambda longest: 40 // longest) or []) for _ in range(3)]
    assert sizes == [4, 3, 3]


def test_a_large_client_does_not_starve_a_small_one() -> None:
    waiting, _ = queue()
    waiting.put(job("large", *[50] * 100))
    assert len(drawn(waiting, 500)) == 10
    waiting.put(job("small", 50, 50))
    assert [piece for piece in drawn(waiting, 200) if piece[0] == "small"] == [("small", 0), ("small", 1)]


def test_clients_get_equal_tokens_whatever_their_rows_are() -> None:
    waiting, _ = queue(100_000)
    waiting.put(job("long", *[400] * 50))
    waiting.put(job("short", *[10] * 2000))
    taken = [piece for _ in range(20) for piece in waiting.take(400) or []]
    shares = {name: sum(p.feature.length for p in taken if p.job.client == name) for name in ("long", "short")}
    assert abs(shares["long"] - shares["short"]) <= 400


def test_requests_of_one_client_take_turns() -> None:
    waiting, _ = queue()
    first, second = job("a", *[100] * 50), job("a", 100)
    waiting.put(first)
    waiting.put(second)
    assert any(piece.job is second for piece in waiting.take(500) or [])


def test_a_client_that_was_away_has_no_credit() -> None:
    waiting, _ = queue(100_000)
    waiting.put(job("busy", *[10] * 1000))
    for _ in range(50):
        waiting.take(100)
    waiting.put(job("late", *[10] * 1000))
    taken = drawn(waiting, 400)
    assert 15 <= sum(client == "busy" for client, _ in taken) <= 25


def test_beyond_its_tokens_it_takes_nothing_but_what_may_go_beyond() -> None:
    waiting, _ = queue(100)
    waiting.put(job("a", 60))
    with pytest.raises(QueueFullError):
        waiting.put(job("b", 41))
    assert waiting.tokens == 60 and not waiting.full
    waiting.put(job("b", 40))
    assert waiting.full
    waiting.put(job("probe", 3), beyond=True)
    assert waiting.tokens == 103


def test_whoever_fills_the_queue_locks_no_other_client_out() -> None:
    waiting, _ = queue(5_000)
    waiting.put(job("large", 5_000))
    with pytest.raises(QueueFullError):
        waiting.put(job("large", 1))
    with pytest.raises(QueueFullError):
        waiting.put(job("small", 1_025))
    waiting.put(job("small", 1_024))
    with pytest.raises(QueueFullError):
        waiting.put(job("small", 1))


def test_many_clients_together_find_no_more_room_than_it_has_once_more() -> None:
    waiting, _ = queue(5_000)
    for number in range(10):
        waiting.put(job(str(number), 1_000))
    with pytest.raises(QueueFullError):
        waiting.put(job("another", 1_000))
    waiting.put(job("probe", 3), beyond=True)
    assert waiting.tokens == 10_003


def test_what_is_ahead_of_a_job_grows_with_its_own_tokens_and_the_number_of_clients() -> None:
    waiting, _ = queue()
    for client in "abc":
        waiting.put(job(client, *[10] * 10))
    assert [waiting.ahead("new", tokens) for tokens in (0, 10, 50, 1_000)] == [0, 30, 150, 300]
    assert [waiting.ahead("a", tokens) for tokens in (0, 10)] == [300, 300]
    small, _ = queue()
    small.put(job("a", 10))
    small.put(job("b", *[10] * 10))
    assert [small.ahead("a", tokens) for tokens in (0, 10, 1_000)] == [20, 30, 110]


def test_what_is_ahead_of_a_client_is_its_own_and_as_much_of_each_other() -> None:
    waiting, _ = queue()
    assert waiting.ahead("a") == 0
    large, small = job("large", *[10] * 100), job("small", 30)
    waiting.put(large)
    waiting.put(small)
    assert (waiting.ahead("large"), waiting.ahead("small"), waiting.ahead("new")) == (1_030, 60, 0)
    small.future.cancel()
    large.future.cancel()
    assert waiting.ahead("large") == waiting.ahead("small") == 0


def test_a_departed_job_gives_its_tokens_back_at_once_and_is_not_drawn() -> None:
    waiting, told = queue()
    gone, there = job("a", 10, 20, 30), job("b", 5)
    waiting.put(gone)
    waiting.put(there)
    assert waiting.tokens == 65
    gone.future.cancel()
    assert waiting.tokens == 5
    assert drawn(waiting, 1000) == [("b", 0)]
    assert told == ["departed"] and waiting.tokens == 0


def test_h69_a_job_past_its_deadline_fails_and_is_not_drawn() -> None:
    waiting, told = queue()
    late = job("a", 10, seconds=-1)
    waiting.put(late)
    waiting.put(job("b", 7))
    assert drawn(waiting, 1000) == [("b", 0)]
    error = late.future.exception(timeout=1)
    assert isinstance(error, Refusal) and (error.status, error.code) == (504, "deadline-exceeded")
    assert told == ["expired"] and waiting.tokens == 0


def test_closed_it_takes_nothing_gives_what_it_has_and_then_none() -> None:
    waiting, _ = queue()
    waiting.put(job("a", 10))
    waiting.close()
    with pytest.raises(QueueClosedError):
        waiting.put(job("a", 10))
    assert drawn(waiting, 100) == [("a", 0)]
    assert waiting.take(100) is None


def test_whoever_waits_is_woken() -> None:
    waiting, _ = queue()
    found: list[object] = []
    thread = threading.Thread(target=lambda: found.append(waiting.take(100)))
    thread.start()
    waiting.put(job("a", 10))
    thread.join(5)
    assert not thread.is_alive() and len(found) == 1


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.lists(st.integers(1, 60), min_size=1, max_size=8), st.booleans()),
        min_size=1,
        max_size=12,
    ),
    st.integers(1, 200),
)
def test_every_feature_of_who_stays_is_drawn_once_in_order(
    jobs: list[tuple[str, list[int], bool]], budget: int
) -> None:
    waiting, _ = queue(1 << 30)
    made = [(job(client, *lengths), leaves) for client, lengths, leaves in jobs]
    for one, _leaves in made:
        waiting.put(one)
    for one, leaves in made:
        if leaves:
            one.future.cancel()
    waiting.close()
    found: dict[int, list[int]] = {}
    while (pieces := waiting.take(budget)) is not None:
        assert sum(piece.feature.length for piece in pieces[:-1]) < budget
        for piece in pieces:
            found.setdefault(id(piece.job), []).append(piece.index)
    for one, leaves in made:
        assert found.get(id(one), []) == ([] if leaves else list(range(len(one.features))))
    assert waiting.tokens == 0
