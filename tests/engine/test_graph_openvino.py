"""OpenVINO graphs in int8: what a head gives keeps the mean it had in float."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import warmstart as ws
from support.exports import rows
from warmstart.batching import collate
from warmstart.engine import graph_openvino
from warmstart.engine.graph import trace
from warmstart.engine.graph_runtime import graph_inputs
from warmstart.engine.runtime_openvino import shared_core
from warmstart.features import Array


def answers(graph: graph_openvino.OpenVinoGraph, batches: list[dict[str, Array]]) -> Array:
    # One thread, as in calibration: a sum in another order may cross a step of eight bits.
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = shared_core().compile_model(graph.model, "CPU", settings)
    return np.concatenate([compiled(batch)[0] for batch in batches])


def test_logits_keep_their_mean_on_the_rows_of_calibration(tiny: Callable[..., Path]) -> None:
    pipe = ws.load(tiny("bert"), device="cpu")
    pipe.model.classifier.weight.data *= 200  # so that what int8 changes is seen
    pipe.model.classifier.bias.data[:] = 0.5  # as a trained head has one; of zeros the converter leaves none
    features = list(pipe.task.encode(rows(12)))
    traced = trace(pipe.model, pipe.task, features, packs=True)
    batches = []
    for first in range(0, len(features), 4):
        inputs = collate(features[first : first + 4], pipe.task.pads).inputs
        batches.append(graph_inputs(inputs, traced.inputs, packed=traced.packed))
    plain = graph_openvino.convert(traced)
    wanted = answers(plain, batches)
    found = answers(graph_openvino.Quantizer.of(plain, batches).quantize(()), batches)
    assert abs(found - wanted).max() > 1e-4, "int8 changes what it gives"
    assert found.mean(axis=0) == pytest.approx(wanted.mean(axis=0), abs=1e-5)
