"""H55–H67: what strangers send to a server. It answers with the right code, loads and fetches nothing, and lives on."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator

import httpx
import pytest

import warmstart as ws
from support.serving import eventually, numpy_pipeline, wait_ready
from warmstart.serving.limits import Limits
from warmstart.serving.refusal import overloaded
from warmstart.serving.server import Server

KEY = "a-key-of-thirty-two-characters-x"
LIMITS = Limits(header_seconds=1.0, body_seconds=1.0, body_bytes=64 << 10, rows=16, connections=60)
PATH = "/v1/predict/reviews"
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def pipe() -> ws.Pipeline:
    return numpy_pipeline()


@pytest.fixture(scope="module")
def server(pipe: ws.Pipeline) -> Iterator[Server]:
    with Server({"reviews": pipe}, port=0, limits=LIMITS) as running:
        wait_ready(running.url)
        yield running


@pytest.fixture(scope="module")
def locked(pipe: ws.Pipeline) -> Iterator[Server]:
    with Server({"reviews": pipe}, port=0, api_keys=["another-key-of-some-length", KEY]) as running:
        wait_ready(running.url)
        yield running


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    """Afterwards the next request is served, as after every fault."""
    with httpx.Client(base_url=server.url, timeout=10, trust_env=False) as found:
        yield found
        assert found.post(PATH, json="good").status_code == 200


def talk(server: Server, content: bytes, *, seconds: float = 0.7) -> bytes:
    """What comes back on a connection of its own, until it is closed or silent."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=seconds) as connection:
        received = b""
        try:
            connection.sendall(content)
            while part := connection.recv(65536):
                received += part
        except (TimeoutError, ConnectionError):
            pass
        return received


def statuses(received: bytes) -> list[int]:
    return [int(part[:3]) for part in received.split(b"HTTP/1.1 ")[1:]]


def request(head: str, body: bytes = b"") -> bytes:
    lines = [line.strip() for line in head.strip().splitlines()]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def code(answer: httpx.Response) -> str:
    found = answer.json()["error"]
    assert found["request_id"] == answer.headers["x-request-id"]
    assert "Traceback" not in answer.text and ".py" not in answer.text
    return str(found["code"])


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b'"a" "b"', b'"a"}', b"nul", b"[1,]", b"{'a': 1}", b'"\xff"', b"\xef\xbb\xbf\"a\"",
        b"[" * 30_000, b'{"a":' * 9_000, b"NaN", b"[Infinity]", b'{"text": -Infinity}', b"1" * 9_000,
        b'{"text": "a", "text": "b"}', b'"\x01"',
    ],
)  # fmt: skip
def test_h55_what_is_not_strict_json_is_400(client: httpx.Client, body: bytes) -> None:
    answer = client.post(PATH, content=body, headers=JSON)
    assert (answer.status_code, code(answer)) == (400, "json-malformed")


@pytest.mark.parametrize(
    "body", ["3", "null", "true", "1e999", '[["a"]]', '{"text": 3}', '{"text": null}', "{}", "[3]"]
)
def test_h55_json_of_the_wrong_shape_is_422_and_names_the_place(client: httpx.Client, body: str) -> None:
    answer = client.post(PATH, content=body, headers=JSON)
    assert answer.status_code == 422
    assert code(answer) in ("row-not-object", "field-missing", "field-not-text")
    assert answer.json()["error"]["where"].startswith("row 0")


@pytest.mark.parametrize(
    "headers",
    [
        {"content-type": "text/plain"},
        {"content-type": ""},
        {"content-type": "application/json; charset=utf-16"},
        {"content-type": "application/jsonp"},
        {"content-type": "multipart/form-data; boundary=x"},
        {"content-type": "application/json", "content-encoding": "gzip"},
    ],
)
def test_h56_another_content_type_or_encoding_is_415(client: httpx.Client, headers: dict[str, str]) -> None:
    answer = client.post(PATH, content=b'"a"', headers=headers)
    assert (answer.status_code, code(answer)[:5]) == (415, "body-")
    twin = client.post(PATH, content=b'"a"', headers={"content-type": 'Application/JSON; charset="UTF-8"'})
    assert twin.status_code == 200


def test_h57_a_body_over_the_cap_is_413_by_its_length_and_by_its_bytes(server: Server, client: httpx.Client) -> None:
    answer = client.post(PATH, content=b'"' + b"a" * (70 << 10) + b'"', headers=JSON)
    assert (answer.status_code, code(answer)) == (413, "body-too-large")
    head = "POST /v1/predict/reviews HTTP/1.1\nHost: localhost\nContent-Type: application/json\n"
    lie = talk(server, request(head + "Content-Length: 99999999999"))
    assert statuses(lie) == [413]
    endless = b"1000\r\n" + b"a" * 0x1000 + b"\r\n"
    assert statuses(talk(server, request(head + "Transfer-Encoding: chunked", endless * 20))) == [413]


