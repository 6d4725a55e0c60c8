"""Requests with bytes changed at random, on raw sockets: no 5xx but by a text's own doing, no worker dies."""

from __future__ import annotations

import os
import random
import socket

import httpx

from support.serving import numpy_pipeline, wait_ready
from warmstart.serving.limits import Limits
from warmstart.serving.server import Server

# `WARMSTART_MUTATIONS=2000` for a longer run.
COUNT = int(os.environ.get("WARMSTART_MUTATIONS", "400"))
BODIES = (
    b'"good"',
    b'["good", {"text": "bad", "text_pair": "film"}]',
    b'{"inputs": "good", "parameters": {"top_k": 1}}',
)
ROUTES = (b"/v1/predict/reviews", b"/models/reviews", b"/predict", b"/", b"/v1/models", b"/readyz", b"/openapi.json")
PIECES = (
    b"\x00", b"\r\n", b"\n", b" ", b":", b"%2f", b"..", b"\xff", b"9" * 20, b"-1", b'"', b"[", b"{", b"Host: x\r\n",
    b"Transfer-Encoding: chunked\r\n", b"Content-Length: 5\r\n", b"HTTP/9.9", b"\\ud800", b"NaN", b"a" * 3000,
)  # fmt: skip


def mutated(rng: random.Random) -> bytes:
    body, route = rng.choice(BODIES), rng.choice(ROUTES)
    method = rng.choice((b"POST", b"POST", b"GET", b"DELETE"))
    content = (
        method + b" " + route + b" HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nX-Timeout-Ms: 5000"
        b"\r\nConnection: close\r\nContent-Length: " + str(len(body)).encode() + b"\r\n\r\n" + body
    )  # fmt: skip
    for _ in range(rng.choice((0, 1, 1, 1, 2, 4))):
        at, width = rng.randrange(len(content)), rng.choice((0, 0, 1, 8))
        piece = rng.choice(PIECES) if rng.random() < 0.7 else bytes([rng.randrange(256)])
        content = content[:at] + piece + content[at + width :]
    return content


def test_changed_bytes_give_no_5xx_and_kill_nobody() -> None:
    rng = random.Random(0)
    statuses: dict[int, int] = {}
    limits = Limits(header_seconds=0.05, body_seconds=0.05)
    with Server({"reviews": numpy_pipeline()}, port=0, limits=limits) as server:
        wait_ready(server.url)
        for number in range(COUNT):
            content = mutated(rng)
            received = b""
            with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
                try:
                    connection.sendall(content)
                    while len(received) < 12 and (part := connection.recv(65536)):
                        received += part
                except ConnectionError:
                    pass
            status = int(received[9:12]) if received else 0
            assert status < 500, (number, content, received)
            statuses[status] = statuses.get(status, 0) + 1
        answer = httpx.post(f"{server.url}/v1/predict/reviews", json="good", trust_env=False)
        assert answer.status_code == 200 and httpx.get(f"{server.url}/readyz", trust_env=False).status_code == 200
    assert statuses[200] > COUNT / 20 and statuses[400] > COUNT / 20, statuses  # both sides of the line were walked
