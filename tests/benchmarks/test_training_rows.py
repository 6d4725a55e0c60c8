"""The rows of the training benchmark: none of a test part is trained on."""

from __future__ import annotations

import re
from collections import Counter

import pytest
from inference_workloads import DATA

from training import PARTS, mixed_rows, review_rows


@pytest.mark.real_data
def test_mixed_rows_are_of_three_kinds_and_of_their_own_parts() -> None:
    if not DATA.is_dir():
        pytest.skip("the real data of ../shared/data is not here")
    train, test = mixed_rows("train"), mixed_rows("test")
    for rows in (train, test):
        assert Counter(row["label"] for row in rows) == {"reviews": 509, "questions": 250, "contexts": 120}
    assert {row["label"] for row in train[: PARTS["mixed"].rows]} == {"reviews", "questions", "contexts"}
    assert not _texts(train) & _texts(test)
    assert not _texts(train) & _texts(review_rows("test"))
    assert train == mixed_rows("train")


def _texts(rows: list[dict[str, str]]) -> set[str]:
    return {re.sub("[^a-z0-9]", "", row["text"].lower()) for row in rows}
