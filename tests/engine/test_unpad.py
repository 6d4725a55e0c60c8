"""Unpadded models compute what padded ones do, in every family and with every head, and do not compute padding."""

from __future__ import annotations

from functools import lru_cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import PreTrainedModel

from support.unpadding import (
    LENGTHS,
    MASK,
    VARIANTS,
    batch,
    cases,
    counted,
    differ,
    drawn_lengths,
    gradients,
    kept,
    main_output,
    make,
    multiplied,
    pair,
    stock,
    tokens_per_pass,
    worst,
)
from warmstart.engine.architectures import WRITTEN_OUT
from warmstart.engine.first_token import reads_first_token_alone
from warmstart.engine.unpad import is_unpadded, pad, unpad

SEEDS = (0, 1)


def rows_of_layers(model: PreTrainedModel, lengths: list[int]) -> list[int]:
    """How many tokens are to pass each feed-forward layer: all, and of a last layer of which only the first tokens are
    read, one for each row."""
    every = tokens_per_pass(model, lengths)
    assert sum(lengths) <= every < len(lengths) * max(lengths)
    last = len(lengths) if reads_first_token_alone(model) else every
    return [every] * (passes(model) - 1) + [last]


def passes(model: PreTrainedModel) -> int:
    """How often a batch passes a feed-forward layer: ALBERT's one layer several times."""
    config = model.config
    return int(vars(config).get("num_hidden_layers") or vars(config).get("n_layers") or config.n_layer)


def inputs_for(variant: str, head: str, lengths: list[int], seed: int) -> dict[str, Tensor]:
    inputs = batch(lengths, seed=seed)
    if variant.startswith("esm"):  # its embeddings count masked tokens
        places = torch.arange(max(lengths)) % 5 == 2
        inputs["input_ids"][inputs["attention_mask"].bool() & places] = MASK
    return {name: tensor[:, None] for name, tensor in inputs.items()} if "MultipleChoice" in head else inputs


@pytest.mark.parametrize(("variant", "head"), cases())
def test_outputs_and_gradients_are_those_of_the_padded_model(variant: str, head: str) -> None:
    """On the path that people run: without a hook, which would switch layers written out to their own code."""
    model = make(variant, head)
    lengths = [drawn_lengths(f"{variant} {head} {seed}") for seed in SEEDS]
    batches = [inputs_for(variant, head, each, seed) for each, seed in zip(lengths, SEEDS, strict=True)]
    asked = {"use_cache": False} if head == "AutoModelForCausalLM" else {}
    names = list(model.state_dict())
    with torch.no_grad():
        padded = [main_output(model(**inputs, **asked)) for inputs in batches]
    wanted = [gradients(model.train(), inputs) for inputs in batches]

    assert unpad(model.eval()) is model
    assert is_unpadded(model)
    assert list(model.state_dict()) == names
    written_out = model.config.model_type in WRITTEN_OUT
    for inputs, each, output, slopes in zip(batches, lengths, padded, wanted, strict=True):
        mask, rows = inputs["attention_mask"], rows_of_layers(model, each)
        with torch.no_grad(), multiplied(model) as products:
            unpadded = main_output(model.eval()(**inputs, **asked))
        assert unpadded.shape == output.shape
        assert (kept(unpadded, mask) - kept(output, mask)).abs().max() <= 1e-5
        assert len(products.calls) == len(rows) * written_out  # each layer, or none
        assert all(count <= made <= count + count // 16 for made, count in zip(products.calls, rows, strict=False))

        with multiplied(model) as products:
            found = gradients(model.train(), inputs)
        assert worst(slopes, found) <= 1e-5
        assert products.calls == rows * written_out

    # The layers' own code, which hooks see, as on a GPU or under autocast.
    with torch.no_grad(), counted(model) as feed_forward:
        unpadded = main_output(model.eval()(**inputs, **asked))
    assert (kept(unpadded, mask) - kept(output, mask)).abs().max() <= 1e-5
    assert feed_forward.tokens == sum(rows)
    with counted(model) as feed_forward:
        assert worst(slopes, gradients(model.train(), inputs)) <= 1e-5
    assert feed_forward.tokens == sum(rows)

    assert pad(model.eval()) is model
    assert stock(model)
    assert not is_unpadded(model)
    with torch.no_grad(), counted(model) as feed_forward:
        assert torch.equal(main_output(model(**inputs, **asked)), output)
    assert feed_forward.tokens == mask.numel() * passes(model)  # the count above is not the count of anything


pair_of = lru_cache(maxsize=1)(pair)


@pytest.mark.parametrize("variant", VARIANTS)
@settings(max_examples=3, deadline=None, derandomize=True)
@given(
    lengths=st.lists(st.integers(0, 14), min_size=1, max_size=6).filter(any),
    left=st.booleans(),
    seed=st.integers(0, 9),
)
def test_any_lengths_on_either_side(variant: str, lengths: list[int], left: bool, seed: int) -> None:
    """Rows of no token, of one, of the same length; longer than a window; none with padding."""
    padded, unpadded = pair_of(variant)
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