def test_h57_a_body_that_does_not_end_is_408(server: Server, client: httpx.Client) -> None:
    head = "POST /v1/predict/reviews HTTP/1.1\nHost: localhost\nContent-Type: application/json\n"
    started = time.perf_counter()
    assert statuses(talk(server, request(head + "Content-Length: 100", b'"a'), seconds=4)) == [408]
    assert statuses(talk(server, request(head + "Transfer-Encoding: chunked", b"1\r\na\r\n"), seconds=4)) == [408]
    assert time.perf_counter() - started < 6
    whole = request(head + "Content-Length: 3\nConnection: close\nExpect: 100-continue", b'"a"')
    assert statuses(talk(server, whole)) == [100, 200]
    pieces = b"".join(b"1\r\n" + bytes([byte]) + b"\r\n" for byte in b'"good"') + b"0\r\n\r\n"
    assert statuses(talk(server, request(head + "Transfer-Encoding: chunked\nConnection: close", pieces))) == [200]


def test_h58_slow_headers_and_silent_connections_end_and_others_are_served(
    server: Server, client: httpx.Client
) -> None:
    address = ("127.0.0.1", server.port)
    started = time.perf_counter()
    silent = [socket.create_connection(address, timeout=8) for _ in range(20)]
    dripping = socket.create_connection(address, timeout=8)
    try:
        for byte in b"GET /livez HTTP/1.1\r\n":
            dripping.sendall(bytes([byte]))
            time.sleep(0.02)
        assert client.post(PATH, json="good").status_code == 200
        assert b"408" in dripping.recv(1000)
        assert all(b"408" in one.recv(1000) for one in silent)
        assert time.perf_counter() - started < 5
    finally:
        for one in [*silent, dripping]:
            one.close()


def test_h58_more_connections_than_allowed_are_refused_at_once(server: Server, client: httpx.Client) -> None:
    assert client.get("/livez").status_code == 200  # it has its connection
    opened = [socket.create_connection(("127.0.0.1", server.port), timeout=5) for _ in range(80)]
    try:
        refused = opened[-1].recv(1000)
        assert refused.startswith(b"HTTP/1.1 503") and b"Retry-After" in refused
        assert client.get("/livez").status_code == 200
    finally:
        for one in opened:
            one.close()
    assert eventually(lambda: statuses(talk(server, request("GET /livez HTTP/1.1\nHost: localhost\nConnection: close")))
                      == [200])  # fmt: skip


def test_h60_too_many_rows_none_and_one_bad_among_good(client: httpx.Client) -> None:
    answer = client.post(PATH, json=["a"] * 17)
    assert (answer.status_code, code(answer)) == (413, "rows-too-many")
    answer = client.post(PATH, json=[])
    assert (answer.status_code, code(answer)) == (400, "rows-none")
    answer = client.post(PATH, json=["a", {"text": "b"}, {"text": 5}, "d"])
    assert (answer.status_code, code(answer)) == (422, "field-not-text")
    assert answer.json()["error"]["where"] == "row 2, field 'text'"
    assert len(client.post(PATH, json=["a"] * 16).json()) == 16


@pytest.mark.parametrize(
    "path", ["/v1/predict/none", "/v1/predict/..%2f..%2fetc%2fpasswd", "/v1/predict/%2fetc", "/v1/predict/a%00b",
             "/models/https:%2f%2fexample.org%2fx", "/models/org/name", "/v1/predict/starter"]
)  # fmt: skip
def test_h61_a_name_that_is_not_served_is_404_and_nothing_is_looked_for(client: httpx.Client, path: str) -> None:
    started = time.perf_counter()
    answer = client.post(path, json={"inputs": "a"})
    assert answer.status_code == 404 and code(answer) in ("model-unknown", "route-unknown")
    assert time.perf_counter() - started < 1


def test_h61_an_unknown_field_is_refused_and_a_url_is_a_text(client: httpx.Client) -> None:
    answer = client.post(PATH, json={"text": "a", "model": "/etc/passwd"})
    assert (answer.status_code, code(answer)) == (422, "field-unknown")
    assert "'model'" in answer.json()["error"]["where"]
    answer = client.post("/", json={"inputs": "a", "url": "http://127.0.0.1:9/"})
    assert (answer.status_code, code(answer)) == (422, "field-unknown")
    assert client.post(PATH, json="http://127.0.0.1:9/x.png").json()["label"] in ("NEGATIVE", "POSITIVE")


