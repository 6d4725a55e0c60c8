"""The few channels of an activation that are far larger than all others, computed apart from an int8 product.

Eight bits spread over the widest channel leave few steps for the rest: of MiniLM's first GELU one channel in 1,536
reaches 24, the seventeenth 5. Outlier channels in float beside a product in int8 are of Dettmers et al. 2022,
"LLM.int8()", who find them at each call. Here they are found once, on calibration rows, and the product before is
parted as well, so that nothing is gathered or masked when the graph runs: for `act(x·U + b)·W`, with S the outliers,

    act(x·U' + b')·W' + act(x·U[S] + b[S])·W[S]        U', b' and W' are zero at S, and act(0) = 0
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from openvino import opset13 as op

from warmstart.engine.graph_runtime import MASK
from warmstart.engine.openvino_inside import per_token, source, values
from warmstart.features import Array

_CHANNELS = 16  # a vector of an AVX-512 processor; 32 gained nothing more (docs/log.md)
_WORTH = 0.75  # the range of the others, as a share of the whole, above which nothing is parted

# Activations that leave 0 as it is, and how to build one more.
_ACTIVATIONS: Mapping[str, Callable[[Any, Any], Any]] = {
    "Gelu": lambda like, x: op.gelu(x, like.get_attributes()["approximation_mode"].lower()),
    "Relu": lambda like, x: op.relu(x),
}


@dataclass(frozen=True)
class _Pair:
    """A product whose input is an activation of another product and its bias, and that is read by nobody else."""

    first: Any
    bias: Any  # the addition
    constant: int  # which input of it is the bias
    activation: Any
    second: Any

    @classmethod
    def ending_at(cls, second: Any) -> _Pair | None:
        activation = second.input_value(0).get_node()
        if activation.get_type_name() not in _ACTIVATIONS or not _is_plain(second):
            return None
        bias = activation.input_value(0).get_node()
        if bias.get_type_name() != "Add":
            return None
        for constant in (0, 1):
            first = bias.input_value(1 - constant).get_node()
            given = bias.input_value(constant).get_node()
            if given.get_type_name() != "Constant" or given.get_data().size != second.input_value(1).get_shape()[1]:
                continue
            chain = (first, bias, activation)
            if first.get_type_name() == "MatMul" and _is_plain(first) and all(map(_has_one_reader, chain)):
                return cls(first, bias, constant, activation, second)
        return None

    def part(self, channels: Array) -> list[str]:
        """Compute `channels` apart, in place; the names of the two small products that do."""
        into, onto = _weights(self.first), _weights(self.second)  # (inner, H), (H, inner)
        bias = self.bias.input_value(self.constant).get_node().get_data()
        others = np.ones(len(into), dtype=np.float32)
        others[channels] = 0
        small = op.matmul(self.first.input_value(0), op.constant(into[channels]), False, True)
        active = _ACTIVATIONS[self.activation.get_type_name()](
            self.activation, op.add(small, op.constant(bias.reshape(-1)[channels]))
        )
        back = op.matmul(active, op.constant(np.ascontiguousarray(onto[:, channels])), False, True)
        readers = self.second.output(0).get_target_inputs()
        _give(self.first, 1, into * others[:, None])
        _give(self.bias, self.constant, (bias.reshape(-1) * others).reshape(bias.shape))
        _give(self.second, 1, onto * others)
        total = op.add(self.second.output(0), back.output(0)).output(0)
        for reader in readers:
            reader.replace_source_output(total)
        names = []
        for node, beside in ((small, self.first), (back, self.second)):
            names.append(f"{beside.get_friendly_name()}/outliers")
            node.set_friendly_name(names[-1])
        return names


def part_outliers(model: Any, batches: Sequence[Mapping[str, Array]]) -> tuple[str, ...]:
    """Compute outlier channels apart, in place, wherever it pays; the names of the small products that do.

    `batches`: the calibration rows.
    """
    pairs = [pair for node in per_token(model) if (pair := _Pair.ending_at(node)) is not None]
    # A product that ends one pair and begins another is parted once: the second pair would read it half parted.
    ends = {pair.second.get_friendly_name() for pair in pairs}
    pairs = [pair for pair in pairs if pair.first.get_friendly_name() not in ends]
    names: list[str] = []
    for pair, largest in zip(pairs, _largest(model, pairs, batches), strict=True):
        order = np.argsort(-largest, kind="stable")
        if len(order) > 2 * _CHANNELS and largest[order[_CHANNELS]] <= _WORTH * largest[order[0]]:
            names += pair.part(np.sort(order[:_CHANNELS]))
    model.validate_nodes_and_infer_types()
    return tuple(names)


def _largest(model: Any, pairs: Sequence[_Pair], batches: Sequence[Mapping[str, Array]]) -> list[Array]:
    """The largest absolute value of each channel of each pair's activation, at tokens."""
    found = [np.zeros(len(_weights(pair.first)), dtype=np.float32) for pair in pairs]
    for batch, activations in zip(batches, values(model, [source(p.second) for p in pairs], batches), strict=True):
        mask = batch.get(MASK)
        for largest, activation in zip(found, activations, strict=True):
            at_tokens = mask is not None and activation.shape[:2] == mask.shape
            some = np.abs(activation[mask == 1] if at_tokens else activation).reshape(-1, len(largest))
            np.maximum(largest, some.max(axis=0, initial=0), out=largest)
    return found


def _is_plain(product: Any) -> bool:
    """(…, in) times a constant (out, in) that is stored as it is used."""
    told = product.get_attributes()
    constant = product.input_value(1).get_node()
    return (
        constant.get_type_name() == "Constant"
        and len(constant.get_output_shape(0)) == 2
        and constant.get_element_type().get_type_name() == "f32"
        and told["transpose_b"]
        and not told["transpose_a"]
    )


def _weights(product: Any) -> Array:
    weights: Array = product.input_value(1).get_node().get_data()
    return weights


def _give(node: Any, place: int, values: Array) -> None:
    node.input(place).replace_source_output(op.constant(values.astype(np.float32)).output(0))


def _has_one_reader(node: Any) -> bool:
    return len(node.output(0).get_target_inputs()) == 1
