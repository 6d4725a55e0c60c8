"""Unpadded models compute what padded ones do, in every family and with every head, and do not compute padding."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from support.unpadding import (
    LENGTHS,
    MASK,
    batch,
    cases,
    counted,
    gradients,
    kept,
    main_output,
    make,
    stock,
    worst,
)
from warmstart.engine.first_token import reads_first_token_alone
from warmstart.engine.unpad import is_unpadded, pad, unpad


def passes(model: nn.Module) -> int:
    """How often a batch passes a feed-forward layer: ALBERT's one layer several times."""
    config = model.config
    return int(vars(config).get("num_hidden_layers") or vars(config).get("n_layers") or config.n_layer)


def tokens_of(model: nn.Module, lengths: tuple[int, ...] = LENGTHS) -> int:
    """How many tokens are to pass feed-forward layers: all of each, and of a last layer of which only the first tokens
    are read, one for each row."""
    every = sum(lengths) * passes(model)
    return every - sum(lengths) + len(lengths) if reads_first_token_alone(model) else every


@pytest.mark.parametrize(("variant", "head"), cases())
def test_outputs_and_gradients_are_those_of_the_padded_model(variant: str, head: str) -> None:
    model, inputs = make(variant, head), batch()
    if variant.startswith("esm"):
        inputs["input_ids"][0, 2] = inputs["input_ids"][3, 7:9] = MASK  # its embeddings count them
    if head == "AutoModelForMultipleChoice":
        inputs = {name: tensor[:, None] for name, tensor in inputs.items()}
    asked = inputs | ({"use_cache": False} if head == "AutoModelForCausalLM" else {})
    mask = inputs["attention_mask"]
    names = list(model.state_dict())
    with torch.no_grad():
        padded = main_output(model(**asked))
    wanted = gradients(model.train(), inputs)

    assert unpad(model.eval()) is model
    assert is_unpadded(model)
    assert list(model.state_dict()) == names
    with torch.no_grad(), counted(model) as feed_forward:
        unpadded = main_output(model(**asked))
    assert unpadded.shape == padded.shape
    assert (kept(unpadded, mask) - kept(padded, mask)).abs().max() <= 1e-5
    assert feed_forward.tokens == tokens_of(model)

    with counted(model) as feed_forward:
        found = gradients(model.train(), inputs)
    assert worst(wanted, found) <= 1e-5
    assert feed_forward.tokens == tokens_of(model)

    assert pad(model.eval()) is model
    assert stock(model)
    assert not is_unpadded(model)
    with torch.no_grad(), counted(model) as feed_forward:
        assert torch.equal(main_output(model(**asked)), padded)
    assert feed_forward.tokens == mask.numel() * passes(model)  # the count above is not the count of anything
