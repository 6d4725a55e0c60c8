"""Served = the library: over HTTP, every task answers as its pipeline does (and so as the command line does)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import httpx
import pytest
from cases import CASES, Case, Loaded
from test_predicting import close, dicts, inputs_of

from support.serving import wait_ready
from warmstart.serving.server import Server


@pytest.fixture(scope="module")
def client(load: Callable[[Case], Loaded]) -> Iterator[httpx.Client]:
    """One server of all cases."""
    with Server({case.name: load(case).pipe for case in CASES}, port=0) as running:
        wait_ready(running.url)
        with httpx.Client(base_url=running.url, timeout=20, trust_env=False) as found:
            yield found


def test_http_is_the_library(loaded: Loaded, client: httpx.Client) -> None:
    rows = inputs_of(loaded)
    expected = dicts(loaded.pipe(rows))
    answer = client.post(f"/v1/predict/{loaded.case.name}", json=rows)
    assert answer.status_code == 200, answer.text
    assert len(expected) == len(rows) and close(answer.json(), expected)
    alone = client.post(f"/v1/predict/{loaded.case.name}", json=rows[1])
    assert alone.status_code == 200 and close([alone.json()], dicts(loaded.pipe([rows[1]])))
    cut = sum(prediction["truncated"] for prediction in expected)
    assert int(answer.headers.get("x-truncated-rows", "0")) == cut
