"""Decoders: generating is as it was, scoring and training are packed."""

from __future__ import annotations

import pytest
import torch

from support.unpadding import LENGTHS, batch, counted, differ, main_output, make, pair
from warmstart.engine.unpad import unpad

VARIANTS = ("gpt2", "llama", "gemma3", "mistral", "qwen3")
T, PADDED = sum(LENGTHS), len(LENGTHS) * max(LENGTHS)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("use_cache", [True, False])
def test_generating_gives_the_same_tokens(variant: str, use_cache: bool) -> None:
    padded, unpadded = pair(variant, "AutoModelForCausalLM")
    inputs = batch((5, 9, 1, 7), left=True)
    asked = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "use_cache": use_cache}
    with counted(unpadded) as feed_forward:
        found = unpadded.generate(**inputs, **asked)
    assert torch.equal(found, padded.generate(**inputs, **asked))
    layers = padded.config.num_hidden_layers
    if use_cache:  # the prompt with its padding, then a token for each row
        assert feed_forward.tokens == layers * (4 * 9 + 5 * 4)
    else:  # every row from its start, without its padding
        assert feed_forward.tokens == layers * sum(22 + 4 * step for step in range(6))


def test_beams() -> None:
    padded, unpadded = pair("llama", "AutoModelForCausalLM")
    inputs = batch((5, 9, 1), left=True)
    asked = {"max_new_tokens": 5, "num_beams": 3, "do_sample": False}
    assert torch.equal(unpadded.generate(**inputs, **asked), padded.generate(**inputs, **asked))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_model_that_generates_keeps_its_cache(variant: str) -> None:
    """In eval mode, by default, as ever; the prompt is then continued from it."""
    padded, unpadded = pair(variant, "AutoModelForCausalLM")
    inputs = batch(left=True)
    following = torch.full((len(LENGTHS), 1), 7)
    mask = torch.cat([inputs["attention_mask"], torch.ones_like(following)], dim=1)
    with torch.no_grad():
        wanted, found = (
            model(following, attention_mask=mask, past_key_values=model(**inputs).past_key_values).logits
            for model in (padded, unpadded)
        )
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("head", ["AutoModel", "AutoModelForSequenceClassification"])
def test_models_that_do_not_generate_give_a_cache_to_who_asks(variant: str, head: str) -> None:
    """Without being asked they give none, which nothing of theirs would read, and are packed."""
    padded, unpadded = pair(variant, head)
    inputs = batch()
    with torch.no_grad(), counted(unpadded) as feed_forward:
        found = unpadded(**inputs)
    assert feed_forward.tokens == 2 * T
    assert found.past_key_values is None
    with torch.no_grad(), counted(unpadded) as feed_forward:
        asked = unpadded(**inputs, use_cache=True)
        wanted = padded(**inputs, use_cache=True)
    assert feed_forward.tokens == 2 * PADDED
    assert torch.equal(main_output(asked), main_output(wanted))
    assert asked.past_key_values.get_seq_length() == wanted.past_key_values.get_seq_length() == 20


def test_scores_of_texts_are_packed() -> None:
    padded, unpadded = pair("qwen2", "AutoModelForCausalLM")
    inputs = batch()
    with torch.no_grad(), counted(unpadded) as feed_forward:
        found = unpadded(**inputs, use_cache=False)
    assert feed_forward.tokens == 2 * T
    with torch.no_grad():
        assert differ(padded(**inputs), found, inputs["attention_mask"]) <= 1e-5


def test_logits_of_the_last_position_alone() -> None:
    padded, unpadded = pair("llama", "AutoModelForCausalLM")
    inputs = batch(left=True)
    with torch.no_grad():
        found = unpadded(**inputs, use_cache=False, logits_to_keep=1).logits
        wanted = padded(**inputs, use_cache=False, logits_to_keep=1).logits
    assert found.shape == (len(LENGTHS), 1, 60)
    assert (found - wanted).abs().max() <= 1e-5


def test_is_causal_in_the_call_is_the_stock_path() -> None:
    padded, unpadded = pair("llama")
    inputs = batch()
    with torch.no_grad():
        found = [main_output(model(**inputs, is_causal=False, use_cache=False)) for model in (padded, unpadded)]
    assert torch.equal(*found)


def test_later_tokens_change_nothing_before_them() -> None:
    model, inputs = unpad(make("gemma3")), batch()
    changed = {**inputs, "input_ids": inputs["input_ids"].clone()}
    changed["input_ids"][3, 12] = 9
    with torch.no_grad():
        before, after = (main_output(model(**given)) for given in (inputs, changed))
    # Another row of the same run of lengths is summed beside it: equal, not only near.
    assert torch.equal(before[3, :12], after[3, :12])
    assert not torch.equal(before[3, 12], after[3, 12])
