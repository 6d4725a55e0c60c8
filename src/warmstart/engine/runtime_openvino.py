"""An exported graph under OpenVINO, on the CPU. Imports neither torch nor transformers.

Compiling a graph takes a few times as long as reading what was compiled, so that is kept on the disk, by the digest of
the graph, the processor, the settings and OpenVINO's version.
"""

from __future__ import annotations

import hashlib
import logging
import os
import zlib
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import openvino

from warmstart.batching import Shapes
from warmstart.durable import held, remove_left
from warmstart.engine.graph_runtime import (
    Outputs,
    check_names,
    input_names,
    inputs_of,
    shapes_of,
    threads,
    unreadable,
)
from warmstart.errors import is_out_of_memory
from warmstart.features import Array, Batch

log = logging.getLogger("warmstart")

_KEPT = 8  # compiled graphs in the cache
# A cached file ends with the CRC-32 of what stands before it: this is about torn writes, not about attackers.
_CHECK_BYTES = 4


@dataclass(frozen=True)
class OpenVinoRuntime:
    """A compiled graph; several threads may run it."""

    compiled: Any
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    shapes: Shapes
    packed: bool  # the graph drops padding itself
    memory: Any = field(default=None, repr=False, compare=False)  # the mapped file that `compiled` may read from
    device: str = "cpu"
    _requests: deque[Any] = field(default_factory=deque, init=False, repr=False, compare=False)

    def run(self, batch: Batch) -> dict[str, Array]:
        """Each output as an array whose first axis is the batch's features.

        Raises MemoryError where the machine has not enough for the batch.
        """
        inputs = inputs_of(batch, self.inputs, packed=self.packed)
        try:
            request = self._requests.pop()
        except IndexError:  # each is in use by another thread
            request = self.compiled.create_infer_request()
        try:
            results = request.infer(inputs)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise MemoryError(str(error)) from error
            raise
        outputs = {name: results[name] for name in self.outputs}  # copies: the request's own memory is used again
        self._requests.append(request)
        return outputs


def open_graph(
    graph: Path,
    *,
    precision: str,
    inputs: tuple[str, ...],
    outputs: Outputs,
    limit: int,
    packed: bool,
    digest: str,
    cache: Path | None,
) -> OpenVinoRuntime:
    """The runtime of an OpenVINO file. `digest` is that of its content; compiled graphs are kept below `cache`.

    What int8 leaves in float is computed in bfloat16 where the processor has it: on an AVX-512 one 1.4 times as fast.

    Raises CheckpointError `graph-unusable`, `export-record-mismatch`.
    """
    core = shared_core()
    # Without a hint a processor that has bfloat16 computes in it, and fp32 would not mean fp32.
    rounds = precision == "int8" and "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    hint = "bf16" if rounds else "f32"
    settings = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": threads(), "NUM_STREAMS": 1}
    kept = None if cache is None else cache / "openvino" / f"{_key(core, settings, digest)}.blob"
    try:
        compiled, memory = (None, None) if kept is None else _read(core, kept, settings)
        if compiled is None:
            compiled = core.compile_model(str(graph), "CPU", settings)
            if kept is not None:
                _keep(compiled, kept)
        found_inputs = [port.get_any_name() for port in compiled.inputs]
        found_outputs = {port.get_any_name(): _axes(port) for port in compiled.outputs}
    except RuntimeError as error:
        raise unreadable(graph, "OpenVINO", error) from error
    check_names(
        graph,
        inputs=input_names(inputs, packed=packed),
        outputs=outputs,
        found_inputs=found_inputs,
        found_outputs=found_outputs,
    )
    # For each shape it meets OpenVINO prepares every step anew, and keeps what it made.
    shapes = shapes_of(precision, limit=limit, rounded=True, packed=packed)
    return OpenVinoRuntime(compiled, inputs, tuple(name for name, _ in outputs), shapes, packed, memory)


@cache
def shared_core() -> Any:
    """The one `openvino.Core` of this process, which is never let go.

    Each core gives the thread that makes it a stack for signal handlers, and frees it when it goes. Where two are alive
    and the older goes first, the younger puts the freed one back, and the next signal (Ctrl-C, a child that ends) kills
    the process.
    """
    return openvino.Core()


def _axes(port: Any) -> list[int | None]:
    return [None if axis.is_dynamic else axis.get_length() for axis in port.get_partial_shape()]


def _key(core: Any, settings: Mapping[str, Any], digest: str) -> str:
    # The settings hold the number of threads; a compiled graph is made for one.
    facts = [
        digest,
        openvino.get_version(),
        core.get_property("CPU", "FULL_DEVICE_NAME"),
        core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"),
        os.cpu_count(),
        sorted(settings.items()),
    ]
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:40]


def _read(core: Any, kept: Path, settings: Mapping[str, Any]) -> tuple[Any, Any]:
    """What was compiled before, and the memory it lies in; None and None where there is nothing usable."""
    try:
        # Mapped, not read: what OpenVINO does not touch costs nothing.
        content = np.memmap(kept, dtype=np.uint8, mode="c")  # OpenVINO takes no memory that it may not write to
        graph = content[:-_CHECK_BYTES]
        if _check(graph.data) != content[-_CHECK_BYTES:].tobytes():
            raise ValueError("its content has changed")
        compiled = core.import_model(openvino.Tensor(graph, shared_memory=True), "CPU", dict(settings))
        with suppress(OSError):
            os.utime(kept)  # what was not used for longest goes first
        return compiled, graph
    except FileNotFoundError:
        return None, None
    except (OSError, ValueError, RuntimeError) as error:
        log.info("the compiled graph in the cache is not used: %s", error)
        return None, None


def _check(content: bytes | memoryview) -> bytes:
    return zlib.crc32(content).to_bytes(_CHECK_BYTES, "little")


def _keep(compiled: Any, kept: Path) -> None:
    """Write a compiled graph, whole or not at all; a cache that cannot be written is no reason to fail."""
    try:
        content = compiled.export_model().getvalue()
        kept.parent.mkdir(parents=True, exist_ok=True)
        remove_left(kept)
        with held(kept, Path.touch) as temporary:  # not flushed: its check tells what a power cut took
            temporary.write_bytes(content + _check(content))
            temporary.replace(kept)
        others = sorted(kept.parent.glob("*.blob"), key=lambda path: path.stat().st_mtime, reverse=True)
        for path in others[_KEPT:]:
            path.unlink(missing_ok=True)
    except (OSError, RuntimeError) as error:
        log.info("the compiled graph is not kept: %s", error)
