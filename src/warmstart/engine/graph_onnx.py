"""From a traced graph to an ONNX file, in float32 or with its matrix products in int8.

int8 is ONNX Runtime's dynamic quantization: weights by output channel, activations by the range of each batch, so
that nothing is calibrated (decision 0021); rows only say which products eight bits hurt most.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic

from warmstart.durable import temporary_folder
from warmstart.engine.graph import Traced, quiet
from warmstart.engine.graph_ranges import Ranges
from warmstart.engine.graph_runtime import MASK
from warmstart.features import Array

# Whether a graph is quicker where it drops padding itself: of 10 reviews by a tenth, of one it takes 7 % longer, and
# in int8, where each batch has ranges of its own, more had to stay in float (decision 27).
PACKS = False
OPSET = 18
_OUTPUT = "warmstart.output."


@dataclass(frozen=True)
class OnnxGraph:
    """A converted graph, in memory."""

    model: Any  # onnx.ModelProto

    def write(self, path: Path) -> None:
        """One file, weights included."""
        onnx.save_model(self.model, str(path), save_as_external_data=False)


def convert(traced: Traced) -> OnnxGraph:
    """The graph in ONNX's form, its inputs and outputs under the task's names."""
    with quiet():
        program = torch.onnx.export(
            traced.program,
            input_names=list(traced.names),
            output_names=[f"{_OUTPUT}{i}" for i in range(len(traced.outputs))],
            opset_version=OPSET,
            dynamo=True,
            optimize=True,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    model.graph.doc_string = ""
    for node in model.graph.node:  # each carries where in the source it was traced, paths of this machine included
        del node.metadata_props[:]
        node.doc_string = ""
    for i, (name, _) in enumerate(traced.outputs):
        _rename(model.graph, name, f"{name}_inside")  # a value of the tracer's may be called so: `embedding`
        _rename(model.graph, f"{_OUTPUT}{i}", name)
    return OnnxGraph(model)


def _rename(graph: Any, old: str, new: str) -> None:
    """Call a value of the graph otherwise, wherever it is named."""
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [new if name == old else name for name in names]
    for value in (*graph.output, *graph.value_info, *graph.initializer):
        if value.name == old:
            value.name = new


@dataclass(frozen=True)
class Quantizer:
    """A graph that is ready for int8, and its products in order, as `graph_openvino.Quantizer` has them."""

    graph: OnnxGraph
    products: tuple[str, ...]
    outliers: tuple[str, ...] = ()  # none: each batch has its own ranges
    ranges: str = "of each batch, when the graph runs (dynamic)"
    rows_decide: str = "the order in which products stay in float"

    @classmethod
    def of(cls, graph: OnnxGraph, batches: Sequence[Mapping[str, Array]]) -> Quantizer:
        """`batches`: the calibration rows, by which the products are ordered; ranges are found when the graph runs."""
        return cls(graph, _hardest(graph, batches))

    def quantize(self, in_float: Sequence[str]) -> OnnxGraph:
        """The graph with its products in int8, but for those named `in_float`."""
        names = set(self.products) - set(in_float)
        with temporary_folder("warmstart-export") as work, quiet():
            before, after = work / "fp32.onnx", work / "int8.onnx"
            self.graph.write(before)
            quantize_dynamic(
                before, after, nodes_to_quantize=sorted(names), per_channel=True, weight_type=QuantType.QInt8
            )
            return OnnxGraph(onnx.load_model(str(after)))


def _hardest(graph: OnnxGraph, batches: Iterable[Mapping[str, Array]]) -> tuple[str, ...]:
    products = _products(graph.model)
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    sources = list(dict.fromkeys(products.values()))
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in sources)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    ranges = Ranges(len(sources))
    for batch in batches:
        ranges.add(session.run(sources, dict(batch)), batch.get(MASK))
    loss = dict(zip(sources, ranges.loss(), strict=True))
    return tuple(sorted(products, key=lambda name: -loss[products[name]]))


def _products(model: Any) -> dict[str, str]:
    """The input of each matrix product by a constant that runs for every token, by the product's name."""
    constants = {tensor.name for tensor in model.graph.initializer}
    return {
        node.name: node.input[0] for node in model.graph.node if node.op_type == "MatMul" and node.input[1] in constants
    }
