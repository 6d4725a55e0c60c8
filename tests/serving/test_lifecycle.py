"""Ready is what has answered, and asking for it costs a model no more than one row at a time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import pytest

from support.serving import Gated, eventually, numpy_pipeline, wait_ready, with_runtime
from warmstart.serving import lifecycle, models
from warmstart.serving.limits import Limits
from warmstart.serving.server import Server


@contextmanager
def gated(limits: Limits | None = None) -> Iterator[tuple[Server, httpx.Client, Gated]]:
    """A server whose model waits for `opened`, which is set at the end."""
    pipe = numpy_pipeline()
    gate = Gated(pipe.runtime)
    with Server({"reviews": with_runtime(pipe, gate)}, port=0, limits=limits) as server:
        try:
            with httpx.Client(base_url=server.url, timeout=10, trust_env=False) as client:
                yield server, client, gate
        finally:
            gate.opened.set()


def code(answer: httpx.Response) -> str:
    return str(answer.json()["error"]["code"])


def test_a_model_that_has_never_answered_is_not_ready_however_long_it_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "_PROBE_SECONDS", 0.2)
    with gated() as (server, client, gate):
        assert eventually(lambda: code(client.get("/readyz")) != "warming")
        assert server.service.models.served["reviews"].works  # at its first row, still
        answer = client.get("/readyz")
        assert (answer.status_code, code(answer)) == (503, "probe-failed")
        gate.opened.set()
        wait_ready(server.url)


def test_however_many_ask_whether_it_is_ready_one_row_proves_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifecycle, "_HOLDS", 0.0)
    with gated() as (server, _, gate), ThreadPoolExecutor(8) as pool:
        gate.opened.set()
        wait_ready(server.url)
        gate.opened.clear()
        gate.entered.clear()
        before = len(gate.batches)
        asked = [pool.submit(httpx.get, f"{server.url}/readyz", trust_env=False, timeout=10) for _ in range(8)]
        assert gate.entered.wait(5)
        held = server._uvicorn.server_state.tasks
        assert eventually(lambda: len(held) == 8)
        time.sleep(0.1)
        gate.opened.set()
        assert [one.result().status_code for one in asked] == [200] * 8
        assert sum(gate.batches[before:]) == 1


def test_a_dead_workers_probes_say_when_to_come_again() -> None:
    with gated() as (server, client, gate):
        gate.opened.set()
        wait_ready(server.url)
        server.service.models.served["reviews"].close()  # its worker ends
        assert eventually(lambda: client.get("/livez").status_code == 503)
        answer = client.get("/livez")
        assert (code(answer), answer.headers["retry-after"]) == ("worker-dead", "5")


def test_what_is_accepted_has_its_time_after_the_server_is_told_to_stop_and_that_time_but_once() -> None:
    assert Limits().drain_seconds >= Limits().request_seconds
    with gated(Limits(drain_seconds=1.2)) as (server, client, gate), ThreadPoolExecutor(1) as pool:
        gate.opened.set()
        wait_ready(server.url)
        gate.opened.clear()
        gate.entered.clear()
        asked = pool.submit(client.post, "/v1/predict/reviews", json="good")
        assert gate.entered.wait(5)
        given, stop = list[float](), server.service.models.stop
        server.service.models.stop = lambda seconds: given.append(seconds) or stop(0)  # type: ignore[method-assign,func-returns-value]
        server.stop()
        assert code(asked.result()) == "stopping"
        assert server.join(10)
        assert given == [1.0]  # a last moment
