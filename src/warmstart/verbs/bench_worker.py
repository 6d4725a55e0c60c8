"""The child side of a benchmark: one contestant in a process of its own, driven over a pipe.

    python -m warmstart.verbs.bench_worker MODULE

`MODULE` has `start(settings)`, which gives the contestant. One JSON object a line comes in on stdin (the settings
first), one goes out on stdout for each. Whatever a library prints goes to stderr.

    {"ask": "rows", "workload": "reviews", "rows": [{"text": …}, …]}   → {}
    {"ask": "run", "workload": "reviews", "setting": 8, "survey": true}
        → {"seconds": 0.1, "cpu_seconds": 0.1, "peak_mb": 512.0,
           "survey": {"answers": […], "tokens": 900, "positions": 1024}}
    {"ask": "peak"}                                                    → {"gflops": 120.5}

An error comes back as {"error": {…}}; the end of stdin ends the worker.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TextIO, TypeVar, runtime_checkable

from warmstart.errors import WarmstartError

T = TypeVar("T")
Fields = Mapping[str, str]  # the texts of a row, by field

# Rows of the matrix that the peak is measured with: the best of several, so that the peak is one.
PEAK_ROWS, PEAK_SECONDS = (256, 1024, 4096), 0.4


class Contestant(Protocol):
    """Who is measured. `start(settings)` has loaded it; `facts` go to the driver once."""

    @property
    def facts(self) -> Mapping[str, Any]: ...

    @property
    def model(self) -> Any:
        """The torch module that computes, or None."""
        ...

    def answers(self, rows: Sequence[Fields], setting: int | None) -> list[Any]:
        """From texts to labels, vectors or numbers, one a row, in row order. This is what is timed."""
        ...


@runtime_checkable
class Counting(Protocol):
    """A contestant that knows how many tokens it read."""

    def tokens(self, rows: Sequence[Fields]) -> int:
        """Tokens of the rows, special tokens and what is cut to the limit included; padding is none."""
        ...


@runtime_checkable
class Gauged(Protocol):
    """A contestant without a torch module, which knows what it computes."""

    def positions(self, rows: Sequence[Fields], setting: int | None) -> int | None:
        """Token positions that pass a feed-forward layer, padding among them."""
        ...

    def gemm_peak(self) -> float | None:
        """GFLOP/s of a product as large as the model's largest layer, in the runtime's own type, by the library that
        is quicker here."""
        ...


@runtime_checkable
class RowCounting(Protocol):
    """What stands in for a layer's `forward` and does not compute as many rows as it gives."""

    def rows_computed(self, states: Any, output: Any, *, packed: bool) -> int:
        """Rows of the feed-forward products in a call that has just returned."""
        ...


def serve(contestant: Contestant, inbox: Iterable[str], outbox: TextIO) -> None:
    """Answer every line of `inbox` on `outbox` until it ends."""
    workloads: dict[str, list[Fields]] = {}
    for line in inbox:
        try:
            reply = _reply(contestant, workloads, json.loads(line))
        except Exception as error:
            reply = {"error": described(error)}
        send(outbox, reply)


def send(outbox: TextIO, message: Mapping[str, Any]) -> None:
    outbox.write(json.dumps(message) + "\n")
    outbox.flush()


def described(error: Exception) -> dict[str, Any]:
    """An error as JSON: one of ours with its parts, any other with its kind and text."""
    if isinstance(error, WarmstartError):
        return {"kind": type(error).__name__, **error.as_dict()}
    return {"kind": type(error).__name__, "what": str(error)[:2000]}


def _reply(contestant: Contestant, workloads: dict[str, list[Fields]], message: Mapping[str, Any]) -> dict[str, Any]:
    ask = message["ask"]
    if ask == "peak":
        return {"gflops": _gemm_peak(contestant)}
    if ask == "rows":
        workloads[message["workload"]] = message["rows"]
        return {}
    rows, setting = workloads[message["workload"]], message["setting"]
    if not message["survey"]:
        return _timed(lambda: contestant.answers(rows, setting))[1]
    if contestant.model is None:
        answers, measured = _timed(lambda: contestant.answers(rows, setting))
        positions = contestant.positions(rows, setting) if isinstance(contestant, Gauged) else None
    else:
        # The hook that counts is called once a batch: nothing beside what the batch costs.
        (answers, measured), positions = count_positions(
            contestant.model, lambda: _timed(lambda: contestant.answers(rows, setting))
        )
    tokens = contestant.tokens(rows) if isinstance(contestant, Counting) else None
    return {**measured, "survey": {"answers": answers, "tokens": tokens, "positions": positions}}


