"""Gradient checkpointing keeps the gradients to the last bit, on packs too, with dropout."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import warmstart as ws
from warmstart.engine.unpad import is_unpadded
from warmstart.training.depth import layers_of
from warmstart.training.recomputing import recomputing

TEXTS = ["good", "the film is dull and tired " * 4, "wonderful warm story"]


@pytest.mark.parametrize("family", ["bert", "distilbert", "roberta", "modernbert", "gpt2"])
@pytest.mark.parametrize("unpadded", [True, False])
def test_gradients_keep_their_bits(tiny: Callable[..., Path], family: str, unpadded: bool) -> None:
    pipe = ws.load(tiny(family))
    model, tokenizer = pipe.model, pipe.tokenizer
    if not unpadded:
        ws.pad(model)
    assert is_unpadded(model) == unpadded
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    inputs = tokenizer(TEXTS, padding=True, return_tensors="pt")
    model.config.use_cache = False  # with a cache, which training has no use for, the last digits differ
    _, layers = layers_of(model, asked_by="test")
    calls = []
    norm = next(module for module in layers[0].modules() if isinstance(module, torch.nn.LayerNorm))
    norm.register_forward_hook(lambda *_: calls.append(1))

    def gradients(asked: bool) -> dict[str, torch.Tensor]:
        model.zero_grad()
        model.train()
        torch.manual_seed(3)
        with recomputing(model, asked):
            model(**inputs, labels=torch.tensor([0, 1, 1])).loss.backward()
        model.eval()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    plain = gradients(False)
    assert calls == [1]
    recomputed = gradients(True)
    assert calls == [1] * 3  # once more, in the backward pass
    assert plain.keys() == recomputed.keys() and max(g.abs().max() for g in plain.values()) > 0
    assert all(torch.equal(plain[name], recomputed[name]) for name in plain)
    gradients(False)
    assert calls == [1] * 4


def test_a_cache_is_not_filled_twice(tiny: Callable[..., Path]) -> None:
    """Without padding in the batch GPT-2 runs its own code, which keeps keys and values."""
    model = ws.load(tiny("gpt2")).model.train()
    inputs = {"input_ids": torch.arange(12).view(2, 6) + 5, "attention_mask": torch.ones(2, 6, dtype=torch.long)}
    with recomputing(model, True):
        model(**inputs, labels=torch.tensor([0, 1])).loss.backward()
    assert model.score.weight.grad.abs().sum() > 0


def test_a_model_without_a_stack_is_refused(tiny: Callable[..., Path]) -> None:
    model = ws.load(tiny("bert")).model
    model.config.num_hidden_layers = 7
    with pytest.raises(ws.UsageError) as caught, recomputing(model, True):
        pass
    assert caught.value.code == "checkpointing-unsupported"
    with recomputing(model, False):
        pass
