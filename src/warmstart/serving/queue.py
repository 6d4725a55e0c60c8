"""What waits for a model: the features of all clients' requests, drawn in turns so that nobody starves.

Fair queueing by tokens (start-time fair queueing: P. Goyal, H. Vin and H. Cheng, 1996): the next feature is that of the
client which was served least while it waited. A client's own requests take turns. Nothing is ever held back to fill a
batch: whoever draws gets what is there.
"""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from typing import Any

from warmstart.features import Array, Feature
from warmstart.rows import Row
from warmstart.serving.refusal import too_late

# Tokens after which a client's next request has its turn.
_TURN = 256
# Tokens of a client with nothing waiting that find room where others fill the queue: who fills it locks nobody out. All
# of these together are no more than the queue holds.
RESERVED = 1024


@dataclass(eq=False)
class Job:
    """One request's rows, what they are encoded to, and the place for its predictions. Times as `time.monotonic`
    counts, in seconds."""

    client: str
    rows: Sequence[Row]
    deadline: float
    features: Sequence[Feature] = ()  # of all rows, from when it is put
    brief: bool = False  # the first token of what is generated will do
    future: Future[list[Any]] = field(default_factory=Future)
    waiting_since: float = 0.0
    taken: int = 0  # features that were drawn
    outputs: dict[int, dict[str, Array]] = field(default_factory=dict)  # of each feature that was run

    @property
    def gone(self) -> bool:
        """Nobody waits for it any more: it failed, or its client left."""
        return self.future.done()

    def wanted(self) -> bool:
        return not (self.gone or self.brief)

    @property
    def complete(self) -> bool:
        return len(self.outputs) == len(self.features)

    def fail(self, error: BaseException) -> None:
        if not isinstance(error, Exception):  # as a tokenizer's panic is: it ends the request, and not the event loop
            error = RuntimeError(repr(error))
        try:
            self.future.set_exception(error)
        except InvalidStateError:  # its client left meanwhile
            return

    def waiting_tokens(self) -> int:
        return sum(feature.length for feature in self.features[self.taken :])


@dataclass(frozen=True)
class Piece:
    """One feature that was drawn."""

    job: Job
    index: int

    @property
    def feature(self) -> Feature:
        return self.job.features[self.index]


@dataclass(eq=False)
class _Client:
    """A client that waits: its jobs, the count at which it is served next, tokens left in its front job's turn."""

    jobs: deque[Job] = field(default_factory=deque)
    served: float = 0.0
    turn: int = _TURN
    tokens: int = 0  # that wait


class QueueFullError(Exception):
    """As many tokens wait as may."""


class QueueClosedError(Exception):
    """Nothing is taken any more."""


class FairQueue:
    """Jobs of many clients. Any thread may put; one draws. `told` hears of each job that is dropped unserved, and why:
    "departed", "expired", or "failed" where another of its features did."""

    def __init__(self, most_tokens: int, *, told: Callable[[str], None]) -> None:
        self.most_tokens = most_tokens
        self._told = told
        self._tokens = 0
        self._clients: dict[str, _Client] = {}
        self._heap: list[tuple[float, int, str]] = []
        self._order = itertools.count()
        self._clock = 0.0
        self._closed = False
        self._changed = threading.Condition()

    @property
    def tokens(self) -> int:
        """Tokens that wait."""
        return self._tokens

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def full(self) -> bool:
        return self._tokens >= self.most_tokens

    def ahead(self, client: str, tokens: int = 0) -> int:
        """Tokens that are run before a new job of this client, of so many tokens, is done: its client's, and as many
        as those and its own of each other client, at most all."""
        found = self._clients.get(client)
        own, others = (found.tokens, len(self._clients) - 1) if found is not None else (0, len(self._clients))
        return min(self._tokens, own + (own + tokens) * others)

    def put(self, job: Job, *, beyond: bool = False) -> None:
        """Raises QueueFullError where its tokens would be too many, unless `beyond` or a small job of a client with
        nothing waiting; QueueClosedError after `close`."""
        tokens = job.waiting_tokens()
        with self._changed:
            if self._closed:
                raise QueueClosedError
            client = self._clients.get(job.client)
            reserved = client is None and tokens <= RESERVED <= self.most_tokens
            if not beyond and self._tokens + tokens > self.most_tokens * (2 if reserved else 1):
                raise QueueFullError
            if client is None:
                client = self._clients[job.client] = _Client(served=self._clock)
                heapq.heappush(self._heap, (client.served, next(self._order), job.client))
            job.waiting_since = time.monotonic()
            client.jobs.append(job)
            client.tokens += tokens
            self._tokens += tokens
            self._changed.notify()
        job.future.add_done_callback(lambda _: self._forget(job))

    def take(self, budget: int, *, rows_at_most: Callable[[int], int] | None = None) -> list[Piece] | None:
        """Wait until something is there, then draw features of up to `budget` tokens, and as many as `rows_at_most`
        says of the longest of them; at least one.

        None once the queue is closed and empty. The list may be empty, where all that waited was dropped.
        """
        with self._changed:
            while not self._heap:
                if self._closed:
                    return None
                self._changed.wait()
            pieces = list[Piece]()
            dropped = list[tuple[Job, str]]()
            longest = 0
            while self._heap and budget > 0:
                piece = self._next(dropped)
                if piece is not None:
                    pieces.append(piece)
                    budget -= piece.feature.length
                    longest = max(longest, piece.feature.length)
                    if rows_at_most is not None and len(pieces) >= rows_at_most(longest):
                        break
        for job, why in dropped:
            self._told(why)
            if why == "expired":
                job.fail(too_late("the deadline passed while the request waited"))
        return pieces

    def close(self) -> None:
        """Take nothing more; what waits is still drawn."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _next(self, dropped: list[tuple[Job, str]]) -> Piece | None:
        """The next feature of the client that was served least; None where its job needs none any more."""
        served, _, name = heapq.heappop(self._heap)
        client = self._clients[name]
        self._clock = max(self._clock, served)
        job = client.jobs[0]
        piece = None
        if why := useless(job):
            self._tokens -= job.waiting_tokens()
            client.tokens -= job.waiting_tokens()
            job.taken = len(job.features)
            dropped.append((job, why))
        else:
            piece = Piece(job, job.taken)
            length = piece.feature.length
            job.taken += 1
            self._tokens -= length
            client.tokens -= length
            client.served += length
            client.turn -= length
        if job.taken == len(job.features):
            client.jobs.popleft()
            client.turn = _TURN
        elif client.turn <= 0:
            client.jobs.rotate(-1)
            client.turn = _TURN
        if client.jobs:
            heapq.heappush(self._heap, (client.served, next(self._order), name))
        else:
            del self._clients[name]
        return piece

    def _forget(self, job: Job) -> None:
        """A job that is done while part of it waits gives its tokens back at once; it is dropped when it comes up."""
        with self._changed:
            if job.taken < len(job.features):
                self._tokens -= job.waiting_tokens()
                self._clients[job.client].tokens -= job.waiting_tokens()
                job.features = job.features[: job.taken]
                # Its turn comes with nothing to draw: `_next` finds it useless.


def useless(job: Job) -> str:
    """Why a job need not be run: "departed", "expired", or "failed" where part of it did; "" where it must."""
    if job.gone:
        return "departed" if job.future.cancelled() else "failed"
    return "expired" if time.monotonic() > job.deadline else ""
