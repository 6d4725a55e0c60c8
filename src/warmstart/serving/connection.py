"""What uvicorn's connections lack: a limit to how many are open, to how long a request's headers may take, and a way to
refuse what need not be parsed."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from warmstart.serving.gate import Gate, Scope
from warmstart.serving.limits import Limits
from warmstart.serving.models import Served
from warmstart.serving.pacing import Pace
from warmstart.serving.refusal import Refusal
from warmstart.serving.shedding import Shedder

# Where a request's ASGI scope holds its connection, in "state".
CONNECTION = "warmstart.connection"
# Bytes of an answer that its client reads in the time that a body may take, at least.
_LEAST_READ = 64 << 10
_CLOSES = {"Connection": "close"}


class _Reader(H11Protocol):
    """uvicorn's connection; what is no HTTP is told of by `malformed`."""

    malformed: Callable[[], None]

    def send_400_response(self, msg: str) -> None:
        self.malformed()


class GuardedConnection(asyncio.Protocol):
    """A connection of uvicorn's, closed where what it waits for does not come in time, byte by byte included.

    For a request's headers a time runs from when the connection opens, and from the first byte after each answer; for
    the rest of a body, from its headers. Bytes do not prolong it.
    """

    def __init__(
        self, limits: Limits, gate: Gate, shedder: Shedder, pace: Pace,
        config: Any, server_state: Any, app_state: Any, loop: Any,
    ) -> None:  # fmt: skip
        self._limits, self._gate, self._shedder, self._pace = limits, gate, shedder, pace
        self._open = server_state.connections
        state = {**app_state, CONNECTION: self}
        self._inner = _Reader(config=config, server_state=server_state, app_state=state, _loop=loop)
        self._inner.malformed = self._malformed
        self._loop = self._inner.loop
        self._transport: Any = None
        self._refused = False
        self._address = ""
        self._unread = 0
        self._first = b""  # what came first of the request that is being answered
        self._timer: asyncio.TimerHandle | None = None
        self._awaited: Any = None  # h11's state of the client that the timer is for
        self._reading: asyncio.TimerHandle | None = None  # while more waits for the client than it reads
        self._lost = False
        self._told: Callable[[], None] | None = None  # by whom it is asked to, when it is lost

    def connection_made(self, transport: Any) -> None:
        self._pace.connected()
        self._transport = transport
        self._address = (transport.get_extra_info("peername") or ("unknown",))[0]
        if len(self._open) >= self._limits.connections:
            self._refused = True
            what, fix = "the server has no more connections", "come again after as many seconds as Retry-After says"
            headers = {"Retry-After": "5", **_CLOSES}
            self._refuse(Refusal(503, "connections-too-many", what, fix=fix, headers=headers))
            return
        self._inner.connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        if self._unread:  # of the body of a request that was refused by its head
            data, self._unread = data[self._unread :], max(0, self._unread - len(data))
            if not data:
                return
        if self._between() and not self._inner.flow.write_paused:
            self._pace.arrived()
            if (answer := self._shedder.answer(self._address, data)) is not None:
                content, self._unread = answer
                self._transport.write(content)
                self._stop_waiting()
                self._inner.on_response_complete()  # it counts the request, and lets the connection live on
                return
            self._first = data
        self._inner.data_received(data)
        if behind := len(self._inner.conn.trailing_data[0]):  # of the next request: what came first is not its head
            self._first = b""
            if behind <= self._limits.header_bytes and self._inner.conn.their_state is h11.DONE:
                # Uvicorn paused here, and who does not read sees nobody leave.
                self._inner.flow.resume_reading()
        if self._inner.conn.their_state is not self._awaited:
            self._wait()

    def was_refused(self, scope: Scope, served: Served, client: str) -> None:
        """The request that came last found no room: those that are like it need not be parsed to be refused."""
        self._shedder.remember(self._address, self._first, scope, served, client)

    def _between(self) -> bool:
        """Is no request being read or answered."""
        connection = self._inner.conn
        return (
            connection.our_state is h11.IDLE and connection.their_state is h11.IDLE and not connection.trailing_data[0]
        )

    def eof_received(self) -> None:
        if not self._refused:
            self._inner.eof_received()

    @contextmanager
    def telling(self, lost: Callable[[], None]) -> Iterator[None]:
        """While it is entered, `lost` is called when the client leaves; at once, where it has left."""
        self._told = lost
        if self._lost:
            lost()
        elif not self._transport.is_closing():
            self._inner.flow.resume_reading()  # a large body paused it, and who does not read sees nobody leave
        try:
            yield
        finally:
            self._told = None

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        if self._told is not None:
            self._told()
        self._stop_waiting()
        self._stop_watching()
        if not self._refused:
            self._inner.connection_lost(exc)

    def pause_writing(self) -> None:
        self._inner.pause_writing()
        self._watch_reading()

    def resume_writing(self) -> None:
        self._inner.resume_writing()
        self._stop_watching()

    def _watch_reading(self, before: float = math.inf) -> None:
        """End the connection, closing already or not, once its client reads next to nothing in the time of a body."""
        left = self._transport.get_write_buffer_size()
        if before - left < _LEAST_READ:
            self._transport.abort()
        else:
            self._reading = self._loop.call_later(self._limits.body_seconds, self._watch_reading, left)

    def _stop_watching(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    def _wait(self) -> None:
        """For what the client is to send next; for nothing while it waits for us."""
        self._stop_waiting()
        state = self._inner.conn.their_state
        if state is h11.IDLE or state is h11.SEND_BODY:
            seconds = self._limits.header_seconds if state is h11.IDLE else self._limits.body_seconds
            self._awaited, self._timer = state, self._loop.call_later(seconds, self._too_slow)

    def _stop_waiting(self) -> None:
        self._awaited = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self) -> None:
        awaited = self._awaited
        self._stop_waiting()
        if self._transport.is_closing() or self._inner.conn.their_state is not awaited:
            return
        if awaited is h11.SEND_BODY and self._inner.conn.our_state is not h11.DONE:
            self._wait()  # who reads the body has a time of its own, and an answer
            return
        if awaited is h11.IDLE:
            what = f"the headers were not there within {self._limits.header_seconds:g} seconds"
            self._refuse(Refusal(408, "headers-too-slow", what, headers=_CLOSES))
        else:
            self._transport.close()

    def _malformed(self) -> None:
        if self._inner.cycle is not None:
            self._inner.cycle.disconnected = True  # who answers a request whose body breaks off learns that it is gone
        if self._inner.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self._refuse(Refusal(400, "request-malformed", "this is no request of HTTP/1.1", headers=_CLOSES))
        else:
            self._transport.close()

    def _refuse(self, refusal: Refusal) -> None:
        """Answer what no app will see, and close."""
        unread = {"method": "", "path": "", "warmstart.client": self._address}
        self._transport.write(self._gate.refused(refusal, unread, time.monotonic()))
        self._transport.close()
