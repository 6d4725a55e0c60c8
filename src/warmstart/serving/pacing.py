"""While all models are behind, requests are looked at together.

Each that wakes the event loop alone interrupts a model and runs in caches which that model has filled: it costs half as
much again as one of several. Beside what waits in the queues some milliseconds are little, so the loop lets them pass.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

# Seconds of work from which on a model is behind, at most; and for how long the loop rests then.
BEHIND, _REST = 0.5, 0.015


class Pace:
    """Of one event loop, which rests while more than `behind` seconds of work wait, or were drawn, at the model that
    has least: `backlog` tells."""

    def __init__(self, backlog: Callable[[], float], *, behind: float = BEHIND) -> None:
        self._backlog, self._behind = backlog, behind
        self._resting = self._accepting = False

    def connected(self) -> None:
        """A client did: others may wait, of whom uvloop lets in one a turn. There is no rest before they are in."""
        self._accepting = True

    def arrived(self) -> None:
        """A request came: rest once it and all that came with it were looked at, where there is time."""
        if not self._resting and self._backlog() > self._behind:
            self._resting = True
            loop = asyncio.get_running_loop()
            loop.call_soon(loop.call_soon, self._rest)  # after the tasks that are begun in this turn

    def _rest(self) -> None:
        if not self._accepting:
            time.sleep(_REST)
        self._resting = self._accepting = False
