"""Connections end whose clients neither send nor read, leave, or send what is no HTTP; others go on."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest

from support.serving import KEY, eventually, numpy_pipeline, wait_ready
from warmstart.serving.limits import Limits
from warmstart.serving.server import Server

PATH = "/v1/predict/reviews"
HEAD = f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


@pytest.fixture
def locked() -> Iterator[Server]:
    limits = Limits(header_seconds=0.5, body_seconds=0.5)
    with Server({"reviews": numpy_pipeline()}, port=0, limits=limits, api_keys=[KEY]) as running:
        wait_ready(running.url)
        yield running


def connected(server: Server) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=5)


def drips(connection: socket.socket) -> bool:
    """A byte is sent; False once the connection is closed."""
    time.sleep(0.05)
    try:
        connection.sendall(b"a")
    except OSError:
        return False
    return True


def test_a_body_that_drips_in_after_its_refusal_ends_with_the_time_of_a_body(locked: Server) -> None:
    with connected(locked) as dripping:
        dripping.sendall(f"{HEAD}Content-Length: 1000000\r\n\r\n".encode())
        assert dripping.recv(12) == b"HTTP/1.1 401"
        assert eventually(lambda: not drips(dripping))
    with connected(locked) as later:  # a body that comes behind its refusal does not
        for _ in range(2):
            later.sendall(f"{HEAD}Content-Length: 6\r\n\r\n".encode())
            assert later.recv(65536).startswith(b"HTTP/1.1 401")
            later.sendall(b'"good"')
