"""What stands inside an OpenVINO model: the matrix products that carry its weights, and values while it runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import openvino

from warmstart.engine.runtime_openvino import shared_core
from warmstart.features import Array

_EXACT = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}

Value = tuple[str, int]  # the name of a node, and which of its outputs


def per_token(model: Any) -> list[Any]:
    """The nodes of products by a constant that run for every token, in the graph's order."""
    return [node for node in by_constants(model) if not _is_once_a_text(node)]


def once_a_text(model: Any) -> list[str]:
    """The names of products of inputs (B, H): a pooler or head, which costs nothing and decides everything."""
    return [node.get_friendly_name() for node in by_constants(model) if _is_once_a_text(node)]


def by_constants(model: Any) -> list[Any]:
    """All matrix products by a constant."""
    nodes = [node for node in model.get_ordered_ops() if node.get_type_name() == "MatMul"]
    return [node for node in nodes if _is_constant(node.input_value(1).get_node())]


def source(node: Any) -> Value:
    """Which value a node reads first."""
    value = node.input_value(0)
    return value.get_node().get_friendly_name(), value.get_index()


def values(model: Any, wanted: Sequence[Value], batches: Iterable[Mapping[str, Array]]) -> Iterator[list[Array]]:
    """For each batch the `wanted` values, computed in float32 on one thread."""
    watched = model.clone()
    nodes = {node.get_friendly_name(): node for node in watched.get_ordered_ops()}
    results = [nodes[name].output(index) for name, index in wanted]
    model = openvino.Model(results, watched.get_parameters())
    compiled = shared_core().compile_model(model, "CPU", _EXACT)
    for batch in batches:
        found = compiled(dict(batch))
        yield [found[i] for i in range(len(wanted))]


def _is_once_a_text(node: Any) -> bool:
    return bool(node.input_value(0).get_partial_shape().rank.get_length() == 2)


def _is_constant(node: Any) -> bool:
    while node.get_type_name() in ("Convert", "Multiply", "Transpose", "Reshape"):
        node = node.input_value(0).get_node()
    return bool(node.get_type_name() == "Constant")
