"""How much of everything a server takes. What goes beyond is refused at once, and told so."""

from __future__ import annotations

from dataclasses import dataclass

from warmstart.engine import MAX_TOKENS


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Sizes in bytes, tokens or counts; times in seconds.

    ws.serve(pipe, limits=ws.Limits(queue_tokens=65_536, request_seconds=5))
    """

    batch_tokens: int = MAX_TOKENS  # padded tokens a batch may hold; never more than is quickest for the runtime
    queue_tokens: int = 131_072  # tokens that may wait for one model; beyond it a request is answered with 429
    queue_seconds: float = 2.0  # that a client's new request would wait for what waits; beyond it the same answer
    body_bytes: int = 2 << 20  # of a request
    rows: int = 1_024  # in a request
    header_bytes: int = 16 << 10  # of a request, all its headers together
    connections: int = 1_000  # open at once
    header_seconds: float = 10.0  # until a request's headers are there
    body_seconds: float = 20.0  # until its body is there
    request_seconds: float = 60.0  # until its answer is there, the wait in the queue included
    drain_seconds: float = 60.0  # for what was accepted, once the server was told to stop: all of `request_seconds`
