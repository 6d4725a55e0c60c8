"""A stand-in of a model hub: the few routes that fetching a snapshot uses, served from folders on this machine."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """`models` maps a name to its folder; `refuse` maps a name to (status, error code of the hub)."""

    models: dict[str, Path] = field(default_factory=dict)
    refuse: dict[str, tuple[int, str]] = field(default_factory=dict)
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)  # method, path, authorization
    url: str = ""

    @property
    def downloads(self) -> list[str]:
        """Names of the files whose bytes were sent, in order."""
        return [path.rsplit("/", 1)[-1] for method, path, _ in self.requests if method == "GET" and "/resolve/" in path]


@contextmanager
def serve_hub() -> Iterator[Hub]:
    """A running stand-in; stops at the end."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            self._answer(send_body=True)

        def do_HEAD(self) -> None:
            self._answer(send_body=False)

        def _answer(self, *, send_body: bool) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.requests.append((self.command, path, self.headers.get("Authorization")))
            status, headers, body = _respond(hub, path)
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(body))} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            if send_body:
                self.wfile.write(body)

    return Handler


def _respond(hub: Hub, path: str) -> tuple[int, dict[str, str], bytes]:
    name, revision, file = _parse(path)
    if name in hub.refuse:
        status, code = hub.refuse[name]
        return status, {"X-Error-Code": code, "X-Error-Message": code}, b"{}"
    if name not in hub.models:
        return 404, {"X-Error-Code": "RepoNotFound"}, b"{}"
    if revision not in (None, "main", COMMIT):
        return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
    folder = hub.models[name]
    if file is None:
        answer = _tree(folder) if "/tree/" in path else _info(name, folder)
        return 200, {"Content-Type": "application/json"}, json.dumps(answer).encode()
    if not (folder / file).is_file():
        return 404, {"X-Error-Code": "EntryNotFound"}, b"{}"
    body = (folder / file).read_bytes()
    etag = f'"{_oid(folder / file)}"'
    return 200, {"ETag": etag, "X-Repo-Commit": COMMIT, "Content-Type": "application/octet-stream"}, body


def _parse(path: str) -> tuple[str, str | None, str | None]:
    if match := re.fullmatch(r"/api/models/(.+?)(?:/(?:revision|tree)/(.+))?", path):
        return match[1], match[2], None
    if match := re.fullmatch(r"/(.+?)/resolve/([^/]+)/(.+)", path):
        return match[1], match[2], match[3]
    return path, None, None


def _info(name: str, folder: Path) -> dict[str, object]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    siblings = [{"rfilename": p.relative_to(folder).as_posix(), "size": p.stat().st_size} for p in files]
    return {"_id": "1", "id": name, "modelId": name, "sha": COMMIT, "private": False, "siblings": siblings, "tags": []}


def _tree(folder: Path) -> list[dict[str, object]]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return [
        {"type": "file", "path": p.relative_to(folder).as_posix(), "size": p.stat().st_size, "oid": _oid(p)}
        for p in files
    ]


def _oid(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:40]
