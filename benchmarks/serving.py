"""The benchmark of serving: `make bench-serving`, or `python benchmarks/serving.py PART …`, PART one of

speed      the highest rate of single reviews at which 99 % are answered within 250 ms: ours and FastAPI + pipeline
overload   twice and five times what a server can do, for 30 s: what is answered, and when it is idle again
ready      from the start of the process to the first 200 of /readyz
table      write `serving.md` again

Each part replaces its own raw records in `serving.jsonl`; the table `serving.md` is written from them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from inference import machine
from inference_prepare import prepare
from serving_contestants import Contestant, bodies, contestants, prefer, running
from serving_load import Address, at_rate, capacity
from serving_table import BOUND_MS, table

HERE = Path(__file__).parent
RECORDS, TABLE = HERE / "serving.jsonl", HERE / "serving.md"
# Rates go up by this factor from this share of what the server does for 32 clients that wait for their answers.
STEP, FIRST = 1.1, 0.7
OVER = (2.0, 5.0)


def main() -> None:
    logging.disable(logging.INFO)
    prefer()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="+", choices=[*PARTS, "table"], metavar="PART")
    parser.add_argument("--seconds", type=float, help="of load at each rate: a trial, written nowhere")
    parser.add_argument("--repeats", type=int, default=2, help="of each contestant (default 2)")
    parser.add_argument("--forms", type=Path, help="a folder that keeps the exported model for the next run")
    parser.add_argument("--only", action="append", help="a contestant; in a trial")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for part in given.parts:
            if part == "table":
                continue
            forms = given.forms or Path(folder)
            checkpoint, failed = prepare(forms, only=("openvino-int8",))
            if failed:
                raise SystemExit(f"the export failed: {failed}")
            those = contestants(checkpoint, forms / "openvino-int8")
            those = [one for one in those if given.only is None or one.name in given.only]
            started = time.monotonic()
            records = [machine()]
            for record in PARTS[part](those, given.seconds, given.repeats):
                print(json.dumps(record), flush=True)
                records.append(record)
            records.append({"kind": "took", "seconds": round(time.monotonic() - started)})
            if given.seconds is None and given.only is None:
                replace(part, [{"part": part, **record} for record in records])
    TABLE.write_text("\n".join(table(read())) + "\n", encoding="utf-8")


def run_speed(those: Sequence[Contestant], seconds: float | None, repeats: int) -> Iterator[Mapping[str, Any]]:
    """Contestants take turns, another one first in each repeat."""
    for repeat in range(repeats):
        for contestant in [*those[repeat % len(those) :], *those[: repeat % len(those)]]:
            with running(contestant) as (address, _):
                contents = bodies(contestant, address)
                asyncio.run(capacity(address, contents, seconds=1))  # warm
                most = asyncio.run(capacity(address, contents, seconds=4))
                yield {"kind": "capacity", "contestant": contestant.name, "repeat": repeat, "rate": round(most, 1)}
                for record in climbed(address, contents, most, seconds=seconds or 8, seed=1000 * repeat):
                    yield {"kind": "rate", "contestant": contestant.name, "repeat": repeat, **record}


def climbed(
    address: Address, contents: Sequence[bytes], most: float, *, seconds: float, seed: int
) -> Iterator[dict[str, Any]]:
    """Rates from FIRST of `most` upwards by STEP until one is too high twice; downwards where the first is."""
    rate, best = FIRST * most, None
    while 0.1 * most < rate < 2 * most:
        for attempt in (1, 2):
            found = asyncio.run(
                at_rate(address, contents, rate=rate, seconds=seconds, seed=seed + round(rate) + 500 * attempt)
            )
            met = found["milliseconds"]["p99"] <= BOUND_MS and set(found["outcomes"]) == {"200"}
            yield {"met": met, **found}
            if met:
                break
        if (not met and best is not None) or (met and rate < FIRST * most):
            return
        best = rate if met else None
        rate = rate * STEP if met else rate / STEP


def run_overload(those: Sequence[Contestant], seconds: float | None, repeats: int) -> Iterator[Mapping[str, Any]]:
    """Ours alone: a server that refuses nothing has no goodput to speak of. What a server can do is looked at before
    and after each load, as the machine's speed changes meanwhile."""
    ours = [one for one in those if one.name.startswith("warmstart")]
    for repeat in range(repeats if ours else 0):
        for contestant in [*ours[repeat % len(ours) :], *ours[: repeat % len(ours)]]:
            with running(contestant) as (address, _):
                contents = bodies(contestant, address)
                asyncio.run(capacity(address, contents, seconds=2))
                before = _peaks(address, contents)
                for times in OVER:
                    rate, seed = times * statistics.median(before), 10 * repeat + int(times)
                    load = at_rate(address, contents, rate=rate, seconds=seconds or 30, seed=seed, recovery=True)
                    found = asyncio.run(load)
                    after = _peaks(address, contents)
                    names = {"kind": "overload", "contestant": contestant.name, "repeat": repeat, "times": times}
                    yield {**names, "peaks": [round(peak, 1) for peak in (*before, *after)], **found}
                    before = after


def _peaks(address: Address, contents: Sequence[bytes]) -> list[float]:
    return [asyncio.run(capacity(address, contents, seconds=4)) for _ in range(3)]


def run_ready(those: Sequence[Contestant], seconds: float | None, repeats: int) -> Iterator[Mapping[str, Any]]:
    """The first start of a contestant is not counted: it fills the page cache, and OpenVINO's own."""
    for contestant in [one for one in those if "bf16" not in one.name and "async" not in one.name]:
        for repeat in range(-1, max(3, repeats)):
            with running(contestant) as (_, took):
                pass
            if repeat >= 0:
                yield {"kind": "ready", "contestant": contestant.name, "repeat": repeat, "seconds": round(took, 2)}


PARTS = {"speed": run_speed, "overload": run_overload, "ready": run_ready}


def read() -> list[dict[str, Any]]:
    return [json.loads(line) for line in RECORDS.read_text(encoding="utf-8").splitlines()] if RECORDS.exists() else []


def replace(part: str, records: Iterable[Mapping[str, Any]]) -> None:
    """A part's records take the place of its older ones."""
    kept = [record for record in read() if record["part"] != part]
    lines = [json.dumps(record) for record in (*kept, *records)]
    RECORDS.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
