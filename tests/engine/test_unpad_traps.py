"""Calls in every form a person may give them: what can be packed gives the same answer, all else the stock path's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from support.unpadding import LENGTHS, batch, counted, differ, main_output, make, pair, tokens_per_pass
from warmstart.engine.unpad import unpad

T, PADDED = sum(LENGTHS), len(LENGTHS) * max(LENGTHS)
Pair = tuple[PreTrainedModel, PreTrainedModel]


@pytest.fixture(scope="module")
def bert() -> Pair:
    return pair("bert")


@pytest.fixture(scope="module")
def eager() -> Pair:
    return pair("bert-eager")


def tokens(model: PreTrainedModel, **inputs: Any) -> int:
    """How many tokens each of the two layers computes for."""
    with torch.no_grad(), counted(model) as feed_forward:
        model(**inputs)
    return feed_forward.tokens // 2


# --- masks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bool, torch.int32, torch.float32])
@pytest.mark.parametrize("variant", ["bert", "qwen2", "mpnet"])
def test_masks_of_any_type(variant: str, dtype: torch.dtype) -> None:
    padded, unpadded = pair(variant)
    inputs = batch()
    mask = inputs["attention_mask"]
    given = inputs | {"attention_mask": mask.to(dtype)}
    with torch.no_grad():
        assert differ(padded(**inputs), unpadded(**given), mask) <= 1e-5
    assert tokens(unpadded, **given) == tokens_per_pass(unpadded)


def test_arguments_by_position(bert: Pair) -> None:
    padded, unpadded = bert
    inputs = batch()
    with torch.no_grad(), counted(unpadded) as feed_forward:
        found = unpadded(inputs["input_ids"], inputs["attention_mask"])
    assert feed_forward.tokens == 2 * T
    with torch.no_grad():
        assert differ(padded(**inputs), found, inputs["attention_mask"]) <= 1e-5


@pytest.mark.parametrize("variant", ["bert", "gpt2", "deberta-v2"])
def test_without_a_mask_or_padding_it_is_the_stock_path(variant: str) -> None:
    padded, unpadded = pair(variant)
    ids = batch((9, 9, 9))["input_ids"]
    with torch.no_grad():
        wanted = main_output(padded(ids))
        assert torch.equal(main_output(unpadded(ids)), wanted)
        assert torch.equal(main_output(unpadded(ids, attention_mask=None)), wanted)
        full = torch.ones_like(ids)
        assert torch.equal(
            main_output(unpadded(ids, attention_mask=full)), main_output(padded(ids, attention_mask=full))
        )


def test_a_classifier_computes_its_last_layer_for_first_tokens_without_padding_too() -> None:
    padded, unpadded = pair("bert", "AutoModelForSequenceClassification")
    inputs = batch((9, 9, 9))
    with torch.no_grad(), counted(unpadded) as feed_forward:
        found = unpadded(**inputs)
    assert feed_forward.calls == [27, 3]
    with torch.no_grad():
        assert differ(padded(**inputs), found, inputs["attention_mask"]) <= 1e-5


@pytest.mark.parametrize("variant", ["bert", "esm-absolute", "modernbert-mean", "mpnet", "deberta"])
@pytest.mark.parametrize("head", ["AutoModel", "AutoModelForSequenceClassification"])
def test_encoders_padded_on_the_left_run_as_they_are(variant: str, head: str) -> None:
    """Their heads read position 0, whatever stands there: zeros in its place would be one answer for every row."""
    if (variant, head) == ("deberta", "AutoModelForSequenceClassification"):
        assert tokens(unpad(make(variant, head)), **batch(left=True)) == PADDED
    padded, unpadded = pair(variant, head)
    inputs = batch(left=True)
    with torch.no_grad():
        assert torch.equal(main_output(padded(**inputs)), main_output(unpadded(**inputs)))


@pytest.mark.parametrize("variant", ["gpt2", "llama", "mistral", "gemma3"])
@pytest.mark.parametrize("head", ["AutoModel", "AutoModelForSequenceClassification"])
def test_decoders_padded_on_the_left_are_packed(variant: str, head: str) -> None:
    padded, unpadded = pair(variant, head)
    inputs = batch(left=True)
    with torch.no_grad():
        assert differ(padded(**inputs), unpadded(**inputs), inputs["attention_mask"]) <= 1e-5
    assert tokens(unpadded, **inputs) == T


@pytest.mark.parametrize(
    ("variant", "packed"),
    [("bert", True), ("gpt2", True), ("qwen2", True), ("mistral", False), ("modernbert-cls", False), ("mpnet", False)],
)
def test_holes_in_the_mask(variant: str, packed: bool) -> None:
    """Where a window goes by distance, or a bias, tokens on both sides of a hole are further apart than in a pack."""
    padded, unpadded = pair(variant)
    inputs = batch()
    mask = inputs["attention_mask"]
    mask[1, 4:9] = mask[3, 2] = mask[6, 10:18] = 0
    with torch.no_grad(), counted(unpadded) as feed_forward:
        found = unpadded(**inputs)
    with torch.no_grad():
        assert differ(padded(**inputs), found, mask) <= 1e-5
    assert feed_forward.tokens == (int(mask.sum()) if packed else mask.numel()) * unpadded.config.num_hidden_layers


@pytest.mark.parametrize("variant", ["bert", "modernbert-mean", "llama", "mistral", "deberta-v2", "mpnet"])
def test_a_row_without_tokens_leaves_the_others_as_they_are(variant: str) -> None:
    padded, unpadded = pair(variant)
    for lengths in ((4, 0, 7), (0, 0, 1), (0, 0)):
        inputs = batch((*lengths, 8))
        inputs = {name: tensor[: len(lengths)] for name, tensor in inputs.items()}
        with torch.no_grad():
            found = unpadded(**inputs)
            assert main_output(found).isfinite().all()
            if any(lengths):
                assert differ(padded(**inputs), found, inputs["attention_mask"]) <= 1e-5


@pytest.mark.parametrize("variant", ["bert", "llama", "gemma3", "mpnet"])
def test_masks_of_four_dimensions_are_taken_at_their_word(variant: str) -> None:
    """Each query may see other keys: here the last three of its row."""
    padded, unpadded = pair(variant)
    ids = batch((9, 9))["input_ids"]
    distance = torch.arange(9)[:, None] - torch.arange(9)
    seen = ((distance >= 0) & (distance < 3)).expand(2, 1, 9, 9)
    mask = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min) if variant == "mpnet" else seen
    with torch.no_grad():
        wanted = main_output(padded(ids, attention_mask=mask))
        assert torch.equal(main_output(unpadded(ids, attention_mask=mask)), wanted)
        assert not torch.allclose(wanted, main_output(padded(ids)))


# --- other arguments --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["bert", "modernbert-cls", "qwen3", "mpnet", "deberta-v2"])
def test_embeddings_in_the_place_of_ids(variant: str) -> None:
    padded, unpadded = pair(variant)
    inputs = batch()
    mask = inputs["attention_mask"]
    given = {"inputs_embeds": padded.get_input_embeddings()(inputs["input_ids"]).detach(), "attention_mask": mask}
    with torch.no_grad():
        assert differ(padded(**given), unpadded(**given), mask) <= 1e-5
    layers = unpadded.config.num_hidden_layers
    assert tokens(unpadded, **given) * 2 == tokens_per_pass(unpadded) * layers


def test_token_types_of_pairs() -> None:
    padded, unpadded = pair("bert", "AutoModelForSequenceClassification")
    inputs = batch()
    types = (torch.arange(20) > torch.tensor(LENGTHS)[:, None] // 2).long()
    with torch.no_grad():
        found = unpadded(**inputs, token_type_ids=types)
        assert differ(padded(**inputs, token_type_ids=types), found, inputs["attention_mask"]) <= 1e-5
        assert differ(padded(**inputs), found, inputs["attention_mask"]) > 1e-3  # they count


@pytest.mark.parametrize("variant", ["bert", "roberta", "modernbert-cls", "gpt2", "llama"])
@pytest.mark.parametrize("rows", [1, len(LENGTHS)])
def test_positions_given(variant: str, rows: int) -> None:
    padded, unpadded = pair(variant)
    inputs = batch()
    positions = (torch.arange(20).flip(0) * 2).expand(rows, 20)
    with torch.no_grad():
        found = unpadded(**inputs, position_ids=positions)
        assert differ(padded(**inputs, position_ids=positions), found, inputs["attention_mask"]) <= 1e-5
        assert differ(padded(**inputs), found, inputs["attention_mask"]) > 1e-3


@pytest.mark.parametrize("variant", ["bert", "electra", "modernbert-cls", "gpt2", "llama", "mpnet", "deberta-v2"])
@pytest.mark.parametrize("head", ["AutoModel", "AutoModelForTokenClassification"])
def test_tuples_in_the_place_of_named_outputs(variant: str, head: str) -> None:
    padded, unpadded = pair(variant, head)
    inputs = batch()
    mask = inputs["attention_mask"].bool()
    asked = {"use_cache": False} if variant in ("gpt2", "llama") else {}
    with torch.no_grad():
        wanted, found = (model(**inputs, **asked, return_dict=False) for model in (padded, unpadded))
    assert type(found) is tuple
    assert len(found) == len(wanted)
    assert (found[0][mask] - wanted[0][mask]).abs().max() <= 1e-5


@pytest.mark.parametrize("variant", ["bert", "distilbert", "modernbert-cls", "gpt2", "llama", "mpnet", "deberta-v2"])
@pytest.mark.parametrize("told", ["in the call", "in the config"])
def test_hidden_states_have_the_stock_shapes(variant: str, told: str) -> None:
    padded, unpadded = pair(variant)
    inputs = batch()
    mask = inputs["attention_mask"].bool()
    for model in (padded, unpadded):
        model.config.output_hidden_states = told == "in the config"
    asked = {"output_hidden_states": True} if told == "in the call" else {}
    with torch.no_grad():
        wanted, found = (model(**inputs, **asked).hidden_states for model in (padded, unpadded))
    assert len(found) == len(wanted) >= 3
    for one, other in zip(found, wanted, strict=True):
        assert one.shape == other.shape == (9, 20, 32)
        assert (one[mask] - other[mask]).abs().max() <= 1e-5


@pytest.mark.parametrize("variant", ["bert-eager", "modernbert-cls", "gpt2", "llama", "mpnet", "deberta-v2"])
@pytest.mark.parametrize("told", ["in the call", "in the config"])
def test_attentions_are_the_stock_ones(variant: str, told: str) -> None:
    settings = {"attn_implementation": "eager", "output_attentions": told == "in the config"}
    padded, unpadded = pair(variant, **settings)
    inputs = batch()
    asked = {"output_attentions": True} if told == "in the call" else {}
    with torch.no_grad():
        wanted, found = (model(**inputs, **asked).attentions for model in (padded, unpadded))
    assert len(found) == len(wanted) == padded.config.num_hidden_layers
    for one, other in zip(found, wanted, strict=True):
        assert one.shape == (9, 4, 20, 20)
        assert torch.equal(one, other)


def test_an_eager_model_without_padding_is_eager(eager: Pair) -> None:
    padded, unpadded = eager
    ids = batch((9, 9))["input_ids"]
    with torch.no_grad():
        assert torch.equal(main_output(unpadded(ids)), main_output(padded(ids)))
