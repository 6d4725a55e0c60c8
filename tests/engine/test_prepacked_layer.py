"""Layers whose weights are laid out once: the same answers, the same parameters, and what they leave to others."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from support.unpadding import batch, main_output, make
from warmstart.engine import prepacked_layer, products
from warmstart.engine.architectures import WRITTEN_OUT
from warmstart.engine.layer_inference import infer
from warmstart.engine.prepacked_layer import PrepackedLayer, prepacked
from warmstart.engine.unpad import unpad

HEADS = ("AutoModel", "AutoModelForSequenceClassification", "AutoModelForTokenClassification")


@pytest.fixture(autouse=True)
def onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the processor."""
    monkeypatch.setattr(products, "_onednn_is_quicker", lambda: True)


@pytest.fixture
def laid_out(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """One entry for each layer that answered from its copies: whether for first tokens only."""
    made: list[bool] = []

    def counted(x: Tensor, firsts: Tensor | None, *others: Any) -> Tensor:
        made.append(firsts is not None)
        return infer(x, firsts, *others)

    monkeypatch.setattr(prepacked_layer, "infer", counted)
    return made


def answer(model: Any) -> Tensor:
    with torch.inference_mode():
        return main_output(model(**batch()))


def same(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("variant", sorted(WRITTEN_OUT))
def test_the_same_answers_from_the_same_parameters(variant: str, head: str, laid_out: list[bool]) -> None:
    model = unpad(make(variant, head))
    before = answer(model)
    assert not laid_out
    twin: Any = prepacked(model)
    same(before, answer(twin))
    assert laid_out == [False, head == HEADS[1]]
    assert type(twin) is type(model)
    assert [p.data_ptr() for p in twin.parameters()] == [p.data_ptr() for p in model.parameters()]
    laid_out.clear()
    assert torch.equal(answer(model), before)
    assert not laid_out


def test_copies_keep_the_weights_of_then() -> None:
    """Why they are for a model that nobody changes."""
    model: Any = unpad(make("bert"))
    twin, before = prepacked(model), answer(model)
    with torch.no_grad():
        model.encoder.layer[0].intermediate.dense.weight.zero_()
    assert not torch.allclose(before, answer(model), atol=0.1)
    same(before, answer(twin))


def test_what_they_do_not_fit_is_computed_as_before(monkeypatch: pytest.MonkeyPatch, laid_out: list[bool]) -> None:
    model: Any = unpad(make("bert"))
    twin: Any = prepacked(model)
    trained = main_output(twin(**batch()))
    assert trained.requires_grad
    same(trained.detach(), answer(model))
    laid_out.clear()
    trained.sum().backward()
    assert model.encoder.layer[0].output.dense.weight.grad is not None
    with torch.inference_mode():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            twin(**batch())
        twin(**batch(), output_hidden_states=True)
        twin.train()(**batch())
        twin.eval()
        monkeypatch.setattr(products, "_onednn_is_quicker", lambda: False)
        same(main_output(twin(**batch())), answer(model))
    assert not laid_out


def test_a_model_without_anything_to_gain_is_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    assert prepacked(padded := make("bert")) is padded
    assert prepacked(decoder := unpad(make("gpt2"))) is decoder
    assert prepacked(exact := unpad(make("bert").double())) is exact
    monkeypatch.setattr(products, "_onednn_is_quicker", lambda: False)
    assert prepacked(elsewhere := unpad(make("bert"))) is elsewhere


def test_a_layer_that_somebody_looks_into_stays_as_it_is(laid_out: list[bool]) -> None:
    model: Any = unpad(make("bert"))
    model.encoder.layer[0].output.dense.register_forward_hook(lambda module, args, output: None)
    twin: Any = prepacked(model)
    kinds = [isinstance(vars(layer)["forward"], PrepackedLayer) for layer in twin.encoder.layer]
    assert kinds == [False, True]
    same(answer(model), answer(twin))
    assert laid_out == [False]
