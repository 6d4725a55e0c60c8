"""The ASGI app: all protocols' endpoints on one port, behind the gate."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route, Router

from warmstart.pipeline import Pipeline
from warmstart.serving import playground
from warmstart.serving.access import PROBES, Access
from warmstart.serving.body import DepartedError, Receive, parse_json, read_body
from warmstart.serving.connection import CONNECTION, GuardedConnection
from warmstart.serving.endpoint import Answer, Call, Endpoint
from warmstart.serving.gate import App, Gate, Scope, Send, to_json
from warmstart.serving.lifecycle import Lifecycle
from warmstart.serving.limits import Limits
from warmstart.serving.metrics import CONTENT_TYPE, Metrics
from warmstart.serving.models import Models
from warmstart.serving.pacing import BEHIND, Pace
from warmstart.serving.protocols import huggingface, native, openai, tei
from warmstart.serving.refusal import Refusal, unavailable
from warmstart.serving.schemas import LONGEST_DEADLINE, TEXT, described, record
from warmstart.serving.shedding import Shedder

_DEADLINE = "x-timeout-ms"
_LAST_MOMENT = 1.0  # in seconds
# Predictions of which an answer is built in a thread: a thousand would keep the event loop from others for too long.
_MANY = 64


class Service:
    """What one server is made of. `app` is the ASGI app; its lifespan starts the workers and lets them finish."""

    def __init__(self, pipelines: Mapping[str, Pipeline], *, access: Access, limits: Limits) -> None:
        """Raises UsageError "models-none", "model-name"."""
        self.limits, self.metrics = limits, Metrics()
        self.models = Models(pipelines, limits, self.metrics)
        self.lifecycle = Lifecycle(self.models)
        self._deadlines = limits.request_seconds
        endpoints = self._endpoints()
        pages = {"/metrics": "text/plain", "/openapi.json": "application/json", **playground.KINDS}
        self._openapi = to_json(described(endpoints, self.models, pages=pages, keys=bool(access.keys)))
        self.routes = [
            *(Route(one.path, _Handler(one.path, self._handle(one)), methods=[one.method]) for one in endpoints),
            Route("/metrics", _Handler("/metrics", self._metrics), methods=["GET"]),
            Route("/openapi.json", _Handler("/openapi.json", self._describe), methods=["GET"]),
            *(Route(path, _Handler(path, playground.page(path)), methods=["GET"]) for path in playground.PATHS),
        ]
        self._router = Router(self.routes, redirect_slashes=False, lifespan=self._lifespan)
        self.gate = Gate(self._routed, access, self.metrics, header_bytes=limits.header_bytes)
        self.app: App = self.gate
        self.shedder = Shedder(self.gate, draining=lambda: self.lifecycle.draining)
        self.pace = Pace(self.models.least_backlog, behind=min(BEHIND, limits.queue_seconds / 4))

    def _endpoints(self) -> Sequence[Endpoint]:
        status = record({"status": TEXT})
        return [
            Endpoint("GET", "/livez", self.lifecycle.livez, "Does the process work", response=status),
            Endpoint("GET", "/readyz", self.lifecycle.readyz, "Does every model answer", response=status),
            *native.endpoints(self.models),
            *huggingface.endpoints(self.models),
            *openai.endpoints(self.models),
            *tei.endpoints(self.models),
        ]

    async def _routed(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["app"] = self  # the router raises only within an app; alone it would answer in its own words
        try:
            await self._router(scope, receive, send)
        except HTTPException as error:
            raise self._no_route(error, scope) from None

    def _no_route(self, error: HTTPException, scope: Scope) -> Refusal:
        if error.status_code == 405:
            # Starlette names the methods of the first route with this path, and / has two.
            found = [route.methods or () for route in self.routes if route.matches(scope)[0] is not Match.NONE]
            allowed = ", ".join(sorted({method for methods in found for method in methods}))
            return Refusal(405, "method-not-allowed", "this method is not answered here", headers={"Allow": allowed})
        return Refusal(404, "route-unknown", "there is nothing here", fix="GET /openapi.json tells what there is")

    @asynccontextmanager
    async def _lifespan(self, app: object) -> AsyncIterator[None]:
        self.models.start()
        warming = asyncio.create_task(self.lifecycle.warm())
        yield
        self.lifecycle.drain()
        warming.cancel()
        with suppress(asyncio.CancelledError):
            await warming
        # Of the time to drain uvicorn took what it needed. A batch that nobody waits for any more gets a moment to end.
        left = max(_LAST_MOMENT, self.limits.drain_seconds - self.lifecycle.drained_for)
        await asyncio.to_thread(self.models.stop, left)

    def _handle(self, endpoint: Endpoint) -> Callable[[Request], Awaitable[Response]]:
        async def handle(request: Request) -> Response:
            if endpoint.path not in PROBES and self.lifecycle.draining:
                raise unavailable("the server is stopping", code="stopping")
            deadline = time.monotonic() + self._seconds(request)
            body = None
            if endpoint.request is not None:
                content = await read_body(request.receive, request.scope["headers"], self.limits)
                self._check_room(request)
                body = await parse_json(content)
            call = Call(
                models=self.models,
                client=request.scope["warmstart.client"],
                deadline=deadline,
                path=request.path_params,
                body=body,
            )
            answering = _answered(endpoint.handle(call))
            if endpoint.request is None:
                return await answering
            return await _unless_departed(answering, _connection(request))

        return handle

    def _check_room(self, request: Request) -> None:
        """Refuse before parsing, where the request names the one model it is for."""
        if (served := self.models.served.get(request.path_params.get("model", ""))) is None:
            return
        client = request.scope["warmstart.client"]
        try:
            served.check_room(client)
        except Refusal:
            _connection(request).was_refused(request.scope, served, client)
            raise

    def _seconds(self, request: Request) -> float:
        """What the client grants, at most what the server does. Raises Refusal "deadline-malformed"."""
        given = request.headers.get(_DEADLINE)
        if given is None:
            return self._deadlines
        negative, digits = given.startswith("-"), given.removeprefix("-")
        if not (digits.isascii() and digits.isdigit() and len(digits) <= 10 and int(digits) <= LONGEST_DEADLINE):
            what = f"X-Timeout-Ms must be a whole number of milliseconds up to {LONGEST_DEADLINE:,}"
            raise Refusal(400, "deadline-malformed", what, where="X-Timeout-Ms")
        return min(self._deadlines, (-1 if negative else 1) * int(digits) / 1000)

    async def _metrics(self, request: Request) -> Response:
        return Response(self.metrics.text(), headers={"content-type": CONTENT_TYPE})

    async def _describe(self, request: Request) -> Response:
        return Response(self._openapi, media_type="application/json")


@dataclass(frozen=True)
class _Handler:
    """An ASGI app that answers one route, and tells the gate which. What it raises is the gate's."""

    route: str
    handle: Callable[[Request], Awaitable[Response]]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["warmstart.route"] = self.route
        response = await self.handle(Request(scope, receive, send))
        await response(scope, receive, send)


def _connection(request: Request) -> GuardedConnection:
    connection: GuardedConnection = request.scope["state"][CONNECTION]
    return connection


async def _unless_departed(work: Awaitable[Response], connection: GuardedConnection) -> Response:
    """The response; cancels the work when the client leaves. Raises DepartedError."""
    working = asyncio.current_task()
    assert working is not None
    left = False

    def leave() -> None:
        nonlocal left
        left = True
        working.cancel()

    with connection.telling(leave):
        try:
            return await work
        except asyncio.CancelledError:
            if left and working.uncancel() == 0:
                raise DepartedError from None
            raise


async def _answered(work: Awaitable[Answer]) -> Response:
    answer = await work
    many = len(answer.predictions) > _MANY
    return await asyncio.to_thread(_response, answer) if many else _response(answer)


def _response(answer: Answer) -> Response:
    cut = sum(prediction.truncated for prediction in answer.predictions)
    headers = {"X-Truncated-Rows": str(cut)} if cut else {}
    return Response(to_json(answer.told()), media_type="application/json", headers=headers)
