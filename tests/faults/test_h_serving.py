"""H59, H68–H71: clients that leave, more work than there is room for, deadlines, failing models, dead workers."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest

import warmstart as ws
from support.serving import Gated, Misbehaving, eventually, numpy_pipeline, wait_ready, with_runtime
from warmstart.batching import Shapes
from warmstart.features import Array, Batch
from warmstart.serving.limits import Limits
from warmstart.serving.server import Server

PATH = "/v1/predict/reviews"
TEN = "good film " * 4  # of 10 tokens, its special ones counted


@pytest.fixture(scope="module")
def pipe() -> ws.Pipeline:
    loaded = numpy_pipeline()
    assert loaded(TEN).tokens == 10
    return loaded


@contextmanager
def gated(pipe: ws.Pipeline, limits: Limits) -> Iterator[tuple[Server, httpx.Client, Gated]]:
    """A server whose model waits for `opened`, which is set again at the end."""
    gate = Gated(pipe.runtime)
    gate.opened.set()
    with Server({"reviews": with_runtime(pipe, gate)}, port=0, limits=limits) as server:
        wait_ready(server.url)
        with httpx.Client(base_url=server.url, timeout=20, trust_env=False) as client:
            gate.batches.clear()
            gate.entered.clear()
            try:
                yield server, client, gate
            finally:
                gate.opened.set()


def metric(client: httpx.Client, name: str) -> float:
    lines = client.get("/metrics").text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))


def send(server: Server, rows: int) -> socket.socket:
    """A request of `rows` texts of ten tokens on a connection of its own; nothing is read."""
    body = ("[" + ",".join([f'"{TEN}"'] * rows) + "]").encode()
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=20)
    connection.sendall(head(body) + body)
    return connection


def head(body: bytes) -> bytes:
    lines = f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    return f"{lines}\r\n\r\n".encode()


def test_h59_a_departed_clients_work_is_dropped_and_counted(pipe: ws.Pipeline) -> None:
    with gated(pipe, Limits(batch_tokens=20)) as (server, client, gate):
        gate.opened.clear()
        running = send(server, 1)  # the model is busy with it
        assert gate.entered.wait(5)
        leaving = send(server, 50)
        assert eventually(lambda: metric(client, "warmstart_queue_tokens") == 500)
        leaving.close()
        assert eventually(lambda: metric(client, "warmstart_queue_tokens") == 0)
        gate.opened.set()
        assert running.recv(100).startswith(b"HTTP/1.1 200")
        running.close()
        assert client.post(PATH, json="good").status_code == 200
        assert sum(gate.batches) == 2  # of the fifty, none was run
        assert metric(client, "warmstart_dropped_total") == 1
        assert eventually(lambda: metric(client, 'warmstart_requests_total{method="POST",route="/v1/predict/{model}",'
                                                 'status="499"') == 1)  # fmt: skip


@pytest.mark.parametrize("rows", [7, 10, 12])
def test_h59_so_is_that_of_a_client_with_a_large_body(pipe: ws.Pipeline, rows: int) -> None:
    """Its body comes after its head and in pieces of more than is buffered: reading is paused at its end."""
    with gated(pipe, Limits(batch_tokens=20)) as (server, client, gate):
        gate.opened.clear()
        running = send(server, 1)
        assert gate.entered.wait(5)
        body = ("[" + ",".join(['"' + "good film " * 1000 + '"'] * rows) + "]").encode()
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as leaving:
            leaving.sendall(head(body))
            time.sleep(0.2)
            leaving.sendall(body)
            assert eventually(lambda: metric(client, "warmstart_queue_tokens") == 128 * rows)
        assert eventually(lambda: metric(client, "warmstart_queue_tokens") == 0)
        gate.opened.set()
        assert running.recv(100).startswith(b"HTTP/1.1 200")
        running.close()


def test_h68_beyond_the_queue_429_with_retry_after_and_what_was_accepted_is_answered(pipe: ws.Pipeline) -> None:
    with gated(pipe, Limits(batch_tokens=20, queue_tokens=100)) as (server, client, gate):
        gate.opened.clear()
        accepted = [send(server, 1)]
        assert gate.entered.wait(5)
        accepted += [send(server, 5), send(server, 5)]
        assert eventually(lambda: metric(client, "warmstart_queue_tokens") == 100)
        started = time.perf_counter()
        for _ in range(20):
            refused = client.post(PATH, json=TEN)
            assert (refused.status_code, refused.json()["error"]["code"]) == (429, "queue-full")
            assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert time.perf_counter() - started < 4
        large = client.post(PATH, json=[TEN] * 11)
        assert large.status_code == 429  # as long as the queue is full, nobody reads on
        gate.opened.set()
        assert [one.recv(12) for one in accepted] == [b"HTTP/1.1 200"] * 3
        for one in accepted:
            one.close()
        large = client.post(PATH, json=[TEN] * 11)
        assert (large.status_code, large.json()["error"]["code"]) == (413, "request-too-large")
        assert client.post(PATH, json=[TEN] * 10).status_code == 200


def test_h68_under_many_times_its_capacity_every_answer_is_200_or_429_and_none_is_lost(pipe: ws.Pipeline) -> None:
    with gated(pipe, Limits(batch_tokens=40, queue_tokens=80)) as (_server, client, _gate):

        def ask(number: int) -> int:
            answer = client.post(PATH, json=[TEN] * (1 + number % 4))
            if answer.status_code == 200:
                assert len(answer.json()) == 1 + number % 4
            else:
                assert answer.headers["retry-after"]
            return answer.status_code

        with concurrent.futures.ThreadPoolExecutor(24) as pool:
            found = list(pool.map(ask, range(240)))
        assert set(found) <= {200, 429} and found.count(200) >= 24
        assert eventually(lambda: metric(client, "warmstart_queue_tokens") == 0)
        assert client.post(PATH, json="good").status_code == 200


def held_and_waiting(server: Server, client: httpx.Client, gate: Gated) -> list[socket.socket]:
    """Two requests that were accepted: the model stands before the first, the second waits in the queue."""
    gate.opened.clear()
    accepted = [send(server, 1)]
    assert gate.entered.wait(5)
    accepted.append(send(server, 1))
    assert eventually(lambda: metric(client, "warmstart_queue_tokens") == 10)
    return accepted


def test_h68_what_was_drawn_and_not_run_is_waited_for_too(pipe: ws.Pipeline) -> None:
    with gated(pipe, Limits(batch_tokens=20)) as (server, client, gate):
        worker = server.service.models.served["reviews"]._worker
        accepted = held_and_waiting(server, client, gate)
        assert worker.wait(10) == worker.seconds(20) and worker.wait(0) == 0
        gate.opened.set()
        assert [one.recv(12) for one in accepted] == [b"HTTP/1.1 200"] * 2
        assert eventually(lambda: worker.wait(10) == worker.seconds(10))
        for one in accepted:
            one.close()


def test_h68_a_wait_longer_than_the_server_grants_is_429_at_once_and_again_unparsed(pipe: ws.Pipeline) -> None:
    with gated(pipe, Limits(batch_tokens=20, queue_seconds=0.0)) as (server, client, gate):
        accepted = held_and_waiting(server, client, gate)
        answers = [client.post(PATH, json=TEN) for _ in range(6)]
        assert {answer.status_code for answer in answers} == {429}
        assert len({answer.headers["x-request-id"] for answer in answers}) == 6
        assert server.service.shedder.refused >= 5  # on one connection, without being parsed
        assert client.get("/livez").status_code == 200  # the connection lives on
        counted = 'warmstart_requests_total{method="POST",route="/v1/predict/{model}",status="429"}'
        assert metric(client, counted) == 6
        gate.opened.set()
        assert [one.recv(12) for one in accepted] == [b"HTTP/1.1 200"] * 2
        for one in accepted:
            one.close()
        assert client.post(PATH, json=TEN).status_code == 200


def test_h68_a_refused_request_that_came_behind_another_says_nothing_of_that_one(pipe: ws.Pipeline) -> None:
    other = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n"
    body = f'"{TEN}"'.encode()
    with gated(pipe, Limits(batch_tokens=20, queue_seconds=0.0)) as (server, client, gate):
        accepted = held_and_waiting(server, client, gate)
        with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
            connection.sendall(other + head(body)[:20])
            time.sleep(0.2)
            connection.sendall(head(body)[20:] + body)
            received = b""
            while b" 429 " not in received:
                received += connection.recv(65536)
            assert received.startswith(b"HTTP/1.1 200")
        with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
            connection.sendall(other)
            assert connection.recv(12) == b"HTTP/1.1 200"
        gate.opened.set()
        assert [one.recv(12) for one in accepted] == [b"HTTP/1.1 200"] * 2
        for one in accepted:
            one.close()


def test_h69_a_deadline_that_passed_is_504_and_nothing_is_run(pipe: ws.Pipeline) -> None:
    with gated(pipe, Limits(batch_tokens=20)) as (server, client, gate):
        for given in ("0", "-5"):
            answer = client.post(PATH, json="good", headers={"x-timeout-ms": given})
            assert (answer.status_code, answer.json()["error"]["code"]) == (504, "deadline-exceeded")
        gate.opened.clear()
        busy = send(server, 1)
        assert gate.entered.wait(5)
        started = time.perf_counter()
        answer = client.post(PATH, json=["good"] * 3, headers={"x-timeout-ms": "50"})
        assert answer.status_code == 504 and time.perf_counter() - started < 3
        gate.opened.set()
        assert busy.recv(12) == b"HTTP/1.1 200"
        busy.close()
        assert client.post(PATH, json="good", headers={"x-timeout-ms": "10000"}).status_code == 200
        assert sum(gate.batches) == 2
        for wrong in ("soon", "1.5", "", "9" * 30, "٣"):
            headers = httpx.Headers([("x-timeout-ms", wrong)], encoding="utf-8")
            assert client.post(PATH, json="good", headers=headers).status_code == 400


def _raise(batch: Batch, outputs: dict[str, Array]) -> dict[str, Array]:
    raise RuntimeError("secret internals at 0xdeadbeef")


def _not_a_number(batch: Batch, outputs: dict[str, Array]) -> dict[str, Array]:
    bad = np.array([feature.length == 10 for feature in batch.features])
    return {name: np.where(bad[:, None], np.nan, array) for name, array in outputs.items()}


@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [(_raise, 500, "internal-error"), (_not_a_number, 422, "output-not-a-number")],
    ids=["raises", "nan"],
)
def test_h70_one_poisoned_request_fails_alone_and_tells_nothing_of_the_insides(
    pipe: ws.Pipeline, fault: Callable[[Batch, dict[str, Array]], dict[str, Array]], status: int, code: str
) -> None:
    bad = Misbehaving(pipe.runtime, tokens=10, fault=fault)
    slow = Gated(bad)
    slow.opened.set()
    expected = pipe("good").label
    with Server({"reviews": with_runtime(pipe, slow)}, port=0) as server:
        wait_ready(server.url)
        slow.opened.clear()
        slow.entered.clear()
        with httpx.Client(base_url=server.url, timeout=20, trust_env=False) as client:
            with concurrent.futures.ThreadPoolExecutor(12) as pool:
                first = pool.submit(client.post, PATH, json="good")
                assert slow.entered.wait(5)
                # While the model is busy these wait, and then share a batch.
                answers = [pool.submit(client.post, PATH, json=TEN if n == 4 else "good") for n in range(9)]
                assert eventually(lambda: metric(client, "warmstart_queue_tokens") == 10 + 8 * 3)
                slow.opened.set()
                found = [answer.result() for answer in answers]
                assert first.result().status_code == 200
            assert [answer.status_code for answer in found] == [200] * 4 + [status] + [200] * 4
            assert all(answer.json()["label"] == expected for n, answer in enumerate(found) if n != 4)
            assert found[4].json()["error"]["code"] == code
            assert "secret" not in found[4].text and "0x" not in found[4].text
            wait_ready(server.url)


def test_h70_a_tokenizer_that_panics_fails_its_request_at_once(
    pipe: ws.Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    class PanicException(BaseException):  # as those of libraries written in Rust are
        pass

    def panic(rows: object) -> None:
        raise PanicException("secret")

    with gated(pipe, Limits()) as (server, client, _):
        served = server.service.models.served["reviews"]
        broken = SimpleNamespace(encode=panic, fields=served.task.fields, name=served.task.name)
        with monkeypatch.context() as patch:
            patch.setattr(served, "task", broken)
            answer = client.post(PATH, json="good", headers={"x-timeout-ms": "10000"})
            assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal-error")
            assert "secret" not in answer.text
        assert client.post(PATH, json="good").status_code == 200


@dataclasses.dataclass
class Fatal:
    """A runtime that ends its thread once it is told to."""

    inner: Any
    told: threading.Event
    device: str = "cpu"
    shapes: Shapes = Shapes(4096)

    def run(self, batch: Batch) -> dict[str, Array]:
        if self.told.is_set():
            raise SystemExit("the thread ends")
        found: dict[str, Array] = self.inner.run(batch)
        return found


def test_h71_a_dead_worker_is_503_on_every_route_that_needs_it_and_never_a_false_200(pipe: ws.Pipeline) -> None:
    told = threading.Event()
    with Server({"reviews": with_runtime(pipe, Fatal(pipe.runtime, told))}, port=0) as server:
        wait_ready(server.url)
        with httpx.Client(base_url=server.url, timeout=10, trust_env=False) as client:
            told.set()
            started = time.perf_counter()
            answer = client.post(PATH, json="good")
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "worker-dead")
            assert time.perf_counter() - started < 3
            for path in ("/readyz", "/livez"):
                assert eventually(lambda path=path: client.get(path).status_code == 503)  # type: ignore[misc]
            assert client.post(PATH, json="good").status_code == 503


def test_h71_not_ready_before_the_first_row_went_through_nor_while_draining(pipe: ws.Pipeline) -> None:
    gate = Gated(pipe.runtime)
    with (
        Server({"reviews": with_runtime(pipe, gate)}, port=0) as server,
        httpx.Client(base_url=server.url, timeout=10, trust_env=False) as client,
    ):
        assert client.get("/livez").status_code == 200
        answer = client.get("/readyz")
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "warming")
        gate.opened.set()
        wait_ready(server.url)
        server.service.lifecycle.drain()
        for method, path in (("GET", "/readyz"), ("POST", PATH)):
            answer = client.request(method, path, json="good")
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "stopping")
            assert answer.headers["retry-after"]
        assert client.get("/livez").status_code == 200


def test_h71_a_model_that_fails_at_its_first_row_is_not_ready_until_it_answers(pipe: ws.Pipeline) -> None:
    told = threading.Event()

    def unless_told(batch: Batch, outputs: dict[str, Array]) -> dict[str, Array]:
        return outputs if told.is_set() else _raise(batch, outputs)

    failing = Misbehaving(pipe.runtime, tokens=3, fault=unless_told)  # the probe's row has three tokens
    with (
        Server({"reviews": with_runtime(pipe, failing)}, port=0) as server,
        httpx.Client(base_url=server.url, timeout=10, trust_env=False) as client,
    ):
        assert eventually(lambda: client.get("/readyz").json()["error"]["code"] == "probe-failed")
        assert client.post(PATH, json=TEN).status_code == 200  # others are served
        assert client.get("/readyz").status_code == 503
        told.set()
        assert client.get("/readyz").status_code == 200


def test_h72_what_is_not_done_when_the_time_to_stop_is_over_is_503(pipe: ws.Pipeline) -> None:
    with gated(pipe, Limits(drain_seconds=1.0)) as (server, _, gate):
        gate.opened.clear()
        accepted = send(server, 1)
        assert gate.entered.wait(5)
        server.stop()
        received = b""
        while part := accepted.recv(65536):
            received += part
        accepted.close()
    assert received.startswith(b"HTTP/1.1 503") and b'"code":"stopping"' in received
