"""Connections end whose clients neither send nor read, leave, or send what is no HTTP; others go on."""

from __future__ import annotations

import json
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from support.serving import KEY, Gated, eventually, numpy_pipeline, wait_ready, with_runtime
from warmstart.serving.limits import Limits
from warmstart.serving.refusal import overloaded
from warmstart.serving.server import Server

PATH = "/v1/predict/reviews"
HEAD = f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


@pytest.fixture
def server() -> Iterator[Server]:
    """Little fits into the system's buffers of its connections."""
    running = Server({"reviews": numpy_pipeline()}, port=0, limits=Limits(body_seconds=1.0))
    running._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    with running:
        wait_ready(running.url)
        yield running


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


def deaf(server: Server) -> socket.socket:
    """A client's connection on which little fits that it does not read."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.settimeout(0.2)
    connection.connect(("127.0.0.1", server.port))
    return connection


def test_a_client_that_does_not_read_its_answers_loses_its_connection(server: Server) -> None:
    held = server._uvicorn.server_state
    with deaf(server) as connection:
        with suppress(OSError):
            for _ in range(2000):
                connection.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert held.total_requests > 1
        assert eventually(lambda: not held.connections and not held.tasks)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a connection whose last bytes nobody takes")
def test_nor_does_one_that_is_being_closed_wait_for_its_client(server: Server) -> None:
    held = server._uvicorn.server_state
    with deaf(server) as connection:
        connection.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert eventually(lambda: held.total_requests == 2)
        assert len(held.connections) == 1
        assert eventually(lambda: not held.connections)


def test_a_client_that_leaves_with_a_request_behind_the_one_it_waits_for_is_noticed() -> None:
    pipe = numpy_pipeline()
    gate = Gated(pipe.runtime)
    gate.opened.set()
    with Server({"reviews": with_runtime(pipe, gate)}, port=0) as server:
        try:
            wait_ready(server.url)
            gate.opened.clear()
            gate.entered.clear()
            queue = server.service.models.served["reviews"]._queue
            with connected(server) as busy, connected(server) as leaving:
                busy.sendall(f'{HEAD}Content-Length: 6\r\n\r\n"good"'.encode())
                assert gate.entered.wait(5)
                leaving.sendall(f'{HEAD}Content-Length: 6\r\n\r\n"good"'.encode())
                assert eventually(lambda: queue.tokens > 0)
                for part in (f'{HEAD}Content-Length: 6\r\n\r\n"good"', f"{HEAD}Content-"):
                    leaving.sendall(part.encode())
                    time.sleep(0.1)
                leaving.close()
                assert eventually(lambda: queue.tokens == 0)
                gate.opened.set()
                assert busy.recv(12) == b"HTTP/1.1 200"
        finally:
            gate.opened.set()


@pytest.mark.parametrize(
    ("content", "status", "code"),
    [
        (b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX: \x00\r\n\r\n", 400, "request-malformed"),
        (f"{HEAD}Transfer-Encoding: chunked\r\n\r\nno number\r\n".encode(), 400, "request-malformed"),
        (b"GET /livez HT", 408, "headers-too-slow"),
        (b"", 503, "connections-too-many"),
    ],
    ids=["head", "chunk", "slow", "many"],
)
def test_what_is_refused_before_it_is_a_request_has_a_code_an_id_a_line_and_a_count(
    content: bytes, status: int, code: str, caplog: pytest.LogCaptureFixture
) -> None:
    limits = Limits(header_seconds=0.3, connections=0 if status == 503 else 10)
    with caplog.at_level("INFO", "warmstart.access"), Server({"reviews": numpy_pipeline()}, port=0, limits=limits) as s:
        with connected(s) as connection:
            connection.sendall(content)
            received = b""
            while part := connection.recv(65536):
                received += part
        counted = f'warmstart_requests_total{{method="other",route="other",status="{status}"}} 1.0'
        assert counted in s.service.metrics.text().decode()
    head, _, body = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status) and b"\r\nconnection: close" in head
    assert (b"\r\nretry-after: 5" in head) == (status == 503)
    told = json.loads(body)["error"]
    assert told["code"] == code and f"x-request-id: {told['request_id']}".encode() in head
    entries = [json.loads(record.getMessage()) for record in caplog.records if record.name == "warmstart.access"]
    assert {"id": told["request_id"], "status": status, "client": "127.0.0.1"}.items() <= entries[0].items()


def test_a_head_that_is_refused_often_is_remembered_longer_than_others(server: Server) -> None:
    shedder, served = server.service.shedder, server.service.models.served["reviews"]
    scope = {"method": "POST", "path": PATH, "http_version": "1.1", "headers": [(b"content-length", b"6")]}
    served.check_room = full  # type: ignore[method-assign]
    head = f'{HEAD}Content-Length: 6\r\n\r\n"good"'.encode()
    for number in range(1000):
        shedder.remember(f"127.0.1.{number}", head, scope, served, "a")
        assert shedder.answer("127.0.1.0", head) is not None
    assert shedder.answer("127.0.1.1", head) is None


def full(client: str) -> None:
    raise overloaded(7)
