"""A model that is traced without its padding: what tokens get stays what it was, and padding is in attention alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from support.unpadding import VARIANTS, batch, counted, differ, make
from warmstart.engine.architectures import STACKS
from warmstart.engine.first_token import leave_unread_out, reads_first_token_alone
from warmstart.engine.graph import Traced
from warmstart.engine.graph_openvino import Quantizer, convert
from warmstart.engine.graph_packing import Packing, pack_inside
from warmstart.engine.graph_runtime import graph_inputs, input_names, pack_inputs
from warmstart.engine.packing import GraphPack
from warmstart.engine.runtime_openvino import shared_core

LENGTHS = (5, 17, 3, 20, 17, 1)
IN_STACKS = [name for name, (family, _) in VARIANTS.items() if family in STACKS]
_HEADS = ["AutoModelForSequenceClassification", "AutoModelForTokenClassification"]


def packed_by(mask: torch.Tensor) -> GraphPack:
    return GraphPack(*(torch.from_numpy(array) for array in pack_inputs(mask.numpy()).values()))


def filled(mask: torch.Tensor) -> int:
    tokens = int(mask.sum())
    step = 8 if tokens < 128 else 16 if tokens < 256 else 32
    return min(-(-tokens // step) * step, mask.numel())


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 90), min_size=1, max_size=9))
def test_a_pack_holds_every_token_once_and_a_few_more(lengths: list[int]) -> None:
    mask = batch(lengths)["attention_mask"]
    pack = packed_by(mask)
    assert pack.index.shape == (filled(mask),)
    values = torch.arange(1, mask.numel() + 1).view(*mask.shape, 1).expand(*mask.shape, 3)
    packed = pack.pack(values)
    tokens = values[mask.bool()]
    assert torch.equal(packed[0, : len(tokens)], tokens), "in the order of the batch"
    assert (packed[0, len(tokens) :] == 1).all(), "the first token again"
    assert torch.equal(pack.unpack(packed)[mask.bool()], tokens)
    firsts = packed[:, pack.firsts()]
    assert torch.equal(firsts[0], values[:, 0])
    assert torch.equal(pack.of_firsts().unpack(firsts), values[:, :1])


@pytest.mark.parametrize("mask", [[[0, 1], [1, 1]], [[1, 1], [0, 1]], [[0, 0], [1, 0]]])
def test_a_row_that_begins_with_padding_is_refused(mask: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="begins with padding"):
        pack_inputs(np.array(mask))


def test_a_hole_in_a_row_is_padding_too() -> None:
    index, places = pack_inputs(np.array([[1, 0, 1, 1], [1, 1, 0, 0]]), rounded=False).values()
    assert index.tolist() == [0, 2, 3, 4, 5]
    assert places[np.array([[1, 0, 1, 1], [1, 1, 0, 0]]) != 0].tolist() == [0, 1, 2, 3, 4]


def test_what_rows_share_is_packed_for_each() -> None:
    mask = batch((2, 4))["attention_mask"]
    shared = torch.arange(4).view(1, 4, 1)
    assert packed_by(mask).pack(shared)[0, :6, 0].tolist() == [0, 1, 0, 1, 2, 3]


@pytest.mark.parametrize("head", _HEADS)
@pytest.mark.parametrize("variant", IN_STACKS)
def test_tokens_get_what_they_got(variant: str, head: str) -> None:
    model, inputs = make(variant, head), batch(LENGTHS)
    with torch.no_grad():
        wanted = model(**inputs)
        packing = pack_inside(model)
        assert packing is not None
        packing.pack = packed_by(inputs["attention_mask"])
        leave_unread_out(model)
        with counted(model) as feed_forward:
            found = model(**inputs)
    layers = len(feed_forward.calls)
    all_tokens = filled(inputs["attention_mask"])
    last = len(LENGTHS) if reads_first_token_alone(model) else all_tokens
    assert feed_forward.calls == [all_tokens] * (layers - 1) + [last]
    assert differ(found, wanted, inputs["attention_mask"]) <= 2e-6


@pytest.mark.parametrize("told", ["output_attentions", "output_hidden_states"])
def test_who_asks_for_what_stands_between_layers_gets_it_padded(told: str) -> None:
    assert pack_inside(make("bert", **{told: True}, attn_implementation="eager")) is None


@pytest.mark.parametrize("variant", ["gpt2", "modernbert-cls", "mpnet", "deberta"])
def test_what_has_no_stack_of_its_own_is_left_as_it_is(variant: str) -> None:
    model, inputs = make(variant), batch(LENGTHS)
    with torch.no_grad():
        wanted = model(**inputs)
        assert pack_inside(model) is None
        assert differ(model(**inputs), wanted, inputs["attention_mask"]) == 0


class _Logits(torch.nn.Module):
    def __init__(self, model: Any, packing: Packing) -> None:
        super().__init__()
        self.model, self.packing = model, packing

    def forward(self, ids: torch.Tensor, mask: torch.Tensor, index: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        self.packing.pack = GraphPack(index, places)
        logits: torch.Tensor = self.model(input_ids=ids, attention_mask=mask).logits
        return logits


NAMES = ("input_ids", "attention_mask")


def arrays_of(lengths: tuple[int, ...]) -> dict[str, Any]:
    inputs = {name: tensor.numpy() for name, tensor in batch(lengths, seed=sum(lengths)).items()}
    return graph_inputs(inputs, NAMES, packed=True)


@pytest.mark.parametrize(
    ("variant", "head"),
    [(name, _HEADS[1]) for name in ("albert", "bert-eager", "distilbert", "esm-rotary", "roberta")]
    + [("bert", _HEADS[0])],
)
def test_a_graph_answers_for_the_tokens_of_any_batch(variant: str, head: str) -> None:
    model, packed = make(variant, head), make(variant, head)
    packing = pack_inside(packed)
    assert packing is not None
    leave_unread_out(packed)
    example = [torch.from_numpy(array) for array in arrays_of((9, 9, 9)).values()]
    free = tuple(dict.fromkeys(range(tensor.ndim), torch.export.Dim.DYNAMIC) for tensor in example)
    with torch.no_grad():
        program = torch.export.export(_Logits(packed, packing), tuple(example), dynamic_shapes=free, strict=False)
    traced = Traced(program, NAMES, (("logits", (None,)),), True)
    assert traced.names == input_names(NAMES, packed=True)
    graph = convert(traced)
    in_eight_bits = Quantizer.of(graph, [arrays_of(LENGTHS), arrays_of((9, 2, 30))]).quantize(())
    exact = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled, in_int8 = (shared_core().compile_model(each.model, "CPU", exact) for each in (graph, in_eight_bits))
    most = model.config.max_position_embeddings - 4
    # A text alone; one token; no padding; each way of rounding.
    for lengths in [(13,), (1,), (6, 6), LENGTHS, (most, 1, 7) * 3, (most,) * 2 + (3,) * 20, (2, most) * 6]:
        arrays = arrays_of(lengths)
        with torch.no_grad():
            wanted = model(**{name: torch.from_numpy(arrays[name]) for name in NAMES}).logits.numpy()
        found, near = (each(arrays)[0] for each in (compiled, in_int8))
        assert near.shape == wanted.shape
        if wanted.ndim == 3:
            wanted, found, near = (array[arrays["attention_mask"] != 0] for array in (wanted, found, near))
        assert np.abs(found - wanted).max() <= 1e-5, lengths
        error = np.abs(near - wanted).mean()  # of logits around 1, which a random model rounds coarsely
        assert 0 < error <= 0.2, lengths
