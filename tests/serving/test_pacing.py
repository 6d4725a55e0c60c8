"""The event loop's rest while all models are behind."""

from __future__ import annotations

import asyncio

import pytest

from warmstart.serving import pacing
from warmstart.serving.pacing import Pace


def rests(monkeypatch: pytest.MonkeyPatch, *backlogs: float) -> list[str]:
    """What happens in a turn of the loop in which a request arrives at each of `backlogs`."""
    seen = list[str]()
    monkeypatch.setattr(pacing.time, "sleep", lambda seconds: seen.append(f"rest of {seconds}"))
    left = iter(backlogs)

    async def turn() -> None:
        pace = Pace(lambda: next(left))
        for _ in backlogs:
            pace.arrived()
            seen.append("arrived")
        await asyncio.sleep(0)

    asyncio.run(turn())
    return seen


def test_what_came_together_is_looked_at_before_one_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    assert rests(monkeypatch, 0.6, 0.6, 0.6) == ["arrived"] * 3 + ["rest of 0.015"]


def test_whose_models_keep_up_never_rests(monkeypatch: pytest.MonkeyPatch) -> None:
    assert rests(monkeypatch, 0.0, 0.4) == ["arrived"] * 2


def test_after_a_rest_the_next_to_arrive_is_followed_by_another(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = list[float]()
    monkeypatch.setattr(pacing.time, "sleep", seen.append)

    async def turns() -> None:
        pace = Pace(lambda: 1.0)
        for _ in range(3):
            pace.arrived()
            await asyncio.sleep(0)

    asyncio.run(turns())
    assert len(seen) == 3
