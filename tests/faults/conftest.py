"""Every catalogue test is bounded in time, also where it asserts no tighter bound of its own."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

SECONDS = 20.0  # one fault and its twin; a refusal itself takes at most 2 s, which the tests that time it assert
SECONDS_OF_LONG_TEXTS = 120.0  # T52 tokenizes several texts of up to 10 MB


@pytest.fixture(autouse=True)
def bounded(request: pytest.FixtureRequest) -> Iterator[None]:
    started = time.perf_counter()
    yield
    bound = SECONDS_OF_LONG_TEXTS if "t52" in request.node.name else SECONDS
    assert time.perf_counter() - started < bound
