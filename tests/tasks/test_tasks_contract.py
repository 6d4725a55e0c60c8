"""Names of tasks, predictions as JSON values, rows and options as tasks read them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from warmstart.errors import DataError, UsageError, Where
from warmstart.rows import Row
from warmstart.tasks import ALIASES, TASKS, as_dict, find_task, from_dict
from warmstart.tasks.contract import Prediction, checked_options, text_of
from warmstart.tasks.sentence_embedding import Embedding, SentenceEmbedding
from warmstart.tasks.text_classification import TextClass, TextClassification


def test_tasks_are_found_by_name_and_alias() -> None:
    assert find_task("text-classification") is find_task("sentiment-analysis") is TextClassification
    assert find_task("sentence-embedding") is find_task("feature-extraction") is Embedding
    assert set(ALIASES.values()) <= set(TASKS)
    assert not set(ALIASES) & set(TASKS)


@pytest.mark.parametrize(("name", "near"), [("text-clasification", "text-classification"), ("", "known:")])
def test_an_unknown_task_is_refused_with_the_nearest(name: str, near: str) -> None:
    with pytest.raises(UsageError) as caught:
        find_task(name)
    assert caught.value.code == "task-unknown"
    assert near in caught.value.fix


def test_predictions_have_the_common_fields() -> None:
    assert isinstance(TextClass("a", 1.0, {"a": 1.0}, 3, False), Prediction)
    assert isinstance(SentenceEmbedding((1.0,), 3, False), Prediction)


def test_as_dict_gives_plain_values_in_order() -> None:
    @dataclass(frozen=True)
    class Odd:
        z: Any
        a: Any

    odd = Odd(z=np.float32(0.5), a=(np.int64(3), {"x": (np.True_, [np.str_("y")])}))
    assert as_dict(odd) == {"z": 0.5, "a": [3, {"x": [True, ["y"]]}]}
    assert list(as_dict(odd)) == ["z", "a"]
    assert json.loads(json.dumps(as_dict(odd))) == as_dict(odd)


def test_from_dict_takes_back_what_stands_among_other_fields() -> None:
    """A line of `predict -i` keeps the row's own fields beside the prediction's."""
    prediction = TextClass(("a", "b"), 0.9, {"a": 0.9, "b": 0.6}, 7, True, ("empty-text",))
    line = json.loads(json.dumps({"text": "x", "id": 3} | as_dict(prediction)))
    assert from_dict(TextClass, line) == prediction


# --- rows -------------------------------------------------------------------------------------------------------------


def test_a_text_is_read_as_it_is() -> None:
    assert text_of(Row({"text": ""}), "text") == ""
    assert text_of(Row({}), "text_pair", optional=True) is None
    assert text_of(Row({"text_pair": None}), "text_pair", optional=True) is None


@pytest.mark.parametrize("value", [3, 1.5, True, b"x", ["x"], {"x": 1}, float("nan")])
@pytest.mark.parametrize("optional", [True, False])
def test_what_is_no_text_names_its_place(value: object, optional: bool) -> None:
    place = Where(source="rows.jsonl", line=7)
    with pytest.raises(DataError) as caught:
        text_of(Row({"text": value}, place), "text", optional=optional)
    assert caught.value.code == "field-not-text"
    assert str(caught.value.where) == "rows.jsonl:7, field 'text'"
    assert caught.value.value is value


def test_a_missing_text_names_what_the_row_has() -> None:
    with pytest.raises(DataError) as caught:
        text_of(Row({"txt": "a", "id": 1}, Where(row=4)), "text")
    assert (caught.value.code, caught.value.where.row, caught.value.value) == ("field-missing", 4, ["id", "txt"])


# --- options ----------------------------------------------------------------------------------------------------------

KNOWN = {"mode": ("fast", "slow"), "count": (int,), "share": (float,)}


@pytest.mark.parametrize("options", [{}, {"mode": "slow"}, {"count": 1}, {"share": 0}, {"share": 1.0}, {"share": 0.3}])
def test_options_that_fit(options: dict[str, Any]) -> None:
    assert checked_options(TextClassification, options, KNOWN) == options


@pytest.mark.parametrize(
    "options",
    [
        *({"mode": value} for value in ("", "Fast", None, 1, ["fast"], ("fast", "slow"))),
        *({"count": value} for value in (0, -1, 1.0, True, "1", None, float("inf"))),
        *({"share": value} for value in (-0.1, 1.1, True, "0.5", None, float("nan"), float("inf"))),
    ],
    ids=repr,
)
def test_options_that_do_not_fit(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as caught:
        checked_options(TextClassification, options, KNOWN)
    assert caught.value.code == "option-value"
    assert "<class" not in str(caught.value)


def test_an_option_nobody_knows() -> None:
    with pytest.raises(UsageError) as caught:
        checked_options(TextClassification, {"coutn": 1}, KNOWN)
    assert (caught.value.code, caught.value.fix) == ("option-unknown", "did you mean count?")
