"""Conversations as ids: what is learned is what is asked, and a special token that somebody spells out is text."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers
from tokenizers import Tokenizer as Rust

from support.models import tiny_tokenizer
from warmstart.rows import Row
from warmstart.tasks.chat import Chat
from warmstart.tasks.generated_rows import learned
from warmstart.tokenization import Tokenizer

TURNS = (
    "{% for m in messages %}{{ '<|' ~ m.role ~ '|>\n' ~ m.content ~ eos_token ~ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
CONTENTS = "{% for m in messages %}{{ m.content ~ ' ' ~ eos_token }}{% endfor %}"
LETTERS = "abcdefghijklmnopqrstuvwxyz:?!|<>/\n"


def prepending(*specials: str) -> Tokenizer:
    """As Llama 2's: a space before every text, and none but "\u2581" inside it."""
    merges = [("\u2581", "h"), ("\u2581h", "i"), ("h", "i")]
    pieces = ["<unk>", "<s>", "</s>", "\u2581", *LETTERS, *(left + right for left, right in merges)]
    vocabulary = dict(zip(dict.fromkeys(pieces), count(), strict=False))
    rust = Rust(models.BPE(vocabulary, merges, unk_token="<unk>"))
    rust.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    rust.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    special = ("<s>", "</s>", *specials)
    rust.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    return Tokenizer.from_json(rust.to_str(), limit=999)


def byte_level() -> Tokenizer:
    return Tokenizer.from_json(tiny_tokenizer("llama").backend_tokenizer.to_str(), limit=999)


def talk(*contents: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]


def pieces(tokenizer: Tokenizer, ids: list[int] | tuple[int, ...]) -> list[str]:
    return [tokenizer.rust.id_to_token(token) for token in ids]


# --- what is learned ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [prepending, byte_level])
@pytest.mark.parametrize("said", ["hi", " hi", "</s>", ""])
def test_an_answer_is_learned_after_what_would_have_been_asked(make: Callable[[], Tokenizer], said: str) -> None:
    tokenizer = make()
    chat = Chat(tokenizer, TURNS, {"eos_token": "</s>"})
    messages = talk("who", "hi", "and", said, "or", "hi there")
    segments, _ = chat.answered(Row({"messages": messages}))
    ids: list[int] = []
    place = 1
    for segment in segments:
        if segment.answered:
            assert ids == chat.asked(Row({"messages": messages[:place]}))[0]
            place += 2
        ids += segment.ids
    assert place == 7
    first = next(segment for segment in segments if segment.answered)
    assert "".join(pieces(tokenizer, first.ids)) == "hi</s>"  # and no space before it


def test_a_token_over_the_border_is_not_learned() -> None:
    """Where question and answer would share a token, what is asked stays as it is, and the answer is its own text."""
    tokenizer = prepending()
    ended = "{% for m in messages %}{{ m.role[0] ~ ('h' if m.role == 'assistant' else '') ~ m.content }}{% endfor %}"
    chat = Chat(tokenizer, ended + "{% if add_generation_prompt %}{{ 'ah' }}{% endif %}")
    given, said, _ = chat.answered(Row({"messages": talk("x", "is")}))[0]
    assert list(given.ids) == chat.asked(Row({"messages": talk("x")}))[0]
    assert pieces(tokenizer, given.ids) == ["\u2581", "u", "x", "a", "h"]
    assert pieces(tokenizer, said.ids) == ["\u2581", "i", "s"]


@pytest.mark.parametrize(
    ("completion", "expected"),
    [(" hi", ["\u2581hi"]), ("hi", ["hi"]), (" hi </s>", ["\u2581hi", "\u2581", "<", "/", "s", ">"]), ("", [])],
)
def test_a_completion_goes_on_with_its_prompt(completion: str, expected: list[str]) -> None:
    tokenizer = prepending()
    row = Row({"prompt": "who?", "completion": completion})
    [[told]] = learned([row], tokenizer, Chat(tokenizer), (2,), "truncate")
    begun = ["\u2581", "w", "h", "o", "?"]
    assert pieces(tokenizer, told.ids.tolist()) == [*begun, *expected, "</s>"]
    assert (told.labels[: len(begun)] < 0).all() and (told.labels[len(begun) :] == told.ids[len(begun) :]).all()


def test_a_completion_that_shares_a_token_with_its_prompt_is_its_own_text() -> None:
    tokenizer = prepending()
    [[told]] = learned([Row({"prompt": "oh", "completion": "is"})], tokenizer, Chat(tokenizer), (2,), "truncate")
    assert pieces(tokenizer, told.ids.tolist()) == ["\u2581", "o", "h", "\u2581", "i", "s", "</s>"]


# --- special tokens that are text -----------------------------------------------------------------------------------


@given(st.text("a|<s>/", max_size=8), st.text("a|<s>/", max_size=8))
@settings(max_examples=200, deadline=None)
def test_what_a_message_spells_is_text(one: str, two: str) -> None:
    """Of one letter, one inside another, or one over another's end: a template's own tokens alone are tokens."""
    tokenizer = prepending("|", "||", "a<", "<s>|")
    chat = Chat(tokenizer, CONTENTS, {"eos_token": "</s>"})
    ids, _ = chat.asked(Row({"messages": talk(one, two)}))
    expected = [tokenizer.rust.encode(text + " ", add_special_tokens=False).ids for text in (one, two)]
    assert ids == [*expected[0], 2, *expected[1], 2]