def _timed(run: Callable[[], T]) -> tuple[T, dict[str, Any]]:
    gc.collect()  # the last run's garbage is not this one's
    forget_peak_memory()
    cpu, wall = time.process_time(), time.perf_counter()
    found = run()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return found, {"seconds": wall, "cpu_seconds": cpu, "peak_mb": peak_memory_mb()}


def count_positions(model: Any, run: Callable[[], T]) -> tuple[T, int | None]:
    """What `run` gives, and the token positions that passed the model's largest linear layer meanwhile; None if none.

    The count is of what was computed: padding that is skipped does not count, whoever skips it; rows of zeros that a
    product is rounded up by do.
    """
    seen = 0

    def count(module: Any, inputs: tuple[Any, ...], output: Any) -> None:
        nonlocal seen
        seen += inputs[0].numel() // module.in_features

    def count_layer(module: Any, inputs: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        nonlocal seen
        states = inputs[0] if inputs else named["hidden_states"]
        seen += vars(module)["forward"].rows_computed(states, output, packed=named.get("pack") is not None)

    layer = _largest_linear(model)
    if layer is None:
        return run(), None
    around = [m for m in model.modules() if isinstance(vars(m).get("forward"), RowCounting) and layer in m.modules()]
    if around:  # a hook inside would switch the layer to other code than is timed
        handle = around[0].register_forward_hook(count_layer, with_kwargs=True)
    else:
        handle = layer.register_forward_hook(count)
    try:
        found = run()
    finally:
        handle.remove()
    return found, seen or None


def _gemm_peak(contestant: Contestant) -> float | None:
    if contestant.model is None:
        return contestant.gemm_peak() if isinstance(contestant, Gauged) else None
    layer = _largest_linear(contestant.model)
    if layer is None:
        return None
    torch = sys.modules["torch"]  # whose layer it is; a worker may well live without

    weight = layer.weight.detach()  # (out, in)
    ways: list[Callable[[Any], object]] = [lambda x: x.matmul(weight.t())]
    if weight.device.type == "cpu" and weight.dtype == torch.float32 and torch.backends.mkldnn.is_available():
        ways.append(lambda x: torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], ""))
    best = 0.0
    with torch.inference_mode():
        for rows in PEAK_ROWS:
            operand = weight.new_empty((rows, weight.shape[1])).normal_()
            seconds = min(fastest(partial(way, operand)) for way in ways)
            best = max(best, 2 * rows * weight.numel() / seconds / 1e9)
    return best


def fastest(run: Callable[[], object], *, seconds: float = PEAK_SECONDS) -> float:
    """The shortest time of one call, over as many as fit into `seconds`, after one that warms up."""
    run()
    best, end = float("inf"), time.perf_counter() + seconds
    while (started := time.perf_counter()) < end:
        run()
        best = min(best, time.perf_counter() - started)
    return best


def _largest_linear(model: Any) -> Any:
    """The first of the largest linear layers. By the name of its class: a worker may well live without torch."""
    layers = [module for module in model.modules() if type(module).__name__ == "Linear"]
    return max(layers, key=lambda layer: layer.in_features * layer.out_features, default=None)


def peak_memory_mb() -> float | None:
    """The most memory this process has held at once, in MB (10^6 bytes), since `forget_peak_memory`. Linux only."""
    # Not `getrusage`: after an exec it still tells the parent's peak.
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    lines = dict(line.partition(":")[::2] for line in status.splitlines())
    return int(lines["VmHWM"].split()[0]) * 1024 / 1e6 if "VmHWM" in lines else None


def forget_peak_memory() -> None:
    """Let the peak begin anew from what is held now, where the kernel can."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return  # the peak is then that of the process's whole life, which is more and never less


def pin(cores: Sequence[int]) -> None:
    """Run on these cores only, where the system can say so."""
    if sys.platform == "linux" and cores:
        os.sched_setaffinity(0, cores)


def main(start: Callable[[Mapping[str, Any]], Contestant]) -> None:
    """Load a contestant and serve it until stdin ends."""
    # Before anything is imported that may print: stdout is the protocol's alone.
    outbox = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    settings = json.loads(sys.stdin.readline())
    pin(settings["cores"])
    try:
        contestant = start(settings)
    except Exception as error:
        send(outbox, {"error": described(error)})
        return
    send(outbox, {"facts": contestant.facts})
    serve(contestant, sys.stdin, outbox)


if __name__ == "__main__":
    main(lambda settings: importlib.import_module(sys.argv[1]).start(settings))
