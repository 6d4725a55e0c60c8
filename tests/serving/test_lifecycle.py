"""Ready is what has answered, and asking for it costs a model no more than one row at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest

from support.serving import Gated, eventually, numpy_pipeline, wait_ready, with_runtime
from warmstart.serving import models
from warmstart.serving.server import Server


@contextmanager
def gated() -> Iterator[tuple[Server, httpx.Client, Gated]]:
    """A server whose model waits for `opened`, which is set at the end."""
    pipe = numpy_pipeline()
    gate = Gated(pipe.runtime)
    with Server({"reviews": with_runtime(pipe, gate)}, port=0) as server:
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
