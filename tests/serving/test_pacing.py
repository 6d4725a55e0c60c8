"""The event loop's rest while all models are behind."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import httpx
import pytest

from support.serving import Gated, eventually, numpy_pipeline, wait_ready
from warmstart.serving import pacing
from warmstart.serving.pacing import Pace
from warmstart.serving.server import Server


def resting(monkeypatch: pytest.MonkeyPatch, rest: Callable[[float], None]) -> None:
    """Let `rest` be called in place of a rest."""
    monkeypatch.setattr(pacing, "time", SimpleNamespace(sleep=rest))


def happens(monkeypatch: pytest.MonkeyPatch, *turns: list[float], connecting: Collection[int] = ()) -> list[str]:
    """What happens where in each turn of the loop a request arrives at each of these backlogs, and begins a task; in
    some turns a client connects, too."""
    seen = list[str]()
    resting(monkeypatch, lambda seconds: seen.append(f"rest of {seconds}"))
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


def test_a_server_rests_after_the_requests_of_clients_that_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    rests = list[float]()
    resting(monkeypatch, rests.append)
    pipe = numpy_pipeline()
    gate = Gated(pipe.runtime)
    held = dataclasses.replace(pipe, runtime=gate)
    gate.opened.set()
    with (
        Server({"m": held}, port=0) as running,
        httpx.Client(base_url=running.url, timeout=20, trust_env=False) as client,
        httpx.Client(base_url=running.url, timeout=20, trust_env=False) as waiting,
        ThreadPoolExecutor(1) as threads,
    ):
        wait_ready(running.url)
        served = running.service.models.served["m"]
        for _ in range(5):
            assert client.get("/livez").status_code == 200
        assert rests == [] and served.backlog == 0.0
        gate.opened.clear()
        answer = threads.submit(waiting.post, "/v1/predict/m", json=["good " * 126] * 100)
        try:
            assert eventually(lambda: served.backlog > 0.5)
            for _ in range(5):
                assert client.get("/livez").status_code == 200
            stayed = len(rests)
            for _ in range(5):
                assert httpx.get(f"{running.url}/livez", trust_env=False).status_code == 200
            came = len(rests) - stayed
        finally:
            gate.opened.set()
        assert answer.result(20).status_code == 200
    assert stayed >= 4 and set(rests) == {0.015}
    assert came <= 1, "who connects anew may be one of many"
