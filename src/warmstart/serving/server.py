"""A server: a port, the app on it, and the signals that end it."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

import uvicorn

from warmstart.errors import UsageError
from warmstart.pipeline import Pipeline
from warmstart.serving.access import is_loopback, make_access
from warmstart.serving.app import Service
from warmstart.serving.connection import GuardedConnection
from warmstart.serving.limits import Limits
from warmstart.serving.models import NAME

log = logging.getLogger("warmstart")

_KEEP_ALIVE_SECONDS = 15
_BACKLOG = 1024
_FROZEN_AT_START = 1_000  # objects, at most, by Python itself: 3.12 freezes 375


class Server:
    """A server that can be started and stopped from any thread.

        with Server({"starter": pipe}, port=0) as server:
            urllib.request.urlopen(f"{server.url}/livez")

    Raises UsageError "models-none", "model-name", "hosts-unnamed", "api-key-weak", "port-unavailable".
    """

    def __init__(
        self,
        pipelines: Mapping[str, Pipeline],
        *,
        host: str = "127.0.0.1",
        port: int = 8000,
        api_keys: Sequence[str] = (),
        allowed_hosts: Sequence[str] = (),
        limits: Limits | None = None,
    ) -> None:
        limits = limits or Limits()
        access = make_access(host, allowed_hosts=allowed_hosts, keys=api_keys)
        self.service = Service(pipelines, access=access, limits=limits)
        if not access.keys and not is_loopback(host):
            log.warning("%s can be reached from other machines, and no API key is asked for: --api-key-file", host)
        self._socket = _bind(host, port)
        if sys.platform == "linux":  # the last bytes of an answer, which uvicorn's connections wait with for ever
            milliseconds = max(1, round(1000 * limits.body_seconds))
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
        self.port: int = self._socket.getsockname()[1]
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{self.port}"
        self._uvicorn = uvicorn.Server(_config(self.service, limits))
        self._thread = threading.Thread(target=self._run, name="warmstart-http", daemon=True)
        self._failure: BaseException | None = None

    def start(self) -> None:
        """Begin to listen; `/readyz` answers 200 once every model has answered a row."""
        self._thread.start()

    def stop(self) -> None:
        """Take no new request, and finish those that were accepted. Returns at once; `join` waits."""
        self.service.lifecycle.drain()
        self._uvicorn.should_exit = True

    def join(self, seconds: float | None = None) -> bool:
        """Wait for the end; has it come. Raises what ended the server, if that was an error."""
        self._thread.join(seconds)
        if self._failure is not None:
            raise self._failure
        return not self._thread.is_alive()

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(self, kind: object, value: object, traceback: object) -> None:
        self.stop()
        self.join()

    def _run(self) -> None:
        # Not the main thread: there uvicorn takes the signals and, done, raises them again, which kills the process.
        try:
            with asyncio.Runner(loop_factory=self._uvicorn.config.get_loop_factory()) as runner:
                runner.run(self._uvicorn.serve(sockets=[self._socket]))
        except BaseException as error:
            self._failure = error
        finally:
            with suppress(OSError):
                self._socket.close()


def serve(
    models: Pipeline | Mapping[str, Pipeline],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    api_keys: Sequence[str] = (),
    allowed_hosts: Sequence[str] = (),
    limits: Limits | None = None,
) -> None:
    """Serve pipelines over HTTP until SIGTERM or Ctrl+C, which let accepted requests finish; a second one does not.

    `models`: one pipeline, served under the last part of its name, or several by theirs. `api_keys`: without any,
    whoever reaches the port may ask. `allowed_hosts`: names under which the server is asked beside `host` and
    localhost. With `port=0` the system chooses one; the log tells.

        ws.serve(ws.load("starter"), port=8000)

    Raises UsageError "models-none", "model-name", "hosts-unnamed", "api-key-weak", "port-unavailable";
    KeyboardInterrupt after Ctrl+C, once accepted requests are answered.
    """
    pipelines = models if isinstance(models, Mapping) else {served_name(models.name): models}
    server = Server(pipelines, host=host, port=port, api_keys=api_keys, allowed_hosts=allowed_hosts, limits=limits)
    stops = _Stops(server)
    with stops, _settled_heap():
        server.start()
        log.info("serving %s on %s", ", ".join(pipelines), server.url)
        while not server.join(0.5):  # short, so that a signal's handler gets its turn
            pass
    if stops.interrupted:
        raise KeyboardInterrupt


def served_name(name: str) -> str:
    """What a checkpoint is served under, where no name is given: the last part of its own. A run's is the run's."""
    parts = [part for part in str(name).replace("\\", "/").split("/") if part not in ("", ".", "..", "model")]
    last = (parts[-1] if parts else "model").partition("@")[0].removeprefix("pkg:")
    return last if NAME.fullmatch(last) else "model"


@contextmanager
def _settled_heap() -> Iterator[None]:
    """Until the block ends, garbage is not looked for among the objects that are there when it begins.

    Libraries and models are some 400,000 of them. Looking through them stopped a server for 0.4 s, every 15 s of load.
    A caller that has frozen objects itself decides for itself: thawing ours would thaw them.
    """
    if gc.get_freeze_count() > _FROZEN_AT_START:
        yield
        return
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


class _Stops:
    """While it is entered, SIGTERM and Ctrl+C stop the server: the first gently, the second at once."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._before: dict[signal.Signals, Any] = {}
        self._told = False
        self.interrupted = False

    def __enter__(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._handle)

    def __exit__(self, kind: object, value: object, traceback: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._told:
            os._exit(128 + number)  # what was accepted is given up, as asked
        self._told = True
        self.interrupted = number == signal.SIGINT
        self._server.stop()


def _config(service: Service, limits: Limits) -> uvicorn.Config:
    def connection(config: Any, server_state: Any, app_state: Any, _loop: Any = None) -> GuardedConnection:
        ours = (limits, service.gate, service.shedder, service.pace)
        return GuardedConnection(*ours, config, server_state, app_state, _loop)

    return uvicorn.Config(
        service.app,
        http=connection,  # type: ignore[arg-type]  # it is only ever called
        ws="none",
        loop="auto",  # uvloop where it is installed
        lifespan="on",
        interface="asgi3",
        log_config=None,
        log_level="critical",  # what it logs, the gate logs
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=max(1, round(limits.drain_seconds)),
        h11_max_incomplete_event_size=limits.header_bytes,
        backlog=_BACKLOG,
    )


def _bind(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises UsageError "port-unavailable"."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host.strip("[]") or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        opened = socket.socket(family, kind, protocol)
        try:
            if os.name == "posix":
                opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            opened.bind(address)
            opened.listen(_BACKLOG)
            opened.setblocking(False)
        except OSError:
            opened.close()
            raise
    except (OSError, OverflowError) as error:
        raise UsageError(
            "port-unavailable",
            f"the server cannot listen there: {error.strerror if isinstance(error, OSError) else error}",
            value=f"{host}:{port}",
            fix="choose another port, or stop who listens on it",
        ) from error
    return opened
