"""The event loop's rest while all models are behind."""

from __future__ import annotations

import asyncio
from collections.abc import Collection

import pytest

from warmstart.serving import pacing
from warmstart.serving.pacing import Pace


def happens(monkeypatch: pytest.MonkeyPatch, *turns: list[float], connecting: Collection[int] = ()) -> list[str]:
    """What happens where in each turn of the loop a request arrives at each of these backlogs, and begins a task; in
    some turns a client connects, too."""
    seen = list[str]()
    monkeypatch.setattr(pacing.time, "sleep", lambda seconds: seen.append(f"rest of {seconds}"))
    backlog = 0.0

    async def handle() -> None:
        seen.append("handled")

    async def load() -> None:
        nonlocal backlog
        pace = Pace(lambda: backlog)
        for number, turn in enumerate(turns):
            if number in connecting:
                pace.connected()
            tasks = []
            for seconds in turn:
                backlog = seconds
                pace.arrived()
                tasks.append(asyncio.create_task(handle()))
            await asyncio.gather(*tasks)
            await asyncio.sleep(0)

    asyncio.run(load())
    return seen


def test_what_came_together_is_handled_before_one_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    assert happens(monkeypatch, [0.6, 0.6, 0.6]) == ["handled"] * 3 + ["rest of 0.015"]


def test_whose_models_keep_up_never_rests(monkeypatch: pytest.MonkeyPatch) -> None:
    assert happens(monkeypatch, [0.0, 0.4], [0.5]) == ["handled"] * 3


def test_there_is_no_rest_while_clients_connect(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop lets in one of them a turn: hundreds who come at once would wait for as many rests."""
    assert happens(monkeypatch, [0.6, 0.6], [0.6], connecting={0}) == ["handled"] * 3 + ["rest of 0.015"]


def test_what_comes_after_a_rest_is_followed_by_another(monkeypatch: pytest.MonkeyPatch) -> None:
    assert happens(monkeypatch, [0.6], [0.6, 0.6], [0.4]) == [
        "handled", "rest of 0.015", "handled", "handled", "rest of 0.015", "handled",
    ]  # fmt: skip