@pytest.mark.parametrize(
    "head",
    [
        "POST /v1/predict/reviews HTTP/1.1\nHost: localhost\nContent-Length: 3\nTransfer-Encoding: chunked\nX: \x01",
        "POST /v1/predict/reviews HTTP/1.1\nHost: localhost\nContent-Length: 3\nContent-Length: 4",
        "POST /v1/predict/reviews HTTP/1.1\nHost: localhost\nContent-Length: -1",
        "POST /v1/predict/reviews HTTP/1.1\nHost: localhost\nTransfer-Encoding: gzip, chunked",
        "GET /livez HTTP/1.1\nHost: localhost\nX-A: b\x00c",
        "GET /livez HTTP/1.1",
        "GET /livez HTTP/1.1\nHost: localhost\nHost: localhost",
        "GET /livez HTTP/1.1\nHost: local host",
        "GET /livez HTTP/1.1\nHost: localhost@evil.example",
        "GET http://evil.example/livez HTTP/1.1\nHost: localhost",
        "GET /livez HTTP/1.1\nHost: localhost\nX-Long: " + "a" * (64 << 10),
    ],
)
def test_h62_smuggling_bad_headers_and_targets_are_400(server: Server, client: httpx.Client, head: str) -> None:
    found = statuses(talk(server, request(head, b'"a"')))
    assert found[:1] in ([400], [501], [431]) and len(found) == 1


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "OPTIONS", "PUT", "HEAD"])
def test_h63_another_host_or_origin_is_403_by_every_method(client: httpx.Client, method: str) -> None:
    for headers in (
        {"host": "evil.example"}, {"host": "localhost.evil.example:80"}, {"host": "169.254.169.254"},
        {"origin": "http://evil.example"}, {"origin": "null"}, {"origin": "http://[bad"},
    ):  # fmt: skip
        for path in ("/livez", PATH, "/", "/nowhere"):
            assert client.request(method, path, headers=headers).status_code == 403
    own = {"host": "LOCALHOST:1234", "origin": "http://127.0.0.1:1234"}
    assert client.request("GET", "/livez", headers=own).status_code == 200


@pytest.mark.parametrize("method", ["GET", "POST", "HEAD", "DELETE", "OPTIONS", "PUT", "PATCH", "BREW"])
def test_h64_every_route_and_method_but_the_probes_needs_a_key(locked: Server, method: str) -> None:
    bad = [
        {}, {"authorization": "Bearer wrong"}, {"x-api-key": KEY + "x"}, {"x-api-key": KEY[:-1]}, {"x-api-key": ""},
        {"authorization": f"Bearer {'a' * 9000}"}, {"authorization": "Basic !!!"}, {"authorization": KEY},
        {"authorization": "Basic dXNlcjp3cm9uZw=="},
    ]  # fmt: skip
    with httpx.Client(base_url=locked.url, timeout=10, trust_env=False) as client:
        routes = [route.path for route in locked.service.routes]
        assert len(routes) > 12 and {"/metrics", "/openapi.json", "/"} <= set(routes)
        paths = [path.replace("{model}", "reviews") for path in routes]
        for path in [*paths, "/nowhere", "/livez/"]:
            for headers in bad:
                status = client.request(method, path, headers=headers).status_code
                assert (status == 401) == (path not in ("/livez", "/readyz")), (path, headers)


def test_h64_each_key_opens_as_bearer_as_header_and_as_a_browsers_password(locked: Server) -> None:
    with httpx.Client(base_url=locked.url, timeout=10, trust_env=False) as client:
        for key in (KEY, "another-key-of-some-length"):
            for headers in ({"authorization": f"Bearer {key}"}, {"x-api-key": key}):
                assert client.post(PATH, json="good", headers=headers).status_code == 200
            assert client.get("/", auth=("anybody", key)).status_code == 200
        assert client.get("/").headers["www-authenticate"].startswith("Basic")


@pytest.mark.parametrize(
    "path", ["/..%2fpage.html", "/%2e%2e/page.html", "//playground.js", "/playground.js%00", "/playground/page.html",
             "/playground.js/", "/__init__.py", "/./playground.css%2f.."]
)  # fmt: skip
def test_h65_nothing_but_the_three_files_of_the_page_is_given(server: Server, client: httpx.Client, path: str) -> None:
    got = talk(server, request(f"GET {path} HTTP/1.1\nHost: localhost\nConnection: close\nRange: bytes=0-5,1-6,2-7"))
    assert statuses(got) == [404]
    whole = client.get("/playground.js", headers={"range": "bytes=0-5"})
    assert whole.status_code == 200 and len(whole.content) > 1000


