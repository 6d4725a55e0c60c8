"""Splits by the hash of the text."""

from __future__ import annotations

import hashlib
import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from warmstart.errors import DataError
from warmstart.rows import Row, bucket, hold_out


@given(st.text())
def test_bucket_is_the_rule(text: str) -> None:
    assert bucket(text) == hashlib.sha256(re.sub("[^a-z0-9]", "", text.lower()).encode()).digest()[0] % 10


def rows_of(count: int, prefix: str = "text") -> list[Row]:
    return [Row({"text": f"{prefix} {n}"}) for n in range(count)]


def test_holding_out_is_near_its_fraction_and_stable_under_order_and_growth() -> None:
    rows = rows_of(5000)
    train, held = hold_out(rows, 0.1)
    assert 400 < len(held) < 600
    assert sorted(row["text"] for row in [*train, *held]) == sorted(row["text"] for row in rows)
    assert [row["text"] for row in held] == sorted((row["text"] for row in held), key=lambda text: int(text[5:]))
    shuffled = random.Random(0).sample(rows, len(rows))
    assert {row["text"] for row in hold_out(shuffled, 0.1)[1]} == {row["text"] for row in held}
    assert {row["text"] for row in hold_out(rows[:2500], 0.1)[1]} <= {row["text"] for row in held}


def test_equal_texts_stay_together_but_for_case_and_punctuation() -> None:
    rows = [Row({"text": text}) for n in range(500) for text in (f"Film no. {n}!", f"film no {n}")]
    train, held = hold_out(rows, 0.3)
    key = [{re.sub("[^a-z0-9]", "", row["text"].lower()) for row in part} for part in (train, held)]
    assert not key[0] & key[1]


@pytest.mark.parametrize("prefix", ["фильм", "映画", "ταινία", "🎬🎬"])
def test_texts_without_latin_letters_are_split_too(prefix: str) -> None:
    rows = rows_of(2000, prefix)
    assert 120 < len(hold_out(rows, 0.1)[1]) < 280
    words = [Row({"text": "".join(chr(0x430 + int(digit)) for digit in str(n))}) for n in range(2000)]
    assert 120 < len(hold_out(words, 0.1)[1]) < 280


def test_rows_chosen_by_bucket_split_evenly_again() -> None:
    rows = [row for row in rows_of(8000) if bucket(row["text"]) < 8]
    assert 0.08 < len(hold_out(rows, 0.1)[1]) / len(rows) < 0.12


def test_a_row_without_text_is_named() -> None:
    with pytest.raises(DataError) as caught:
        hold_out([Row({"text": "a"}), Row({"text": None})], 0.5)
    assert caught.value.code == "field-missing"
    assert hold_out([Row({"q": "a"})], 0.5, fields=("text", "q")) == ([{"q": "a"}], [])


def test_a_list_of_words_is_held_as_its_text() -> None:
    texts = [Row({"text": f"word {i} film"}) for i in range(200)]
    words = [Row({"tokens": row["text"].split()}) for row in texts]
    held = [row["text"] for row in hold_out(texts, 0.2)[1]]
    assert [" ".join(row["tokens"]) for row in hold_out(words, 0.2, fields=("text", "tokens"))[1]] == held
    assert held
