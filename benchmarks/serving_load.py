"""Load that does not wait for the server: requests are sent at their time, whether or not others were answered.

Latency is counted from the time at which a request was to be sent, so that a server that stalls is charged for all who
would have come meanwhile (no coordinated omission). The client is a bare asyncio protocol: it must cost less than the
server.
"""

from __future__ import annotations

import asyncio
import random
import re
import statistics
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

# Open at once; a request beyond waits for one to come free, and the wait counts.
CONNECTIONS = 900
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CLOSES = re.compile(rb"\r\nconnection: *close", re.IGNORECASE)
_RETRIES = re.compile(rb"\r\nretry-after: *\d+", re.IGNORECASE)
LOST = "lost"  # written to the server, and the connection ended without an answer


@dataclass(frozen=True)
class Address:
    port: int
    path: str


def request(address: Address, body: bytes) -> bytes:
    """One POST of JSON as bytes."""
    head = f"POST {address.path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: "
    return head.encode() + str(len(body)).encode() + b"\r\n\r\n" + body


class Connection(asyncio.Protocol):
    """One request at a time; `ask` gives (status, whether Retry-After came), or None where the answer never came."""

    def __init__(self) -> None:
        self._transport: Any = None
        self._buffer = b""
        self._answer: asyncio.Future[tuple[int, bool] | None] | None = None
        self.open = False

    def connection_made(self, transport: Any) -> None:
        self._transport, self.open = transport, True

    async def ask(self, content: bytes) -> tuple[int, bool] | None:
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(content)
        return await self._answer

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self._buffer[: end + 2]
        length = _LENGTH.search(head)
        whole = end + 4 + (int(length[1]) if length else 0)
        if len(self._buffer) < whole:
            return
        self._buffer = self._buffer[whole:]
        if _CLOSES.search(head):
            self.close()
        self._settle((int(head[9:12]), _RETRIES.search(head) is not None))

    def connection_lost(self, exc: Exception | None) -> None:
        self.open = False
        self._settle(None)

    def close(self) -> None:
        self.open = False
        self._transport.close()

    def _settle(self, answer: tuple[int, bool] | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(answer)


@dataclass
class Client:
    """A pool of connections to one server."""

    address: Address
    idle: deque[Connection] = field(default_factory=deque)
    places: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(CONNECTIONS))

    async def ask(self, content: bytes) -> tuple[str, bool]:
        """The status as text, "lost", or "refused" where there was no connection to write to; and Retry-After."""
        async with self.places:
            connection = None
            while self.idle and (connection is None or not connection.open):
                connection = self.idle.pop()
            if connection is None or not connection.open:
                try:
                    loop = asyncio.get_running_loop()
                    _, connection = await loop.create_connection(Connection, "127.0.0.1", self.address.port)
                except OSError:
                    return "refused", False
            answer = await connection.ask(content)
            if connection.open:
                self.idle.append(connection)
            return (LOST, False) if answer is None else (str(answer[0]), answer[1])

    async def lone(self, contents: Sequence[bytes]) -> float:
        """The median latency in seconds of requests one after another."""
        latencies = []
        for content in contents:
            started = time.perf_counter()
            await self.ask(content)
            latencies.append(time.perf_counter() - started)
        return statistics.median(latencies)

    def close(self) -> None:
        while self.idle:
            self.idle.pop().close()


async def capacity(address: Address, contents: Sequence[bytes], *, seconds: float, clients: int = 32) -> float:
    """Requests a second where `clients` each send their next request once they have an answer: the scale of rates."""
    client = Client(address)
    until = time.perf_counter() + seconds
    answered = 0

    async def one(number: int) -> None:
        nonlocal answered
        while time.perf_counter() < until:
            outcome, _ = await client.ask(contents[(number := number + clients) % len(contents)])
            answered += outcome == "200"

    started = time.perf_counter()
    await asyncio.gather(*(one(number) for number in range(clients)))
    client.close()
    return answered / (time.perf_counter() - started)


async def at_rate(
    address: Address, contents: Sequence[bytes], *, rate: float, seconds: float, seed: int, recovery: bool = False
) -> dict[str, Any]:
    """One record: `rate` requests a second at random (Poisson) moments for `seconds`; latencies in milliseconds."""
    rng = random.Random(seed)
    client = Client(address)
    idle = await client.lone(contents[:20])
    seen: list[tuple[str, bool, float, float]] = []  # outcome, Retry-After, when it was due, when it was answered
    lags: list[float] = []

    async def ask(due: float, content: bytes) -> None:
        lags.append(time.perf_counter() - due)
        outcome, retry = await client.ask(content)
        seen.append((outcome, retry, due, time.perf_counter()))

    due = started = time.perf_counter() + 0.05
    asking: set[asyncio.Task[None]] = set()
    while (due := due + rng.expovariate(rate)) < started + seconds:
        if (wait := due - time.perf_counter()) > 0:
            await asyncio.sleep(wait)
        task = asyncio.create_task(ask(due, rng.choice(contents)))
        asking.add(task)
        task.add_done_callback(asking.discard)
    ended = time.perf_counter()
    record: dict[str, Any] = {}
    if recovery:
        record["idle_again_seconds"] = await _until_idle(client.address, contents, idle, ended)
    if asking:
        await asyncio.gather(*asking)
    client.close()
    good = sorted(1000 * (answered - due) for outcome, _, due, answered in seen if outcome == "200")
    within = sum(outcome == "200" and answered <= ended for outcome, _, _, answered in seen)
    return {
        "rate": round(rate, 2),
        "seconds": seconds,
        "sent": len(seen),
        "outcomes": dict(Counter(outcome for outcome, *_ in seen)),
        "refused_without_retry_after": sum(outcome in ("429", "503") and not retry for outcome, retry, *_ in seen),
        "goodput": round(within / (ended - started), 2),
        "milliseconds": {f"p{share}": round(quantile(good, share / 100), 1) for share in (50, 90, 99)},
        "client_lag_p99": round(1000 * quantile(sorted(lags), 0.99), 1),
        "idle_milliseconds": round(1000 * idle, 2),
        **record,
    }


async def _until_idle(address: Address, contents: Sequence[bytes], idle: float, ended: float) -> float | None:
    """Seconds since `ended` until ten lone requests take at most half more than before; None if not within 15."""
    client = Client(address)
    found = None
    while found is None and time.perf_counter() - ended < 15:
        if await client.lone(contents[:10]) <= 1.5 * idle:
            found = round(time.perf_counter() - ended, 2)
    client.close()
    return found


def quantile(values: Sequence[float], share: float) -> float:
    """Of sorted values; NaN of none."""
    return values[min(len(values) - 1, int(share * len(values)))] if values else float("nan")
