"""Outlier channels beside an int8 product: the same function in float, and a smaller error in eight bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import openvino
import pytest
from openvino import opset13 as op

from warmstart.engine import graph_openvino
from warmstart.engine.graph_openvino import OpenVinoGraph, Quantizer
from warmstart.engine.openvino_inside import source, values
from warmstart.engine.openvino_outliers import part_outliers
from warmstart.features import Array

WIDTH = 8


def feed_forward(
    *,
    inner: int = 80,
    far_out: tuple[int, ...] = (3, 7),
    activation: Callable[[Any], Any] = lambda x: op.gelu(x, "erf"),
) -> Any:
    """x (B, T, 8) → act(x·U + b)·W + c, where `far_out` channels of the activation are 40 or so and the rest below 4;
    without any all are alike."""
    rng = np.random.default_rng(0)
    states = op.parameter([-1, -1, WIDTH], np.float32, name="states")
    mask = op.parameter([-1, -1], np.int64, name="attention_mask")
    bias = np.zeros((1, 1, inner), dtype=np.float32)
    bias[..., list(far_out)] = 40
    onto = rng.normal(size=(WIDTH, inner)).astype(np.float32)
    into = rng.normal(size=(inner, WIDTH)).astype(np.float32) / 3
    into = into if far_out else np.repeat(into[:1], inner, axis=0)
    product = op.matmul(states, op.constant(into), False, True)
    active = activation(op.add(product, op.constant(bias)))
    output = op.matmul(active, op.constant(onto), False, True)
    result = op.add(output, op.constant(np.ones((1, 1, WIDTH), dtype=np.float32)))
    for node, name in ((product, "first"), (active, "active"), (output, "second")):
        node.set_friendly_name(name)
    for port, name in ((states, "states"), (mask, "attention_mask")):
        port.output(0).get_tensor().set_names({name})
    return openvino.Model([result], [states, mask])


def batches() -> list[dict[str, Array]]:
    """The last token of each row is padding, and enormous: it must not count."""
    rng = np.random.default_rng(1)
    found = []
    for length in (3, 9, 5):
        states = rng.normal(size=(4, length, WIDTH)).astype(np.float32)
        states[:, -1] *= 1e4
        mask = np.ones((4, length), dtype=np.int64)
        mask[:, -1] = 0
        found.append({"states": states, "attention_mask": mask})
    return found


def answers(model: Any) -> Array:
    """What the model gives at tokens: (tokens, 8)."""
    given = values(model, [source(model.get_results()[0])], batches())
    return np.concatenate([array[:, :-1].reshape(-1, WIDTH) for [array] in given])


def names(model: Any) -> set[str]:
    return {node.get_friendly_name() for node in model.get_ordered_ops()}


def test_parted_it_is_the_same_function() -> None:
    plain, parted = feed_forward(), feed_forward()
    added = part_outliers(parted, batches())
    assert added == ("first/outliers", "second/outliers") and set(added) <= names(parted)
    assert answers(parted) == pytest.approx(answers(plain), rel=1e-5, abs=1e-4)
    [active] = values(parted, [("active", 0)], batches()[:1])
    assert np.abs(active[0][:, :-1]).max() < 4, "what is left has no outliers"


def test_eight_bits_lose_less(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = OpenVinoGraph(feed_forward())
    before = names(graph.model)
    wanted = answers(graph.model)
    quantizer = Quantizer.of(graph, batches())
    assert quantizer.outliers == ("first/outliers", "second/outliers")
    assert sorted(quantizer.products) == ["first", "second"]
    assert names(graph.model) == before, "the graph itself is left as it was"
    error = np.square(answers(quantizer.quantize(()).model) - wanted).mean()
    monkeypatch.setattr(graph_openvino, "part_outliers", lambda model, batches: ())
    without = np.square(answers(Quantizer.of(graph, batches()).quantize(()).model) - wanted).mean()
    assert 0 < error < without / 4


@pytest.mark.parametrize(
    "settings",
    [{"far_out": ()}, {"activation": op.tanh}, {"inner": 24}],
    ids=["no channel stands out", "an activation that is not known", "few channels"],
)
def test_what_is_not_parted(settings: dict[str, Any]) -> None:
    model = feed_forward(**settings)
    before = names(model)
    assert part_outliers(model, batches()) == ()
    assert names(model) == before


def test_products_in_a_chain() -> None:
    """The second product of one pair is the first of the next: only one of both pairs is parted, and it stays right."""

    def chain() -> Any:
        rng = np.random.default_rng(2)
        states = op.parameter([-1, -1, WIDTH], np.float32, name="states")
        mask = op.parameter([-1, -1], np.int64, name="attention_mask")
        value, width = states, WIDTH
        for inner in (80, 64, WIDTH):
            weights = rng.normal(size=(inner, width)).astype(np.float32) / 3
            bias = np.zeros((1, 1, inner), dtype=np.float32)
            bias[..., :2] = 40
            value = op.add(op.matmul(value, op.constant(weights), False, True), op.constant(bias))
            value, width = (op.gelu(value, "erf") if inner != WIDTH else value), inner
        for port, name in ((states, "states"), (mask, "attention_mask")):
            port.output(0).get_tensor().set_names({name})
        return openvino.Model([value], [states, mask])

    parted = chain()
    assert len(part_outliers(parted, batches())) == 2
    assert answers(parted) == pytest.approx(answers(chain()), rel=1e-4, abs=1e-3)


def test_an_activation_that_others_read() -> None:
    model = feed_forward()
    model.add_outputs([("active", 0)])
    assert part_outliers(model, batches()) == ()
