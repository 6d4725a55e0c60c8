"""What every request passes: its id, Host and Origin, its API key, the access log; and what every answer carries."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from http import HTTPStatus
from typing import Any

import orjson

from warmstart.serving.access import Access
from warmstart.serving.body import DepartedError, Message, Receive
from warmstart.serving.metrics import Metrics
from warmstart.serving.refusal import Refusal, as_refusal, unavailable

log = logging.getLogger("warmstart")
access_log = logging.getLogger("warmstart.access")

Scope = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT")
_ALWAYS = {
    b"x-content-type-options": b"nosniff",
    b"cache-control": b"no-store",
    b"referrer-policy": b"no-referrer",
    b"cross-origin-resource-policy": b"same-origin",
    b"x-frame-options": b"DENY",
    b"content-security-policy": b"default-src 'none'; frame-ancestors 'none'",
}


class Gate:
    """Around the app that knows the routes. What the app raises becomes an answer here, and only here."""

    def __init__(self, app: App, access: Access, metrics: Metrics, *, header_bytes: int) -> None:
        self._app, self._access, self._metrics, self._header_bytes = app, access, metrics, header_bytes
        # An id is the server's part and a count: random bits for each would cost a system call.
        self._part, self._count = secrets.token_hex(4), itertools.count(1)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)
        else:  # a websocket, of which there are none
            await send({"type": "websocket.close", "code": 1000})

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = time.monotonic()
        request_id = _own_id(scope) or self._new_id()
        status, sent = 0, 0

        async def answering(message: Message) -> None:
            nonlocal status, sent
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": _with_always(message["headers"], request_id)}
            else:
                sent += len(message.get("body", b""))
            await send(message)

        try:
            if not scope["path"].startswith("/"):
                raise Refusal(400, "target-malformed", "the request's target must be a path")
            # h11 counts only headers that come in several reads.
            if sum(len(name) + len(value) for name, value in scope["headers"]) > self._header_bytes:
                what = f"the headers are larger than {self._header_bytes:,} bytes"
                raise Refusal(431, "headers-too-large", what, headers={"Connection": "close"})
            self._access.check_host(scope["headers"])
            address = (scope.get("client") or ("unknown",))[0]
            scope["warmstart.client"] = self._access.identify(scope["headers"], address, scope["path"])
            await self._app(scope, receive, answering)
        except DepartedError:
            status = 499  # nginx's number for it; nobody is there to read it
        except asyncio.CancelledError:  # the time that a stopping server has for what it accepted is over
            if not status:
                refusal = unavailable("the server stopped before the answer was there", code="stopping")
                await respond(answering, refusal.status, refusal.body(request_id), refusal.headers)
        except Exception as error:
            refusal = as_refusal(error)
            if refusal.status == 500:
                log.error("request %s failed: %r", request_id, error)
            if not status:
                await respond(answering, refusal.status, refusal.body(request_id), refusal.headers)
        finally:
            self._record(scope, request_id, status, sent, time.monotonic() - started)

    def refused(self, refusal: Refusal, scope: Scope, started: float) -> bytes:
        """The whole answer to a request that is not looked at: one like it, of `scope`, was, or it is none.
        It is counted and logged as any."""
        request_id = self._new_id()
        content = to_json(refusal.body(request_id))
        headers = [(name.lower().encode(), value.encode()) for name, value in refusal.headers.items()]
        headers += [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
        lines = [name + b": " + value for name, value in _with_always(headers, request_id)]
        reason = HTTPStatus(refusal.status).phrase.encode()
        self._record(scope, request_id, refusal.status, len(content), time.monotonic() - started)
        return b"\r\n".join([b"HTTP/1.1 %d %s" % (refusal.status, reason), *lines, b"", content])

    def _new_id(self) -> str:
        return f"{self._part}{next(self._count):08x}"

    def _record(self, scope: Scope, request_id: str, status: int, sent: int, seconds: float) -> None:
        # The route and not the path, a known method or none: what strangers send must not make metrics grow.
        route = scope.get("warmstart.route", "other")
        method = scope["method"] if scope["method"] in _METHODS else "other"
        self._metrics.request(route, method, status, seconds)
        if access_log.isEnabledFor(logging.INFO):
            entry = {
                "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "id": request_id,
                "client": scope.get("warmstart.client", (scope.get("client") or ("unknown",))[0]),
                "method": scope["method"],
                "path": scope["path"][:200],
                "status": status,
                "bytes": sent,
                "ms": round(seconds * 1000, 2),
            }
            access_log.info("%s", json.dumps(entry))


async def respond(send: Send, status: int, body: Any, headers: Mapping[str, str]) -> None:
    """One JSON answer."""
    content = to_json(body)
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [
                (b"content-type", b"application/json"),
                (b"content-length", str(len(content)).encode()),
                *((name.lower().encode(), value.encode()) for name, value in headers.items()),
            ],
        }
    )
    await send({"type": "http.response.body", "body": content})


def to_json(value: Any) -> bytes:
    """JSON in UTF-8. A lone surrogate, which UTF-8 cannot hold, is escaped as it may have come."""
    try:
        return orjson.dumps(value)
    except TypeError:
        return json.dumps(value, allow_nan=False).encode("ascii")


def _own_id(scope: Scope) -> str | None:
    """The client's own id, where it is a plain one."""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _ID.fullmatch(value):
            return str(value, "ascii")
    return None


def _with_always(headers: list[tuple[bytes, bytes]], request_id: str) -> list[tuple[bytes, bytes]]:
    given = dict(headers)
    always = ((name, value) for name, value in _ALWAYS.items() if name not in given)
    return [*headers, *always, (b"x-request-id", request_id.encode())]
