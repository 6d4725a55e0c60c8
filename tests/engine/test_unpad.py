"""Unpadded models compute what padded ones do, in every family and with every head, and do not compute padding."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel

from support.unpadding import (
    LENGTHS,
    MASK,
    batch,
    cases,
    counted,
    differ,
    gradients,
    kept,
    main_output,
    make,
    pair,
    stock,
    tokens_per_pass,
    worst,
)
from warmstart.engine.first_token import reads_first_token_alone
from warmstart.engine.unpad import is_unpadded, pad, unpad

ANY = ("bert", "modernbert-mean", "mistral", "gpt2", "mpnet")


@pytest.fixture(scope="module")
def pairs() -> dict[str, tuple[PreTrainedModel, PreTrainedModel]]:
    return {variant: pair(variant) for variant in ANY}


def tokens_of(model: PreTrainedModel) -> int:
    """How many tokens are to pass the feed-forward layers: all of each, and of a last layer of which only the first
    tokens are read, one for each row."""
    assert sum(LENGTHS) <= tokens_per_pass(model) < len(LENGTHS) * max(LENGTHS)
    every = tokens_per_pass(model) * passes(model)
    return every - sum(LENGTHS) + len(LENGTHS) if reads_first_token_alone(model) else every


def passes(model: PreTrainedModel) -> int:
    """How often a batch passes a feed-forward layer: ALBERT's one layer several times."""
    config = model.config
    return int(vars(config).get("num_hidden_layers") or vars(config).get("n_layers") or config.n_layer)


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


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    lengths=st.lists(st.integers(0, 14), min_size=1, max_size=6).filter(any),
    variant=st.sampled_from(ANY),
    left=st.booleans(),
    seed=st.integers(0, 9),
)
def test_any_lengths_on_either_side(
    pairs: dict[str, tuple[PreTrainedModel, PreTrainedModel]], lengths: list[int], variant: str, left: bool, seed: int
) -> None:
    """Rows of no token, of one, of the same length; longer than a window; none with padding."""
    padded, unpadded = pairs[variant]
    inputs = batch(lengths, left=left, seed=seed)
    with torch.no_grad():
        assert differ(padded(**inputs), unpadded(**inputs), inputs["attention_mask"]) <= 1e-5


@pytest.mark.parametrize("variant", ["bert", "esm-rotary", "modernbert-cls", "gpt2", "gemma3", "qwen3", "deberta-v2"])
def test_no_token_sees_another_rows(variant: str) -> None:
    """Other rows' outputs do not change by a bit with one row's tokens, and no gradient reaches them."""
    model, inputs = unpad(make(variant)), batch()
    changed = {**inputs, "input_ids": inputs["input_ids"].clone()}
    changed["input_ids"][3, :20] = changed["input_ids"][3, :20].flip(0)
    with torch.no_grad():
        before, after = (main_output(model(**given)) for given in (inputs, changed))
    others = [row for row in range(len(LENGTHS)) if row != 3]
    assert torch.equal(before[others], after[others])
    assert not torch.equal(before[3], after[3])

    embedded = model.get_input_embeddings()(inputs["input_ids"]).detach().requires_grad_()
    output = main_output(model(inputs_embeds=embedded, attention_mask=inputs["attention_mask"]))
    output[3].cos().sum().backward()
    assert embedded.grad is not None
    assert not embedded.grad[others].any()
    assert embedded.grad[3, :20].any(dim=1).all()
    assert not embedded.grad[~inputs["attention_mask"].bool()].any()