def test_h66_the_page_runs_no_script_but_its_own(client: httpx.Client) -> None:
    page = client.get("/")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
    assert "<script>" not in page.text and "http" not in page.text.replace("http-equiv", "")
    assert "innerHTML" not in client.get("/playground.js").text
    echoed = client.post(PATH, json={"<script>alert(1)</script>": 1})
    assert (
        echoed.headers["content-type"] == "application/json" and echoed.headers["x-content-type-options"] == "nosniff"
    )


def test_h67_pipelined_requests_old_versions_and_other_methods(server: Server, client: httpx.Client) -> None:
    one = request("GET /livez HTTP/1.1\nHost: localhost")
    last = request("GET /livez HTTP/1.1\nHost: localhost\nConnection: close")
    assert statuses(talk(server, one * 4 + last)) == [200] * 5
    assert talk(server, request("GET /livez HTTP/1.0\nHost: localhost")).split(b" ")[1] == b"200"
    head = client.head("/livez")
    assert head.status_code == 200 and head.content == b""
    for method, path in (("OPTIONS", PATH), ("GET", PATH), ("DELETE", "/v1/models"), ("BREW", "/livez")):
        answer = client.request(method, path)
        assert (answer.status_code, code(answer)) == (405, "method-not-allowed") and answer.headers["allow"]
    assert json.loads(client.get("/nowhere").content)["error"]["code"] == "route-unknown"


def test_h58_every_thread_of_connections_is_closed_again(server: Server, client: httpx.Client) -> None:
    """After all of the above the server holds few connections."""
    assert client.get("/livez").status_code == 200
    held = server._uvicorn.server_state.connections
    assert eventually(lambda: len(held) <= 10, seconds=6)


def test_h68_what_is_refused_unparsed_has_passed_the_gate_before(locked: Server) -> None:
    """Refused quickly is what was refused a moment ago, byte for byte: another key, host or method is looked at."""
    shedder, served = locked.service.shedder, locked.service.models.served["reviews"]
    body = b'"good"'
    head = f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nX-API-Key: {KEY}\r\nContent-Length: 6\r\n\r\n".encode()
    scope = {"method": "POST", "path": PATH, "http_version": "1.1", "headers": [(b"content-length", b"6")]}

    def full(client: str) -> None:
        assert client == "key 1"
        raise overloaded(7)

    shedder.remember("127.0.0.1", head + body, scope, served, "key 1")
    assert shedder.answer("127.0.0.1", head + body) is None  # there is room
    room, served.check_room = served.check_room, full  # type: ignore[method-assign]
    try:
        answer = shedder.answer("127.0.0.1", head + body)
        assert answer is not None and answer[1] == 0
        assert answer[0].startswith(b"HTTP/1.1 429 Too Many Requests\r\nretry-after: 7\r\n")
        top, _, content = answer[0].partition(b"\r\n\r\n")
        told = json.loads(content)["error"]
        assert told["code"] == "queue-full" and f"x-request-id: {told['request_id']}".encode() in top
        assert f"content-length: {len(content)}".encode() in top and b"nosniff" in top
        with httpx.Client(base_url=locked.url, timeout=10, trust_env=False) as client:
            assert client.post(PATH, json="good").status_code == 401
        for other in (
            head.replace(KEY.encode(), b"another-key-of-some-length") + body, head.replace(b"POST", b"PUT ") + body,
            head.replace(b"localhost", b"elsewhere") + body, head + body + b"GET /", head[:-1], b"",
        ):  # fmt: skip
            assert shedder.answer("127.0.0.1", other) is None
        assert shedder.answer("127.0.0.2", head + body) is None
        early = shedder.answer("127.0.0.1", head + b'"g')
        assert early is not None and early[1] == 4  # bytes of the body that are still to come
        bare = head.replace(b"\r\n", b"\n").replace(b": 6", b": 9")  # ends before the empty line in its body
        longer = {**scope, "headers": [(b"content-length", b"9")]}
        shedder.remember("127.0.0.1", bare + b'"a\r\n\r\nb"', longer, served, "key 1")
        end = shedder.answer("127.0.0.1", bare + b'"a\r\n\r\nb"')
        assert end is not None and end[1] == 1
    finally:
        served.check_room = room  # type: ignore[method-assign]
