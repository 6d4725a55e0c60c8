"""The last layer of a classifier that is traced: what its head reads, and nothing else."""

from __future__ import annotations

import pytest
import torch

from support.unpadding import batch, counted, main_output, pair
from warmstart.engine.first_token import HEADS, leave_unread_out, reads_first_token_alone
from warmstart.engine.unpad import STACKS

ROWS = (5, 17, 3, 20, 17, 1)


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("variant", [name for name in STACKS if name not in ("albert", "distilbert", "esm")])
def test_the_answer_is_that_of_the_whole_layer(variant: str, left: bool) -> None:
    model, _ = pair(variant, "AutoModelForSequenceClassification")
    inputs = batch(ROWS, left=left)
    with torch.no_grad():
        wanted = main_output(model(**inputs))
        leave_unread_out(model)
        with counted(model) as feed_forward:
            found = main_output(model(**inputs))
    everything = len(ROWS) * max(ROWS)
    last = len(ROWS) if reads_first_token_alone(model) else everything
    assert feed_forward.calls == [everything, last]
    assert (found - wanted).abs().max() <= 1e-6


def test_eager_attention_and_no_mask_too() -> None:
    model, _ = pair("bert-eager", "AutoModelForSequenceClassification")
    ids = batch((9, 9, 9))["input_ids"]
    with torch.no_grad():
        wanted = main_output(model(ids))
        leave_unread_out(model)
        assert (main_output(model(ids)) - wanted).abs().max() <= 1e-6


@pytest.mark.parametrize("head", ["AutoModel", "AutoModelForTokenClassification"])
def test_who_reads_every_token_gets_every_token(head: str) -> None:
    model, _ = pair("bert", head)
    assert type(model).__name__ not in HEADS
    with torch.no_grad():
        wanted = main_output(model(**batch(ROWS)))
        leave_unread_out(model)
        assert torch.equal(main_output(model(**batch(ROWS))), wanted)
