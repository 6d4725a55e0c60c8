"""The table `serving.md`, from raw records alone."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Records = Sequence[Mapping[str, Any]]
BOUND_MS = 250.0
FP32, INT8, BF16 = "warmstart fp32", "warmstart int8", "warmstart bf16"
# What was promised: rates beside the better peer's and beside our own in fp32; goodput; seconds.
RATE, INT8_RATE, GOODPUT, IDLE_SECONDS = 3.0, 2.0, 0.9, 5.0
READY_SECONDS = {FP32: 10.0, INT8: 2.0}
LEGEND = (
    "Single reviews of the validation part, sent at random (Poisson) moments at a given rate, whether or not others",
    "were answered; latency is counted from the moment at which a request was to be sent. The server is alone on one",
    "core, with one thread of computation; the client is on the other. Same checkpoint (`starter`) on every side. int8",
    'is `ws.export("starter", folder, format="openvino", precision="int8")`; bf16 is `--precision bf16`, or',
    "`dtype=torch.bfloat16` of the peer. What nothing is said of runs in float32.",
)


def table(records: Records) -> list[str]:
    """The page as lines; a part that has no records is left out."""
    lines = ["# Serving", "", "Written by `make bench-serving` from the raw records in `serving.jsonl`.", "", *LEGEND]
    for part, write in (("speed", _speed), ("overload", _overload), ("ready", _ready)):
        mine = [record for record in records if record["part"] == part]
        if mine:
            lines += ["", *write(mine), "", *_foot(mine)]
    return lines


def highest(records: Records, contestant: str) -> dict[int, Mapping[str, Any]]:
    """By repeat, the record of the highest rate at which the bound was met."""
    found: dict[int, Mapping[str, Any]] = {}
    for record in _kind(records, "rate"):
        best = found.get(record["repeat"])
        if record["contestant"] == contestant and record["met"] and (best is None or record["rate"] > best["rate"]):
            found[record["repeat"]] = record
    return found


def ratios(ours: Mapping[int, Mapping[str, Any]], theirs: Sequence[Mapping[int, Mapping[str, Any]]]) -> list[float]:
    """In each repeat, how many times the highest rate of the best of `theirs` is ours."""
    found = []
    for repeat, record in ours.items():
        beside = [one[repeat]["rate"] for one in theirs if repeat in one]
        if beside:
            found.append(record["rate"] / max(beside))
    return found


def _speed(records: Records) -> Iterator[str]:
    names = list(dict.fromkeys(record["contestant"] for record in _kind(records, "rate")))
    best = {name: highest(records, name) for name in names}
    alike = [best[name] for name in names if not name.startswith("warmstart") and name.endswith("bf16")]
    peers = [best[name] for name in names if not name.startswith("warmstart") and not name.endswith("bf16")]
    yield from (f"## The highest rate at which 99 % are answered within {BOUND_MS:g} ms", "")
    yield "| | requests/s | p50 ms | p99 ms | alone, ms | beside the better peer in float32 | repeats |"
    yield "|---|---|---|---|---|---|---|"
    for name, found in best.items():
        if not found:
            yield f"| {name} | none met it | | | | | 0 |"
            continue
        ours = ratios(found, peers) if name.startswith("warmstart") else []
        columns = (
            [one["rate"] for one in found.values()],
            [one["milliseconds"]["p50"] for one in found.values()],
            [one["milliseconds"]["p99"] for one in found.values()],
            [one["idle_milliseconds"] for one in found.values()],
        )
        cells = (name, *(f"{statistics.median(values):.1f}" for values in columns), _spread(ours), str(len(found)))
        yield f"| {' | '.join(cells)} |"
    yield ""
    yield _promise("fp32 beside the better peer", ratios(best.get(FP32, {}), peers), RATE)
    yield _promise("int8 beside fp32", ratios(best.get(INT8, {}), [best.get(FP32, {})]), INT8_RATE)
    if beside := ratios(best.get(BF16, {}), alike):
        yield f"- bf16 beside the peer in bf16: {_spread(beside)}; nothing was promised."


def _overload(records: Records) -> Iterator[str]:
    yield from ("## Beyond what it can do, for 30 s", "")
    yield "`peak`: what 32 clients get who wait for their answers, the median (least – most) of six times four seconds,"
    yield "three before the load and three after it: the machine's own speed changes meanwhile. `idle again`: until ten"
    yield "lone requests take at most half more than before, from the end of the load. `lost`: sent, never answered."
    yield ""
    yield "| | peak/s | load | answered/s | of the peak | outcomes | lost | p99 ms | idle again, s | as promised |"
    yield "|---|---|---|---|---|---|---|---|---|---|"
    shares: dict[str, list[float]] = {}
    for one in _kind(records, "overload"):
        outcomes, peaks = one["outcomes"], one["peaks"]
        share = one["goodput"] / statistics.median(peaks)
        shares.setdefault(f"{one['contestant']}, {one['times']:g} ×", []).append(share)
        lost = sum(count for outcome, count in outcomes.items() if outcome not in ("200", "429", "503"))
        again = one["idle_again_seconds"]
        kept = share >= GOODPUT and not lost and not one["refused_without_retry_after"]
        kept = kept and again is not None and again <= IDLE_SECONDS
        told = ", ".join(f"{count:,} × {outcome}" for outcome, count in sorted(outcomes.items()))
        peak = f"{statistics.median(peaks):.0f} ({min(peaks):.0f} – {max(peaks):.0f})"
        load = f"{one['times']:g} × = {one['rate']:.0f}/s"
        idle = "more than 15" if again is None else f"{again:.1f}"
        figures = f"{one['goodput']:.1f} | {share:.0%} | {told} | {lost} | {one['milliseconds']['p99']:.0f} | {idle}"
        verdict = "yes" if kept else "**no**"
        yield f"| {one['contestant']} | {peak} | {load} | {figures} | {verdict} |"
    yield ""
    for name, found in shares.items():
        met = "met" if statistics.median(found) >= GOODPUT else "**not met**"
        spread = f"{statistics.median(found):.0%} ({min(found):.0%} – {max(found):.0%})"
        yield f"- {name}: goodput promised at least {GOODPUT:.0%} of the peak, found {spread}: {met}."


def _ready(records: Records) -> Iterator[str]:
    yield from ("## From the start of the process to the first 200 of `/readyz`", "")
    yield "| | seconds (least – most) | promised | |"
    yield "|---|---|---|---|"
    found: dict[str, list[float]] = {}
    for one in _kind(records, "ready"):
        found.setdefault(one["contestant"], []).append(one["seconds"])
    for name, seconds in found.items():
        most = READY_SECONDS.get(name)
        told = "" if most is None else f"< {most:g}"
        kept = "" if most is None else ("yes" if statistics.median(seconds) < most else "**no**")
        spread = f"{statistics.median(seconds):.2f} ({min(seconds):.2f} – {max(seconds):.2f})"
        yield f"| {name} | {spread} | {told} | {kept} |"


def _promise(what: str, found: Sequence[float], least: float) -> str:
    if not found:
        return f"- {what}: promised at least {least:g} times; not measured."
    met = "met" if statistics.median(found) >= least else "**not met**"
    return f"- {what}: promised at least {least:g} times, found {_spread(found)}: {met}."


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f}x ({min(values):.2f} – {max(values):.2f})" if values else ""


def _kind(records: Records, kind: str) -> list[Mapping[str, Any]]:
    return [record for record in records if record["kind"] == kind]


def _foot(records: Records) -> Iterator[str]:
    for machine in _kind(records, "machine"):
        packages = machine["packages"]
        named = ", ".join(
            f"{name} {packages[name]}" for name in ("torch", "transformers", "openvino") if packages.get(name)
        )
        yield f"Measured {machine['date']}; {named}."
    for took in _kind(records, "took"):
        yield f"It took {took['seconds']} s."
