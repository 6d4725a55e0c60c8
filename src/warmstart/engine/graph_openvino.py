"""From a traced graph to an OpenVINO file, in float32 or with its matrix products in int8.

int8 is NNCF's static post-training quantization: weights by output channel, activations by ranges seen on calibration
rows, after SmoothQuant (Xiao et al. 2023, "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large
Language Models") and after outlier channels were parted (`openvino_outliers`). Attention and what runs once a text
(pooler, head) stay in float32, as do the products whose inputs have too long a tail for eight bits even so. What the
heads give is moved to the mean it had in float.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nncf
import numpy as np
import openvino
from openvino.tools.ovc import convert_model

from warmstart.engine.graph import Traced, quiet
from warmstart.engine.graph_ranges import Ranges
from warmstart.engine.graph_runtime import MASK
from warmstart.engine.openvino_inside import once_a_text, per_token, source, values
from warmstart.engine.openvino_outliers import part_outliers
from warmstart.features import Array

# Whether a graph is quicker where it drops padding itself (decision 27).
PACKS = True
_SMOOTH = 0.8  # SmoothQuant's alpha; 0.5 to 0.95 were measured (docs/log.md)


@dataclass(frozen=True)
class OpenVinoGraph:
    """A converted graph, in memory."""

    model: Any

    def write(self, path: Path) -> None:
        """`path` (.xml) and its weights beside it (.bin)."""
        openvino.save_model(self.model, str(path), compress_to_fp16=False)


def convert(traced: Traced) -> OpenVinoGraph:
    """The graph in OpenVINO's form, its inputs and outputs under their names."""
    with quiet():
        model = convert_model(traced.program)
    # In order: a port's own name is the tracer's, and an input that the model does not read may have none.
    for port, name in zip(model.inputs, traced.names, strict=True):
        port.get_tensor().set_names({name})
    for port, (name, _) in zip(model.outputs, traced.outputs, strict=True):
        port.get_tensor().set_names({name})
    return OpenVinoGraph(model)


@dataclass(frozen=True)
class Quantizer:
    """A graph that is ready for int8: its outliers computed apart, its products in order.

    `products`: the matrix products with weights that run for every token, in the order in which eight bits hurt their
    inputs (`Ranges.loss` on the calibration batches).
    """

    model: Any
    batches: Sequence[Mapping[str, Array]]
    outliers: tuple[str, ...]  # the small products of `openvino_outliers`
    products: tuple[str, ...]
    ranges: str = "of the rows (static)"
    rows_decide: str = "ranges, outliers, and the order in which products stay in float"

    @classmethod
    def of(cls, graph: OpenVinoGraph, batches: Sequence[Mapping[str, Array]]) -> Quantizer:
        """`batches`: the calibration rows."""
        model = graph.model.clone()
        outliers = part_outliers(model, batches)
        return cls(model, batches, outliers, _hardest(model, batches, besides=outliers))

    def quantize(self, in_float: Sequence[str]) -> OpenVinoGraph:
        """The graph with its products in int8, but for those named `in_float`."""
        kept = [*once_a_text(self.model), *self.outliers, *in_float]
        parameters = nncf.AdvancedQuantizationParameters(
            smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(matmul=_SMOOTH)
        )
        with quiet():
            model = nncf.quantize(
                self.model.clone(),
                nncf.Dataset(self.batches, dict),
                model_type=nncf.ModelType.TRANSFORMER,
                preset=nncf.QuantizationPreset.MIXED,
                subset_size=len(self.batches),
                ignored_scope=nncf.IgnoredScope(names=kept, types=["ScaledDotProductAttention"], validate=False),
                advanced_parameters=parameters,
            )
        _recentre(model, self.model, self.batches)
        return OpenVinoGraph(model)


def _recentre(model: Any, original: Any, batches: Sequence[Mapping[str, Array]]) -> None:
    """Move the bias of each output that is a head's product, in place, to where `batches` have the original's mean.

    NNCF corrects the mean error of each product over all tokens. That of the token a head reads is another: the
    starter's logits were off by 0.03, each to its side.
    """
    once = set(once_a_text(model))
    heads = [node for result in model.get_results() if (node := _addition(result, once)) is not None]
    if not heads:
        return
    wanted, found = (_means(each, heads, batches) for each in (original, model))
    for node, mean, now in zip(heads, wanted, found, strict=True):
        bias = node.input_value(1).get_node().get_data()
        moved = bias + (mean - now).astype(np.float32).reshape(bias.shape)
        node.input(1).replace_source_output(openvino.op.Constant(moved).output(0))


def _addition(result: Any, products: Collection[str]) -> Any:
    """The addition of a constant to one of `products` that `result` gives; None where it gives something else."""
    node = result.input_value(0).get_node()
    if node.get_type_name() != "Add" or node.input_value(0).get_node().get_friendly_name() not in products:
        return None
    return node if node.input_value(1).get_node().get_type_name() == "Constant" else None


def _means(model: Any, nodes: Sequence[Any], batches: Sequence[Mapping[str, Array]]) -> list[Array]:
    """The mean over rows of what each of `nodes` gives, whose shape is (B, N)."""
    each = list(zip(*values(model, [(node.get_friendly_name(), 0) for node in nodes], batches), strict=True))
    return [np.concatenate(arrays).mean(axis=0, dtype=np.float64) for arrays in each]


def _hardest(model: Any, batches: Sequence[Mapping[str, Array]], *, besides: Collection[str]) -> tuple[str, ...]:
    products = [node for node in per_token(model) if node.get_friendly_name() not in besides]
    sources = list(dict.fromkeys(map(source, products)))
    ranges = Ranges(len(sources))
    for batch, arrays in zip(batches, values(model, sources, batches), strict=True):
        ranges.add(arrays, batch.get(MASK))
    loss = dict(zip(sources, ranges.loss(), strict=True))
    return tuple(node.get_friendly_name() for node in sorted(products, key=lambda node: -loss[source(node)]))
