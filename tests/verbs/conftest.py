"""What several tests of verbs share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from warmstart.verbs.attempts import Attempter, opened


@pytest.fixture(scope="session")
def attempter() -> Iterator[Attempter]:
    """Makes attempts at runs in processes that can be killed; importing everything once takes some seconds."""
    with opened() as made:
        yield made
