"""How deep a parameter stands, and the groups of an optimizer that follow from it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AlbertConfig, AlbertForSequenceClassification, T5Config, T5ForConditionalGeneration

import warmstart as ws
from warmstart.training.depth import depths, layers_of
from warmstart.training.groups import parameter_groups
from warmstart.training.optimizers import adamw

LAYERS = {
    "bert": "bert.encoder.layer",
    "distilbert": "distilbert.transformer.layer",
    "roberta": "roberta.encoder.layer",
    "modernbert": "model.layers",
    "gpt2": "transformer.h",
}
HEADS = {
    "bert": "classifier",
    "distilbert": "classifier",
    "roberta": "classifier",
    "modernbert": "classifier",
    "gpt2": "score",
}


@pytest.mark.parametrize("family", LAYERS)
def test_embeddings_lie_at_the_bottom_and_heads_on_top(tiny: Callable[..., Path], family: str) -> None:
    model = ws.load(tiny(family)).model
    name, layers = layers_of(model, asked_by="layer_decay")
    assert name == LAYERS[family] and len(layers) == 2
    found, top = depths(model, asked_by="layer_decay")
    assert top == 3 and found.keys() == dict(model.named_parameters()).keys()
    for parameter, depth in found.items():
        if parameter.startswith(name):
            assert depth == 1 + int(parameter.removeprefix(f"{name}.").split(".")[0])
        elif any(part in parameter for part in ("embeddings", "wte", "wpe")):
            assert depth == 0, parameter
        else:
            assert depth == 3, parameter
    head = "score.weight" if family == "gpt2" else "classifier.weight"
    assert found[head if head in found else "classifier.dense.weight"] == 3


def test_a_head_that_is_tied_to_the_embeddings_learns_as_they_do(tiny: Callable[..., Path]) -> None:
    found, _ = depths(ws.load(tiny("bert", "masks")).model, asked_by="layer_decay")
    assert found["bert.embeddings.word_embeddings.weight"] == 0
    assert {depth for name, depth in found.items() if name.startswith("cls.")} == {3}


def test_shared_layers_and_two_stacks_are_refused() -> None:
    albert = AlbertForSequenceClassification(
        AlbertConfig(vocab_size=30, hidden_size=8, num_hidden_layers=3, num_attention_heads=2, intermediate_size=8)
    )
    t5 = T5ForConditionalGeneration(T5Config(vocab_size=30, d_model=8, d_kv=4, d_ff=8, num_layers=2, num_heads=2))
    for model in (albert, t5):
        with pytest.raises(ws.UsageError) as caught:
            parameter_groups(model, learning_rate=1.0, weight_decay=0.0, factor=0.5)
        assert caught.value.code == "layers-unknown" and "layer_decay" in caught.value.fix


def test_each_depth_learns_by_its_own_rate(tiny: Callable[..., Path]) -> None:
    model = ws.load(tiny("bert")).model
    rates = {}
    for group in parameter_groups(model, learning_rate=1.0, weight_decay=0.25, factor=0.5):
        for parameter in group["params"]:
            assert group["weight_decay"] == (0.25 if parameter.ndim > 1 else 0)
            rates[id(parameter)] = group["lr"]
    found, _ = depths(model, asked_by="layer_decay")
    assert {name: rates[id(p)] for name, p in model.named_parameters()} == {
        name: 0.5 ** (3 - depth) for name, depth in found.items()
    }


def test_without_a_factor_there_are_the_two_groups_of_before(tiny: Callable[..., Path]) -> None:
    model = ws.load(tiny("bert")).model
    model.classifier.bias.requires_grad_(False)
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = parameter_groups(model, learning_rate=0.5, weight_decay=0.1)
    assert [g["params"] for g in groups] == [[p for p in trained if p.ndim > 1], [p for p in trained if p.ndim <= 1]]
    assert [(g["weight_decay"], g["lr"]) for g in groups] == [(0.1, 0.5), (0.0, 0.5)]


def test_one_step_of_adamw_moves_each_depth_by_its_rate(tiny: Callable[..., Path]) -> None:
    """The first step of Adam is the rate times the gradient's sign."""
    model = ws.load(tiny("bert")).model
    optimizer = adamw(model, learning_rate=1e-2, weight_decay=0.0, layer_decay=ws.LayerDecay(factor=0.5))
    assert optimizer.param_groups[0]["lr"] == 1e-2  # what is recorded: the head's
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    found, top = depths(model, asked_by="layer_decay")
    for name, parameter in model.named_parameters():
        moved = before[name] - parameter.detach()
        torch.testing.assert_close(
            moved, torch.full_like(moved, 1e-2 * 0.5 ** (top - found[name])), rtol=1e-3, atol=1e-6
        )
