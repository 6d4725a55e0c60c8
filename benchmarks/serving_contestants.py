"""The servers that are measured: each a process of its own, alone on one core, in one thread of computation."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import httpx
from serving_load import Address, request

HERE = Path(__file__).parent
TEXTS = HERE.parent.parent / "shared" / "data" / "reviews" / "validation.jsonl"
# The load comes from the first core, so that it takes nothing from the server on the last.
CLIENTS_CORE, SERVERS_CORE = 0, (os.cpu_count() or 1) - 1


@dataclass(frozen=True)
class Contestant:
    name: str
    command: tuple[str, ...]
    path: str
    wrapped: bool = False  # the text is the field `text` of an object


def contestants(checkpoint: Path, exported: Path) -> list[Contestant]:
    def ours(name: str, model: Path, *more: str) -> Contestant:
        serve = ("-m", "warmstart", "serve", "-m", f"m={model}", "--port", "0", "--no-access-log", *more)
        return Contestant(name, serve, "/v1/predict/m")

    def theirs(name: str, way: str, dtype: str = "float32") -> Contestant:
        return Contestant(name, (str(HERE / "serving_peer.py"), str(checkpoint), way, dtype), "/predict", wrapped=True)

    return [
        ours("warmstart fp32", checkpoint),
        ours("warmstart int8", exported),
        ours("warmstart bf16", checkpoint, "--precision", "bf16"),
        theirs("FastAPI + pipeline, def", "threads"),
        theirs("FastAPI + pipeline, async def", "loop"),
        theirs("FastAPI + pipeline, async def, bf16", "loop", "bfloat16"),
    ]


def bodies(contestant: Contestant, address: Address) -> list[bytes]:
    """A request for each review of the validation part."""
    texts = [json.loads(line)["text"] for line in TEXTS.read_text(encoding="utf-8").splitlines()]
    return [request(address, json.dumps({"text": text} if contestant.wrapped else text).encode()) for text in texts]


@contextmanager
def running(contestant: Contestant) -> Iterator[tuple[Address, float]]:
    """A ready server on its core, and the seconds from its start to its first 200 of /readyz; this process moves to the
    client's core. At the end the server is told to stop, and ours must exit
    with 0."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryFile("w+") as said:
        pin(SERVERS_CORE)  # what is started inherits it
        started = time.perf_counter()
        server = subprocess.Popen([sys.executable, *contestant.command], stderr=said, env=environment)
        pin(CLIENTS_CORE)
        if hasattr(os, "setpriority"):  # `prefer` keeps it from what is started
            with suppress(PermissionError):
                os.setpriority(os.PRIO_PROCESS, server.pid, os.getpriority(os.PRIO_PROCESS, 0))
        try:
            yield from _while_it_runs(contestant, server, said, started)
        finally:
            server.kill()
            server.wait()


def _while_it_runs(
    contestant: Contestant, server: subprocess.Popen[bytes], said: IO[str], started: float
) -> Iterator[tuple[Address, float]]:
    port = _port(server, said)
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=30) as client:
        while client.get("/readyz").status_code != 200:
            time.sleep(0.01)
    yield Address(port, contestant.path), time.perf_counter() - started
    server.terminate()
    code = server.wait(60)
    if code and contestant.name.startswith("warmstart"):  # uvicorn's own way to go is to die of the signal
        raise SystemExit(f"{contestant.name} exited with {code}")


def prefer() -> None:
    """Let this process go before all others of its core, and nothing that it starts: the client must not be late."""
    with suppress(AttributeError, PermissionError):
        os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(1))


def pin(core: int) -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core})


def _port(server: subprocess.Popen[bytes], said: IO[str]) -> int:
    while server.poll() is None:
        said.seek(0)
        if found := re.search(r"http://127\.0\.0\.1:(\d+)", said.read()):
            return int(found[1])
        time.sleep(0.01)
    raise SystemExit("the server ended before it listened")
