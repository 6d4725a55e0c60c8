"""An exported graph under ONNX Runtime, on the CPU. Imports neither torch nor transformers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from warmstart.batching import Shapes
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

_QUIET = 3  # errors only


@dataclass(frozen=True)
class OnnxRuntime:
    """An open session; several threads may run it."""

    session: Any
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    shapes: Shapes
    packed: bool  # the graph drops padding itself
    device: str = "cpu"

    def run(self, batch: Batch) -> dict[str, Array]:
        """Each output as an array whose first axis is the batch's features.

        Raises MemoryError where the machine has not enough for the batch.
        """
        inputs = inputs_of(batch, self.inputs, packed=self.packed)
        try:
            return dict(zip(self.outputs, self.session.run(list(self.outputs), inputs), strict=True))
        except ort_errors.RuntimeException as error:
            if is_out_of_memory(error):
                raise MemoryError(str(error)) from error
            raise


def open_graph(
    graph: Path, *, precision: str, inputs: tuple[str, ...], outputs: Outputs, limit: int, packed: bool
) -> OnnxRuntime:
    """The runtime of an ONNX file. Raises CheckpointError `graph-unusable`, `export-record-mismatch`."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = _QUIET
    try:
        session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    except (
        ort_errors.Fail,
        ort_errors.InvalidArgument,
        ort_errors.InvalidGraph,
        ort_errors.InvalidProtobuf,
        ort_errors.NotImplemented,
        ort_errors.RuntimeException,
    ) as error:
        raise unreadable(graph, "ONNX Runtime", error) from error
    check_names(
        graph,
        inputs=input_names(inputs, packed=packed),
        outputs=outputs,
        found_inputs=[port.name for port in session.get_inputs()],
        found_outputs={
            port.name: [axis if isinstance(axis, int) else None for axis in port.shape]
            for port in session.get_outputs()
        },
    )
    shapes = shapes_of(precision, limit=limit, rounded=False, packed=packed)
    return OnnxRuntime(session, inputs, tuple(name for name, _ in outputs), shapes, packed)
