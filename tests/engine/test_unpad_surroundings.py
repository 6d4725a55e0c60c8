"""What surrounds a call: precision, gradient modes, devices, tracing and compiling, an attention chosen since."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from support.unpadding import LENGTHS, batch, counted, differ, gradients, main_output, make, pair, relative_error
from warmstart.engine.unpad import pad, unpad

T, PADDED = sum(LENGTHS), len(LENGTHS) * max(LENGTHS)
Pair = tuple[PreTrainedModel, PreTrainedModel]


@pytest.fixture(scope="module")
def bert() -> Pair:
    return pair("bert")


def tokens(model: PreTrainedModel, **inputs: Any) -> int:
    """How many tokens each of the two layers computes for."""
    with torch.no_grad(), counted(model) as feed_forward:
        model(**inputs)
    return feed_forward.tokens // 2


@pytest.mark.parametrize("variant", ["bert", "modernbert-cls", "llama", "deberta-v2"])
def test_autocast(variant: str) -> None:
    """Gradients are as near to float32's as the padded model's are under the same autocast."""
    padded, unpadded = pair(variant)
    inputs = batch()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        wanted, found = padded(**inputs), unpadded(**inputs)
    assert main_output(found).dtype == main_output(wanted).dtype
    scale = main_output(wanted).abs().max()
    assert differ(wanted, found, inputs["attention_mask"]) <= 0.05 * scale  # bfloat16 has 8 bits
    exact = gradients(padded, inputs)
    with torch.autocast("cpu", torch.bfloat16):
        stock, ours = gradients(padded, inputs), gradients(unpadded, inputs)
    assert ours.keys() == exact.keys()
    assert 0 < relative_error(ours, exact) <= 2 * relative_error(stock, exact)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions(dtype: torch.dtype) -> None:
    padded, unpadded = (model.to(dtype) for model in pair("bert"))
    inputs = batch()
    with torch.inference_mode():
        wanted, found = padded(**inputs), unpadded(**inputs)
    assert main_output(found).dtype == dtype
    assert differ(wanted, found, inputs["attention_mask"]) <= (1e-12 if dtype == torch.float64 else 0.1)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_modes_of_gradients(bert: Pair, mode: Callable[[], Any]) -> None:
    _, unpadded = bert
    with mode():
        found = main_output(unpadded(**batch()))
    assert found.requires_grad == (mode is torch.enable_grad)
    assert found.is_inference() == (mode is torch.inference_mode)


def test_a_model_on_the_meta_device_stays_there() -> None:
    """Whoever counts sizes before allocating anything may unpad first. (With a mask, stock SDPA fails there.)"""
    for variant in ("bert", "qwen2", "mpnet"):
        model = unpad(make(variant).to("meta"))
        assert all(parameter.is_meta for parameter in model.parameters())
        assert main_output(model(batch()["input_ids"].to("meta"))).shape == (9, 20, 32)


@pytest.mark.parametrize("variant", ["bert", "bert-eager", "mpnet", "modernbert-cls"])
def test_a_trace_of_an_unpadded_model_is_the_stock_graph(variant: str) -> None:
    """An export must not carry the lengths of the batch it was made with."""
    padded, unpadded = pair(variant, "AutoModelForSequenceClassification", num_hidden_layers=1)
    inputs = tuple(batch().values())

    def graph(model: PreTrainedModel) -> list[str]:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # transformers' own, of Python branches on shapes
            traced = torch.jit.trace(model, inputs, strict=False, check_trace=False)
        return [node.kind() for node in traced.inlined_graph.nodes()]

    assert graph(unpadded) == graph(padded)


def test_an_exported_unpadded_model_is_the_stock_graph() -> None:
    padded, unpadded = pair("bert", "AutoModelForSequenceClassification", num_hidden_layers=1)
    inputs = batch()

    def graph(model: PreTrainedModel) -> list[str]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exported = torch.export.export(model, (), inputs)
        return [str(node.target) for node in exported.graph.nodes if node.op == "call_function"]

    assert graph(unpadded) == graph(padded)


def test_a_compiled_unpadded_model_is_one_stock_graph() -> None:
    padded, unpadded = pair("bert", num_hidden_layers=1)
    inputs = batch()
    torch.compiler.reset()
    compiled = torch.compile(unpadded, backend="eager", fullgraph=True)
    with torch.no_grad():
        assert torch.equal(main_output(compiled(**inputs)), main_output(padded(**inputs)))


def test_an_attention_chosen_since_is_respected(bert: Pair) -> None:
    """As is one that another model with the same config object was given back: never a pack in a stock attention."""
    padded, _ = bert
    unpadded = unpad(make("bert"))
    unpadded.set_attn_implementation("eager")
    inputs = batch()
    with torch.no_grad():
        found = unpadded(**inputs, output_attentions=True)
        assert found.attentions[0].shape == (9, 4, 20, 20)
        assert differ(padded(**inputs), unpadded(**inputs), inputs["attention_mask"]) <= 1e-5
    assert tokens(unpadded, **inputs) == PADDED


def test_models_that_share_a_config_object(bert: Pair) -> None:
    padded, _ = bert
    one = unpad(make("bert"))
    other = type(one)(one.config)
    other.load_state_dict(one.state_dict())
    unpad(other.eval())
    inputs = batch()

    def found() -> list[Tensor]:
        with torch.no_grad():
            return [main_output(model(**inputs))[inputs["attention_mask"].bool()] for model in (padded, one, other)]

    assert tokens(other, **inputs) == tokens(one, **inputs) == T
    pad(one)
    assert torch.equal(found()[0], found()[1])
    assert torch.allclose(found()[0], found()[2], atol=1e-5)
    pad(other)
    assert torch.equal(found()[0], found()[2])
    assert one.config._attn_implementation == "sdpa"
