"""What the computation of one of BERT's layers reads: its weights, and what it does beside them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from warmstart.engine.packing import Pack


class Shape(NamedTuple):
    """What a layer does, beside its weights."""

    blocks: Sequence[tuple[int, int, int]]  # (start, rows, length) of each run
    width: int  # of a head
    scaling: float
    eps: tuple[float, float]  # of the norms after attention and feed-forward
    drop: tuple[float, float, float]  # attention weights, attention's output, feed-forward's output


class Weights(NamedTuple):
    wq: Tensor
    bq: Tensor
    wk: Tensor
    bk: Tensor
    wv: Tensor
    bv: Tensor
    wo: Tensor
    bo: Tensor
    g1: Tensor
    b1: Tensor
    wi: Tensor
    bi: Tensor
    wf: Tensor
    bf: Tensor
    g2: Tensor
    b2: Tensor


def read(layer: Any, pack: Pack) -> tuple[Shape, Weights]:
    return shape_of(layer, pack.blocks()), weights_of(layer)


def shape_of(layer: Any, blocks: Sequence[tuple[int, int, int]]) -> Shape:
    attention, attended, output = layer.attention.self, layer.attention.output, layer.output
    drops = [each.dropout.p if each.dropout.training else 0.0 for each in (attention, attended, output)]
    return Shape(
        blocks,
        attention.attention_head_size,
        attention.scaling,
        (attended.LayerNorm.eps, output.LayerNorm.eps),
        (drops[0], drops[1], drops[2]),
    )


def weights_of(layer: Any) -> Weights:
    attention, attended, inner, output = layer.attention.self, layer.attention.output, layer.intermediate, layer.output
    parts = (
        attention.query, attention.key, attention.value, attended.dense, attended.LayerNorm, inner.dense, output.dense,
        output.LayerNorm,
    )  # fmt: skip
    return Weights(*(tensor for part in parts for tensor in (part.weight, part.bias)))
