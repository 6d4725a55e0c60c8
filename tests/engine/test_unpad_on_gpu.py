"""Whole models by the ways of a GPU, as far as a CPU can: its attention functions, and layers by their own code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from support.unpadding import VARIANTS, batch, counted, differ, drawn_lengths, gradients, pair, worst
from warmstart.engine import packed_attention, packed_layer
from warmstart.engine.architectures import BY_LENGTH
from warmstart.engine.packed_attention import _Call, _padded_block, _varlen
from warmstart.engine.packing import Pack

PACKED = [variant for variant, (family, _) in VARIANTS.items() if family not in BY_LENGTH]
CLASSIFIER = "AutoModelForSequenceClassification"


@pytest.mark.parametrize("way", [_padded_block, _varlen])
@pytest.mark.parametrize(("variant", "head"), [*((v, "AutoModel") for v in PACKED), ("bert", CLASSIFIER)])
def test_a_models_outputs_and_gradients(
    variant: str,
    head: str,
    way: Callable[..., Tensor],
    monkeypatch: pytest.MonkeyPatch,
    stand_in: list[dict[str, Any]],
) -> None:
    calls: list[int] = []

    def attend(call: _Call, query: Tensor, key: Tensor, value: Tensor, pack: Pack) -> Tensor:
        calls.append(query.shape[2])
        return way(call, query, key, value, pack)

    monkeypatch.setattr(packed_attention, "_by_runs", attend)
    monkeypatch.setattr(packed_layer, "why_stock", lambda layer, states: "its states are on a GPU")
    padded, unpadded = pair(variant, head)
    lengths = drawn_lengths(variant)
    inputs = batch(lengths)
    layers = 4 if variant.startswith("modernbert") else 2
    own = layers - (head == CLASSIFIER)  # the last one's queries of first tokens alone need no such function

    with torch.no_grad(), counted(unpadded) as feed_forward:
        assert differ(padded(**inputs), unpadded(**inputs), inputs["attention_mask"]) <= 1e-5
    assert feed_forward.tokens == own * sum(lengths) + (layers - own) * len(lengths)
    wanted, found = (gradients(model.train(), inputs) for model in (padded, unpadded))
    assert worst(wanted, found) <= 1e-5
    assert calls == [sum(lengths)] * 2 * own
    assert len(stand_in) == (len(calls) if way is _varlen else 0)
