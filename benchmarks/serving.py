"""A server under load that does not wait for it: requests are sent at their time, whether or not others were answered.

    python benchmarks/serving.py --model starter --rate 50 --seconds 30
    python benchmarks/serving.py --model starter --rate 50 --rate 100 --rate 400 --seconds 30 --output serving.jsonl

Latency is counted from the time at which a request was to be sent, so that a server that stalls is charged for all who
would have come meanwhile (no coordinated omission). One line of JSON a rate: what was answered how, latencies of the
successes in milliseconds, and the seconds after the load until a lone request is as quick as before it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import statistics
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx

DATA = Path(__file__).parent.parent.parent / "shared" / "data" / "reviews" / "validation.jsonl"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="starter")
    parser.add_argument("--rate", type=float, action="append", help="requests a second; may be given several times")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--texts", type=Path, default=DATA, help="rows with a text; the reviews' validation part")
    parser.add_argument("--output", type=Path, help="a file to which the lines are added; stdout otherwise")
    given = parser.parse_args()
    texts = [json.loads(line)["text"] for line in given.texts.read_text(encoding="utf-8").splitlines()]
    with subprocess.Popen(
        [sys.executable, "-m", "warmstart", "serve", "-m", f"m={given.model}", "--port", "0", "--no-access-log"],
        stderr=subprocess.PIPE,
        text=True,
    ) as server:
        try:
            url = wait_for(server)
            for rate in given.rate or [20.0]:
                found = json.dumps(asyncio.run(measured(url, texts, rate=rate, seconds=given.seconds)))
                if given.output is None:
                    print(found, flush=True)
                else:
                    with given.output.open("a", encoding="utf-8") as file:
                        file.write(found + "\n")
        finally:
            server.terminate()
    print(f"the server exited with {server.returncode}", file=sys.stderr)


def wait_for(server: subprocess.Popen[str]) -> str:
    """The URL of the server, once it is ready."""
    assert server.stderr is not None
    for line in server.stderr:
        if found := re.search(r"http://[\d.]+:\d+", line):
            while httpx.get(f"{found.group()}/readyz", trust_env=False, timeout=30).status_code != 200:
                time.sleep(0.05)
            return found.group()
    raise SystemExit("the server ended before it listened")


async def measured(url: str, texts: list[str], *, rate: float, seconds: float) -> dict[str, Any]:
    """One line: `rate` requests a second, at random moments, for `seconds`."""
    rng = random.Random(0)
    limits = httpx.Limits(max_connections=900)
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits, trust_env=False) as client:
        idle = await lone(client, texts)
        outcomes: list[tuple[str, float]] = []

        async def ask(due: float, text: str) -> None:
            try:
                outcome = str((await client.post("/v1/predict/m", json=text)).status_code)
            except httpx.TransportError as error:
                outcome = type(error).__name__
            outcomes.append((outcome, time.perf_counter() - due))

        due, asking = time.perf_counter(), []
        until = due + seconds
        while (due := due + rng.expovariate(rate)) < until:
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            asking.append(asyncio.create_task(ask(due, rng.choice(texts))))
        await asyncio.gather(*asking)
        ended = time.perf_counter()
        recovered = await until_idle(client, texts, idle, ended)
    good = sorted(latency for outcome, latency in outcomes if outcome == "200")
    return {
        "rate": rate,
        "seconds": seconds,
        "sent": len(outcomes),
        "outcomes": dict(Counter(outcome for outcome, _ in outcomes)),
        "goodput": round(len(good) / seconds, 2),
        "milliseconds": {f"p{share}": round(1000 * quantile(good, share / 100), 2) for share in (50, 90, 99)},
        "idle_milliseconds": round(1000 * idle, 2),
        "recovered_seconds": recovered,
    }


async def lone(client: httpx.AsyncClient, texts: list[str]) -> float:
    """The median latency of ten requests, one after another."""
    latencies = []
    for text in texts[:10]:
        started = time.perf_counter()
        (await client.post("/v1/predict/m", json=text)).raise_for_status()
        latencies.append(time.perf_counter() - started)
    return statistics.median(latencies)


async def until_idle(client: httpx.AsyncClient, texts: list[str], idle: float, ended: float) -> float | None:
    """Seconds since `ended` until ten lone requests take at most half more than before; None if not within 15."""
    while time.perf_counter() - ended < 15:
        if await lone(client, texts) <= 1.5 * idle:
            return round(time.perf_counter() - ended, 2)
    return None


def quantile(values: list[float], share: float) -> float:
    return values[min(len(values) - 1, int(share * len(values)))] if values else float("nan")


if __name__ == "__main__":
    main()
