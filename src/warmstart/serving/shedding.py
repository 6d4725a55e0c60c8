"""Saying no at a fraction of the cost of saying yes.

A server that is asked for five times what it can do would spend much of its core on parsing what it refuses. So a
request whose head, byte for byte, was refused for want of room a moment ago, from the same address, is refused again
before it is parsed, while there still is no room. What its head was found to be (its host, its key, its route) it is
found to be again.
"""

from __future__ import annotations

import re
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from warmstart.serving.gate import Gate, Scope
from warmstart.serving.models import Served
from warmstart.serving.refusal import Refusal

_HEADS = 512  # that are remembered; each is smaller than the limit to headers
_END = re.compile(rb"\n\r?\n")  # of a head, as h11 finds it
_LOGGED = ("method", "path", "warmstart.route", "warmstart.client")
# A request with one of these is looked at: its answer would be its own.
_SPECIAL = frozenset({b"x-request-id", b"transfer-encoding", b"connection", b"expect", b"upgrade"})


@dataclass(frozen=True)
class _Refused:
    scope: Scope
    served: Served
    client: str
    body: int  # bytes


class Shedder:
    """Heads of requests that were refused by `queue-full`, and the answers to more like them."""

    def __init__(self, gate: Gate, *, draining: Callable[[], bool]) -> None:
        self._gate, self._draining = gate, draining
        self._heads: OrderedDict[tuple[str, bytes], _Refused] = OrderedDict()
        self.refused = 0

    def remember(self, address: str, content: bytes, scope: Scope, served: Served, client: str) -> None:
        """`content`: what came first of the request; it is of use if its whole head is in it, and nothing after it."""
        end = _head(content)
        lengths = [value for name, value in scope["headers"] if name == b"content-length"]
        special = any(name in _SPECIAL and value.lower() != b"keep-alive" for name, value in scope["headers"])
        special = special or scope["http_version"] != "1.1"
        if not end or special or len(lengths) != 1 or len(content) > end + int(lengths[0]):
            return
        told = {name: scope[name] for name in _LOGGED if name in scope}  # the rest would keep its connection alive
        self._heads[address, content[:end]] = _Refused(told, served, client, int(lengths[0]))
        while len(self._heads) > _HEADS:
            self._heads.popitem(last=False)

    def answer(self, address: str, content: bytes) -> tuple[bytes, int] | None:
        """The whole answer to a request that is refused so, and how much of its body is yet to come; None for any that
        must be looked at."""
        if not self._heads or self._draining():
            return None
        started = time.monotonic()
        end = _head(content)
        known = self._heads.get((address, content[:end]))
        if known is None or len(content) > end + known.body:
            return None
        self._heads.move_to_end((address, content[:end]))
        try:
            known.served.check_room(known.client)
        except Refusal as refusal:
            self.refused += 1
            return self._gate.refused(refusal, known.scope, started), end + known.body - len(content)
        return None


def _head(content: bytes) -> int:
    """Bytes of the head, with the empty line that ends it; 0 where it is not whole."""
    found = _END.search(content)
    return 0 if found is None else found.end()
