"""Columns recognised by name: order of preference, partners, and what is said."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import pytest

from warmstart.rows import Field, read

FIRST = ("sentence1", "premise", "text_a", "question")
SECOND = ("sentence2", "hypothesis", "text_b", "context")
FIELDS = (
    Field("text", ("sentence", "content", "review", *FIRST), text=True),
    Field("text_pair", SECOND, required=False, text=True, partner="text", partner_aliases=FIRST),
    Field("label", ("labels", "category", "class", "score"), target=True),
)


def columns_of(names: list[str], pins: Mapping[str, str] | None = None, **options: Any) -> dict[str, str]:
    return read([dict.fromkeys(names, "x")], fields=FIELDS, columns=pins, **options).columns


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["text", "label"], {"text": "text", "label": "label"}),
        (["score", "sentence2", "sentence1"], {"text": "sentence1", "text_pair": "sentence2", "label": "score"}),
        (["premise", "hypothesis", "label"], {"text": "premise", "text_pair": "hypothesis", "label": "label"}),
        (["Review", "CLASS"], {"text": "Review", "label": "CLASS"}),
        (["Text A", "text-b", "LABEL"], {"text": "Text A", "text_pair": "text-b", "label": "LABEL"}),
        (["text", "context", "label"], {"text": "text", "label": "label"}),  # no question: the context is no partner
        (["text", "text_pair", "label"], {"text": "text", "text_pair": "text_pair", "label": "label"}),
        (["premise", "sentence2", "label"], {"text": "premise", "label": "label"}),
        (["review", "sentence", "label"], {"text": "sentence", "label": "label"}),
        (["Sentence", "review", "label"], {"text": "review", "label": "label"}),  # exact names come first
    ],
)
def test_columns_are_recognised(names: list[str], expected: dict[str, str]) -> None:
    assert columns_of(names, targets=True) == expected


def test_pins_win_and_bring_their_partner() -> None:
    assert columns_of(["text", "body"], {"text": "body"}) == {"text": "body"}
    assert columns_of(["a", "question", "context"], {"text": "question"}) == {
        "text": "question",
        "text_pair": "context",
    }
    assert columns_of(["a", "b"], {"text": "a", "text_pair": "b"}) == {"text": "a", "text_pair": "b"}
    assert columns_of(["text"], {"label": "category"}) == {"text": "text"}  # a target is not read, nor missed
    assert columns_of(["text", "label", "category"], {"label": "category"}, targets=True)["label"] == "category"


def test_guesses_are_said_once_and_kept(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "warmstart")
    stream = read([{"review": "a", "content": "b", "text_": "c"}], fields=FIELDS)
    list(stream), list(stream)
    assert stream.columns == {"text": "content"} or stream.columns == {"text": "text_"}
    (sentence,) = stream.guessed
    assert "would fit too" in sentence and "columns={'text':" in sentence
    assert [record.message for record in caplog.records] == [sentence]
    assert caplog.records[0].levelno == logging.INFO


def test_what_is_plain_or_pinned_is_no_guess() -> None:
    assert read([{"text": "a", "id": 1}], fields=FIELDS).guessed == []
    assert read([{"review": "a"}], fields=FIELDS, columns={"text": "review"}).guessed == []


def test_a_taken_name_keeps_its_column_under_input() -> None:
    rows = read([{"text": "old", "body": "new", "input_text": "older"}], fields=FIELDS, columns={"text": "body"})
    assert list(rows) == [{"input_input_text": "old", "text": "new", "input_text": "older"}]


def test_column_order_and_other_values_are_untouched() -> None:
    row = {"z": [1, {"a": None}], "review": "t", "b": 2.5}
    (found,) = read([row], fields=FIELDS)
    assert list(found.items()) == [("z", [1, {"a": None}]), ("text", "t"), ("b", 2.5)]
    assert row["review"] == "t"  # the person's own dict is not changed
