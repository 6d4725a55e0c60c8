"""What executes a batch, and the walk from rows to predictions. Importing this imports no torch."""

from __future__ import annotations

import importlib.util
import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from warmstart.engine.graph_runtime import Outputs
from warmstart.engine.predict import MAX_TOKENS, Runtime, by_row, decode_row, frozen, predict, prepare, run_batch
from warmstart.engine.streaming import TextStream
from warmstart.errors import UsageError
from warmstart.tasks import Task

__all__ = [
    "MAX_TOKENS",
    "Runtime",
    "TextStream",
    "by_row",
    "decode_row",
    "frozen",
    "graph_runtime",
    "graph_writer",
    "predict",
    "prepare",
    "resolve_device",
    "run_batch",
    "torch_runtime",
]

# What each format needs installed, and the extra that brings it.
_NEEDS = {"openvino": ("openvino",), "onnx": ("onnxruntime",)}
_WRITING_NEEDS = {"openvino": ("openvino", "nncf"), "onnx": ("onnxruntime", "onnx", "onnxscript")}


def torch_runtime(model: Any, task: Task, *, device: str = "auto") -> Runtime:
    """The reference runtime: the model itself, moved to `device` ("auto", "cpu", "cuda", "cuda:1", "mps"), and
    padding-free from here on where its architecture allows it (`warmstart.engine.unpad`).

    Raises UsageError "device-unknown" or "device-unavailable".
    """
    from warmstart.engine.devices import resolve
    from warmstart.engine.runtime_torch import TorchRuntime
    from warmstart.engine.unpad import unpad_if_supported

    resolved = resolve(device)
    return TorchRuntime(model=unpad_if_supported(model.to(resolved)), task=task, device=resolved)


def resolve_device(name: str) -> str:
    """See `warmstart.engine.devices.resolve`."""
    from warmstart.engine import devices

    return devices.resolve(name)


def graph_runtime(
    format: str,
    graph: Path,
    *,
    precision: str,
    inputs: tuple[str, ...],
    outputs: Outputs,
    limit: int,
    packed: bool,
    digest: str,
    cache: Path | None,
) -> Runtime:
    """The runtime of an exported graph, by the name of its format; `limit`: the most tokens it takes; `packed`: it
    drops padding itself. Imports neither torch nor transformers.

    Raises UsageError `extra-missing`; CheckpointError `graph-unusable`, `export-record-mismatch`.
    """
    _check_installed(format, _NEEDS[format])
    if format == "onnx":
        from warmstart.engine import runtime_onnx

        return runtime_onnx.open_graph(
            graph, precision=precision, inputs=inputs, outputs=outputs, limit=limit, packed=packed
        )
    with _without_telemetry():
        from warmstart.engine import runtime_openvino
    return runtime_openvino.open_graph(
        graph,
        precision=precision,
        inputs=inputs,
        outputs=outputs,
        limit=limit,
        packed=packed,
        digest=digest,
        cache=cache,
    )


def graph_writer(format: str) -> Any:
    """The module that writes graphs of a format. Raises UsageError `extra-missing`."""
    _check_installed(format, _WRITING_NEEDS[format])
    if format == "onnx":
        from warmstart.engine import graph_onnx

        return graph_onnx
    # nncf logs to what stdout is when it is imported; a command's stdout is for its results.
    with _without_telemetry(), redirect_stdout(io.StringIO()):
        from warmstart.engine import graph_openvino
    return graph_openvino


def _check_installed(format: str, packages: tuple[str, ...]) -> None:
    absent = [name for name in packages if name not in sys.modules and importlib.util.find_spec(name) is None]
    if absent:
        raise UsageError(
            "extra-missing",
            f"{format} needs {' and '.join(absent)}, which {'is' if len(absent) == 1 else 'are'} not installed",
            value=absent,
            fix=f"pip install warmstart[{format}]",
        )


@contextmanager
def _without_telemetry() -> Iterator[None]:
    """OpenVINO and nncf report their use to their makers from the moment they are imported. Not when we import them:
    without the package that does it, both go on without a word."""
    name = "openvino_telemetry"
    if name in sys.modules:  # somebody else imported them, and had the choice
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]  # Python's own way to say: not to be found
    try:
        yield
    finally:
        del sys.modules[name]
