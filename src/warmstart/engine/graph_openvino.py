"""From a traced graph to an OpenVINO file, in float32 or with its matrix products in int8.

int8 is NNCF's static post-training quantization: weights by output channel, activations by ranges seen on calibration
rows, after SmoothQuant (Xiao et al. 2023, "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large
Language Models"). Attention and what runs once a text (pooler, head) stay in float32, as do the products whose inputs
have too long a tail for eight bits. What the heads give is moved to the mean it had in float.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nncf
import numpy as np
import openvino
from openvino.tools.ovc import convert_model

from warmstart.engine.graph import Traced, quiet
from warmstart.engine.graph_ranges import Ranges
from warmstart.engine.runtime_openvino import shared_core
from warmstart.features import Array

_SMOOTH = 0.8  # SmoothQuant's alpha; 0.5 to 0.95 were measured (docs/log.md)
_EXACT = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}


@dataclass(frozen=True)
class OpenVinoGraph:
    """A converted graph, in memory."""

    model: Any

    def write(self, path: Path) -> None:
        """`path` (.xml) and its weights beside it (.bin)."""
        openvino.save_model(self.model, str(path), compress_to_fp16=False)


def convert(traced: Traced) -> OpenVinoGraph:
    """The graph in OpenVINO's form, its inputs and outputs under the task's names."""
    with quiet():
        model = convert_model(traced.program)
    # In order: a port's own name is the tracer's, and an input that the model does not read may have none.
    for port, name in zip(model.inputs, traced.inputs, strict=True):
        port.get_tensor().set_names({name})
    for port, (name, _) in zip(model.outputs, traced.outputs, strict=True):
        port.get_tensor().set_names({name})
    return OpenVinoGraph(model)


def quantize(graph: OpenVinoGraph, batches: Sequence[Mapping[str, Array]], *, in_float: Sequence[str]) -> OpenVinoGraph:
    """The graph with its large matrix products in int8, but for those named `in_float`."""
    kept = [*_once_a_text(graph.model), *in_float]
    parameters = nncf.AdvancedQuantizationParameters(
        smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(matmul=_SMOOTH)
    )
    with quiet():
        model = nncf.quantize(
            graph.model.clone(),
            nncf.Dataset(batches, dict),
            model_type=nncf.ModelType.TRANSFORMER,
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(batches),
            ignored_scope=nncf.IgnoredScope(names=kept, types=["ScaledDotProductAttention"], validate=False),
            advanced_parameters=parameters,
        )
    _recentre(model, graph.model, batches)
    return OpenVinoGraph(model)


def _recentre(model: Any, original: Any, batches: Sequence[Mapping[str, Array]]) -> None:
    """Move the bias of each output that is a head's product, in place, to where `batches` have the original's mean.

    NNCF corrects the mean error of each product over all tokens. That of the token a head reads is another: the
    starter's logits were off by 0.03, each to its side.
    """
    once = set(_once_a_text(model))
    heads = {i: node for i, result in enumerate(model.get_results()) if (node := _addition(result, once)) is not None}
    if not heads:
        return
    wanted, found = (_means(each, sorted(heads), batches) for each in (original, model))
    for i, node in heads.items():
        bias = node.input_value(1).get_node()
        moved = bias.get_data() + (wanted[i] - found[i]).astype(np.float32).reshape(bias.get_data().shape)
        node.input(1).replace_source_output(openvino.op.Constant(moved).output(0))


def _addition(result: Any, products: Collection[str]) -> Any:
    """The addition of a constant to one of `products` that `result` gives; None where it gives something else."""
    node = result.input_value(0).get_node()
    if node.get_type_name() != "Add" or node.input_value(0).get_node().get_friendly_name() not in products:
        return None
    return node if node.input_value(1).get_node().get_type_name() == "Constant" else None


def _means(model: Any, outputs: Sequence[int], batches: Sequence[Mapping[str, Array]]) -> dict[int, Array]:
    """The mean over rows of each of `outputs`, whose shape is (B, N)."""
    compiled = shared_core().compile_model(model, "CPU", _EXACT)
    results = [compiled(dict(batch)) for batch in batches]
    return {i: np.concatenate([each[i] for each in results]).mean(axis=0, dtype=np.float64) for i in outputs}


def hardest_products(graph: OpenVinoGraph, batches: Iterable[Mapping[str, Array]]) -> list[str]:
    """The matrix products with weights that run for every token, in the order in which eight bits hurt their inputs.

    The measure is `Ranges.loss` of their inputs on these batches.
    """
    model = graph.model.clone()
    products = [node for node in _products(model) if node.get_friendly_name() not in _once_a_text(model)]
    sources = {_source(node): node.input_value(0) for node in products}
    before = len(model.outputs)
    model.add_outputs(list(sources.values()))
    compiled = shared_core().compile_model(model, "CPU", _EXACT)
    ranges = Ranges(len(sources))
    for batch in batches:
        results = compiled(dict(batch))
        ranges.add([results[before + i] for i in range(len(sources))], batch.get("attention_mask"))
    by_source = dict(zip(sources, ranges.loss(), strict=True))
    return [n.get_friendly_name() for n in sorted(products, key=lambda node: -by_source[_source(node)])]


def _products(model: Any) -> list[Any]:
    """Matrix products by a constant."""
    nodes = [node for node in model.get_ordered_ops() if node.get_type_name() == "MatMul"]
    return [node for node in nodes if _is_constant(node.input_value(1).get_node())]


def _is_constant(node: Any) -> bool:
    while node.get_type_name() in ("Convert", "Multiply", "Transpose", "Reshape"):
        node = node.input_value(0).get_node()
    return bool(node.get_type_name() == "Constant")


def _once_a_text(model: Any) -> list[str]:
    """Products of inputs (B, H): a pooler or head, which costs nothing and decides everything."""
    return [
        node.get_friendly_name()
        for node in _products(model)
        if node.input_value(0).get_partial_shape().rank.get_length() == 2
    ]


def _source(node: Any) -> tuple[str, int]:
    value = node.input_value(0)
    return value.get_node().get_friendly_name(), value.get_index()
