"""Servers on a free loopback port, of tiny random models; real uvicorn, real sockets."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

import warmstart as ws
from support.serving import wait_ready
from warmstart.serving.server import Server


@pytest.fixture(scope="session")
def classifier(tiny: Callable[..., Path]) -> ws.Pipeline:
    return ws.load(tiny("bert"), device="cpu")


@pytest.fixture(scope="session")
def embedder(tiny: Callable[..., Path]) -> ws.Pipeline:
    return ws.load(tiny("bert", "base"), task="sentence-embedding", device="cpu")


@pytest.fixture(scope="session")
def server(classifier: ws.Pipeline, embedder: ws.Pipeline) -> Iterator[Server]:
    """Two models, no keys."""
    with Server({"reviews": classifier, "embed": embedder}, port=0) as running:
        wait_ready(running.url)
        yield running


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=20, trust_env=False) as found:
        yield found


@pytest.fixture
def raw(server: Server) -> Callable[[bytes], bytes]:
    """Send bytes on a connection of its own, and read until the server closes it or is silent for a while."""

    def talk(content: bytes, *, seconds: float = 3.0) -> bytes:
        with socket.create_connection(("127.0.0.1", server.port), timeout=seconds) as connection:
            connection.sendall(content)
            received = b""
            try:
                while part := connection.recv(65536):
                    received += part
            except TimeoutError:
                pass
            except ConnectionResetError:
                pass
            return received

    return talk
