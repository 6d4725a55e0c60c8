"""Whether a server lives and may be sent requests: "starting" → "ready" → "draining"."""

from __future__ import annotations

import asyncio
import logging
import time

from warmstart.serving.endpoint import Answer, Call
from warmstart.serving.models import Models
from warmstart.serving.refusal import Refusal, unavailable

log = logging.getLogger("warmstart")

# Seconds for which an answer of /readyz holds, so that asking often costs nothing.
_HOLDS = 1.0
_NEVER = float("-inf")


class Lifecycle:
    """The state of one server. Ready is first said after a forward through every model's real queue (decision 26)."""

    def __init__(self, models: Models) -> None:
        self._models = models
        self._warming = True
        self._draining_since: float | None = None
        self._proven = _NEVER  # when every model last answered
        self._proving: asyncio.Task[Refusal | None] | None = None

    async def warm(self) -> None:
        """The first row of each model, the slowest. Where it fails, /readyz tries again whenever it is asked."""
        try:
            await self._prove_all()
        finally:
            self._warming = False

    def drain(self) -> None:
        """Take no new request."""
        if self._draining_since is None:
            self._draining_since = time.monotonic()

    @property
    def draining(self) -> bool:
        return self._draining_since is not None

    @property
    def drained_for(self) -> float:
        """Seconds since it was told to drain."""
        return 0.0 if self._draining_since is None else time.monotonic() - self._draining_since

    async def livez(self, call: Call) -> Answer:
        """The process answers; a dead worker is a reason to restart it."""
        self._check_alive()
        return Answer(lambda: {"status": "alive"})

    async def readyz(self, call: Call) -> Answer:
        """Every model answered a row at most a second ago, or has been answering requests that take longer."""
        if self.draining:
            raise unavailable("the server is stopping", code="stopping")
        self._check_alive()
        if self._warming:
            raise unavailable("the models are warming up", code="warming")
        if time.monotonic() - self._proven > _HOLDS:
            if self._proving is None or self._proving.done():
                self._proving = asyncio.create_task(self._prove_all())
            if failed := await asyncio.shield(self._proving):  # however many ask, there is one row
                raise failed
        return Answer(lambda: {"status": "ready"})

    async def _prove_all(self) -> Refusal | None:
        """What failed, if anything did; it was logged."""
        try:
            for name in self._models.served:
                await self._prove(name)
        except Refusal as refusal:
            return refusal
        self._proven = time.monotonic()
        return None

    async def _prove(self, name: str) -> None:
        served = self._models.served[name]
        try:
            await served.probe()
        except Exception as error:
            late = isinstance(error, Refusal) and error.code == "deadline-exceeded"
            if late and served.works and self._proven > _NEVER:  # a long generation: no reason to ask elsewhere
                return
            log.error("%s does not answer: %r", name, error)
            raise unavailable(f"{name} does not answer", code="probe-failed") from error

    def _check_alive(self) -> None:
        dead = [served.name for served in self._models.served.values() if not served.alive]
        if dead:
            raise unavailable(f"the worker of {dead[0]} is dead", code="worker-dead")
