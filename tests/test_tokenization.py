"""Parity with transformers, which calls the same Rust code by another road; and a tokenizer that nobody mutates."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from support.models import tiny_tokenizer
from warmstart.errors import CheckpointError, UsageError
from warmstart.tokenization import Encoded, Tokenizer


def _real_roberta(family: str) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with the post-processor that RoBERTa's (or GPT-2's) has: it trims offsets."""
    rust = RustTokenizer(models.BPE())
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    rust.train_from_iterator([" good film and warm words, a story"] * 20, trainer)
    rust.post_processor = (
        processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
        if family == "roberta"
        else processors.ByteLevel(trim_offsets=True)
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=rust, model_max_length=128, pad_token="<pad>", unk_token="<unk>", sep_token="</s>"
    )


def _bert_processing() -> PreTrainedTokenizerFast:
    theirs = tiny_tokenizer("bert")
    theirs.backend_tokenizer.post_processor = processors.BertProcessing(
        ("[SEP]", theirs.sep_token_id), ("[CLS]", theirs.cls_token_id)
    )
    return theirs


def _gpt2() -> PreTrainedTokenizerFast:
    theirs = tiny_tokenizer("gpt2")
    theirs.pad_token = theirs.eos_token
    return theirs


KINDS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "bert": lambda: tiny_tokenizer("bert"),
    "bert-processing": _bert_processing,
    "roberta": lambda: tiny_tokenizer("roberta"),
    "roberta-processing": lambda: _real_roberta("roberta"),
    "gpt2": _gpt2,
    "byte-level-processing": lambda: _real_roberta("gpt2"),
}
THEIRS = {name: make() for name, make in KINDS.items()}
PLAIN = {name: tokenizer.backend_tokenizer.to_str() for name, tokenizer in THEIRS.items()}


def own(kind: str, limit: int = 128) -> Tokenizer:
    return Tokenizer.from_json(PLAIN[kind], limit=limit, type_ids=kind.startswith("bert"))


def fields(piece: Any) -> tuple[list[int], list[int], list[tuple[int, int]], list[int | None]]:
    return piece.ids, piece.type_ids, piece.offsets, piece.sequence_ids


def expected(kind: str, text: Any, **options: Any) -> list[Any]:
    """The encodings that transformers gives for a text or a pair, called with lists: called with two strings it
    forgets the second where that is empty."""
    parts = (text,) if isinstance(text, str) else text
    return THEIRS[kind](*([part] for part in parts), **options).encodings


texts = st.lists(
    st.sampled_from(
        ["good", " film", "wonderful", "  ", "x1", "電影", "é", "e\u0301", "\U0001f468", "!", "\n", "\u202e"]
    ),
    max_size=40,
).map(" ".join)
anything = st.text(st.characters(exclude_categories=["Cs"]), max_size=80)
kinds = st.sampled_from(sorted(KINDS))


@given(kind=kinds, text=st.one_of(texts, anything))
@settings(max_examples=150, deadline=None)
def test_a_text_is_encoded_as_transformers_does(kind: str, text: str) -> None:
    [found] = own(kind).encode([text])
    [theirs] = expected(kind, text, truncation=True, max_length=128)
    if "special-tokens-as-text" not in found.flags:
        assert fields(found.pieces[0]) == fields(theirs)
    assert found.truncated == bool(theirs.overflowing)


@given(kind=kinds, text=texts, limit=st.integers(5, 40))
@settings(max_examples=150, deadline=None)
def test_truncation_is_that_of_transformers(kind: str, text: str, limit: int) -> None:
    [found] = own(kind, limit).encode([text])
    [theirs] = expected(kind, text, truncation=True, max_length=limit)
    assert fields(found.pieces[0]) == fields(theirs)
    assert found.truncated == bool(theirs.overflowing)
    assert not found.pieces[0].overflowing or not found.truncated


@given(kind=kinds, first=texts, second=texts, limit=st.integers(6, 60))
@settings(max_examples=200, deadline=None)
def test_a_pair_loses_tokens_as_in_transformers(kind: str, first: str, second: str, limit: int) -> None:
    [found] = own(kind, limit).encode([(first, second)])
    [theirs] = expected(kind, (first, second), truncation="longest_first", max_length=limit)
    assert fields(found.pieces[0]) == fields(theirs)
    assert found.truncated == (len(expected(kind, (first, second))[0]) > limit)


@given(kind=kinds, text=texts, limit=st.integers(8, 24), stride=st.integers(1, 5))
@settings(max_examples=150, deadline=None)
def test_windows_are_those_of_transformers(kind: str, text: str, limit: int, stride: int) -> None:
    [found] = own(kind, limit).encode([text], stride=stride)
    theirs = expected(kind, text, truncation=True, max_length=limit, stride=stride, return_overflowing_tokens=True)
    assert [fields(piece) for piece in found.pieces] == [fields(piece) for piece in theirs]


@given(kind=kinds, text=texts, limit=st.integers(20, 32), stride=st.integers(1, 5))
@settings(max_examples=100, deadline=None)
def test_windows_of_a_pair_are_those_of_transformers(kind: str, text: str, limit: int, stride: int) -> None:
    pair = ("a film", text)
    [found] = own(kind, limit).encode([pair], stride=stride)
    theirs = expected(
        kind, pair, truncation="only_second", max_length=limit, stride=stride, return_overflowing_tokens=True
    )
    assert [_of_a_pair(kind, piece) for piece in found.pieces] == [_of_a_pair(kind, piece) for piece in theirs]


def _of_a_pair(kind: str, piece: Any) -> tuple[Any, ...]:
    """Where the model has no token types, the Rust library types the windows after the first otherwise than it."""
    return fields(piece) if kind.startswith("bert") else (piece.ids, piece.offsets, piece.sequence_ids)


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("second", [None, "a story of words " * 30])
def test_the_way_of_a_long_text_is_that_of_a_short_one(kind: str, second: str | None) -> None:
    """Texts of many characters are encoded before special tokens are added: nothing but speed may differ."""
    text = "good film and warm words, " * 40
    item = text if second is None else (text, second)
    for limit in (8, 33, 128, 4000):  # far over, over, just over by characters, and within
        for stride in (None, 3):
            if stride is not None and second is not None and limit < 4000:
                continue  # no window fits beside this first text
            [found] = own(kind, limit).encode([item], stride=stride)
            if stride is None:
                theirs = expected(kind, item, truncation="longest_first", max_length=limit)
            else:
                theirs = expected(
                    kind, item, truncation=True, max_length=limit, stride=stride, return_overflowing_tokens=True
                )
            assert [fields(piece) for piece in found.pieces] == [fields(piece) for piece in theirs]


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_texts_that_lose_their_beginning(kind: str) -> None:
    theirs = KINDS[kind]()
    theirs.truncation_side = "left"
    ours = Tokenizer.from_transformers(theirs, limit=12, type_ids=False)
    text = "good film and warm words, a story of the cast"
    for item in (text, (text, "a film"), ("a film", text), (text, text * 9)):
        parts = (item,) if isinstance(item, str) else item
        [expected] = theirs(*parts, truncation="longest_first", max_length=12).encodings
        [found] = ours.encode([item])
        assert found.truncated
        assert fields(found.pieces[0]) == fields(expected)
    [windowed] = ours.encode([text], stride=2)
    assert windowed.pieces[0].ids[:3] != found.pieces[0].ids[:3]  # windows begin at the beginning


@given(batch=st.lists(st.one_of(texts, anything, st.tuples(texts, texts)), max_size=6), limit=st.integers(6, 20))
@settings(max_examples=80, deadline=None)
def test_encoding_in_bulk_is_encoding_one_by_one(batch: list[Any], limit: int) -> None:
    bulk = own("bert", limit).encode(batch)
    alone = [own("bert", limit).encode([text])[0] for text in batch]
    assert [_flat(encoded) for encoded in bulk] == [_flat(encoded) for encoded in alone]


def _flat(encoded: Encoded) -> tuple[Any, ...]:
    return [fields(piece) for piece in encoded.pieces], encoded.truncated, encoded.flags  # type: ignore[return-value]


def test_one_odd_text_does_not_change_the_others() -> None:
    calm = ["a good film", ("is it", "warm")]
    alone = [_flat(encoded) for encoded in own("bert").encode(calm)]
    mixed = own("bert").encode([calm[0], "bad \ud800", calm[1], "", "good " * 4000])
    assert [_flat(mixed[0]), _flat(mixed[2])] == alone
    assert [encoded.flags for encoded in mixed[1::2]] == [("surrogates-replaced",), ("empty-text",)]


# --- the copy -------------------------------------------------------------------------------------------------------


def test_stored_truncation_and_padding_are_not_obeyed() -> None:
    """all-MiniLM-L6-v2 ships both: "hi" would become 128 ids, and every text end at 128."""
    rust = RustTokenizer.from_str(PLAIN["bert"])
    rust.enable_truncation(16)
    rust.enable_padding(length=16)
    ours = Tokenizer.from_json(rust.to_str(), limit=64)
    short, long = ours.encode(["hi", "a " * 40])
    assert len(short.pieces[0]) < 10
    assert len(long.pieces[0]) == 42


def test_calls_of_the_persons_tokenizer_do_not_reach_ours_nor_ours_theirs() -> None:
    theirs = KINDS["bert"]()
    ours = Tokenizer.from_transformers(theirs, limit=128, type_ids=True)
    text = "good film " * 30
    before = _flat(ours.encode([text])[0])
    theirs([text, "a"], truncation=True, max_length=8, padding="max_length")
    theirs.add_tokens(["film"])
    assert _flat(ours.encode([text])[0]) == before
    state = theirs.backend_tokenizer.to_str()
    ours.encode([text, "\ud800"], stride=None)
    ours.encode([text], stride=3)
    assert theirs.backend_tokenizer.to_str() == state
    assert ours.rust.truncation is None
    assert ours.rust.padding is None


def test_many_threads_one_tokenizer() -> None:
    ours = own("roberta-processing", 24)
    batch = ["good film " * n for n in range(1, 60)] + [("a story", "warm words " * n) for n in range(1, 20)]
    wanted = [_flat(encoded) for encoded in ours.encode(batch)]
    found: list[Any] = []

    def encode() -> None:
        fresh = own("roberta-processing", 24) if len(found) % 2 else ours  # also the lazily made copy, raced for
        found.append([_flat(encoded) for encoded in fresh.encode(batch)])

    threads = [threading.Thread(target=encode) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [wanted] * 8


def test_from_folder(tiny: Callable[..., Path]) -> None:
    ours = Tokenizer.from_folder(tiny("bert"), limit=32, type_ids=True)
    [found] = ours.encode([("a film", "good")])
    inputs = ours.inputs(found.pieces[0])
    assert set(inputs) == {"input_ids", "attention_mask", "token_type_ids"}
    assert all(array.dtype == "int64" and array.shape == (len(found.pieces[0]),) for array in inputs.values())
    assert inputs["token_type_ids"].tolist() == found.pieces[0].type_ids
    assert set(Tokenizer.from_folder(tiny("bert"), limit=32).inputs(found.pieces[0])) == {"input_ids", "attention_mask"}


def test_the_limit_is_the_lowest_of_all() -> None:
    theirs = KINDS["bert"]()
    assert Tokenizer.from_transformers(theirs, limit=10**9, type_ids=True).limit == 128
    assert Tokenizer.from_transformers(theirs, limit=9, type_ids=True).limit == 9


@pytest.mark.parametrize("limit", [3, 1, 0, -5])
def test_a_limit_without_room_is_refused(limit: int) -> None:
    with pytest.raises(UsageError) as caught:
        own("bert", limit)
    assert caught.value.code == "limit-too-small"
    assert own("bert", 4).encode(["a good film"])[0].truncated


def test_a_python_tokenizer_is_refused() -> None:
    class Slow:
        is_fast = False
        name_or_path = "some/checkpoint"

    with pytest.raises(CheckpointError) as caught:
        Tokenizer.from_transformers(Slow(), limit=128, type_ids=False)
    assert caught.value.code == "tokenizer-not-fast"
    assert "some/checkpoint" in str(caught.value.where)


def test_nothing_to_encode() -> None:
    assert own("bert").encode([]) == []


@pytest.mark.real_data
def test_real_texts_through_the_real_tokenizer(encoder: Path) -> None:
    data = Path(__file__).parent.parent.parent / "shared" / "data" / "reviews" / "train.jsonl"
    if not data.exists():
        pytest.skip("../shared/data is absent")
    with data.open(encoding="utf-8") as lines:
        batch = [json.loads(line)["text"] for _, line in zip(range(1000), lines, strict=False)]
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(encoder / "tokenizer.json"))
    ours = Tokenizer.from_folder(encoder, limit=32, type_ids=True)
    wanted = theirs(batch, truncation=True, max_length=32, padding=False)["input_ids"]
    assert [encoded.pieces[0].ids for encoded in ours.encode(batch)] == wanted


# --- the first text of a pair is shortened ----------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [12, 16, 24])
def test_only_the_first_text_is_cut_as_in_transformers(limit: int) -> None:
    theirs = tiny_tokenizer("bert")
    ours = Tokenizer.from_transformers(theirs, limit=limit, type_ids=True)
    pairs = [("the cast is great but the story never begins " * n, "good film") for n in (1, 2, 30)]
    for pair, code in zip(pairs, ours.encode(pairs, shorten="first"), strict=True):
        expected = theirs(*pair, truncation="only_first", max_length=limit, return_token_type_ids=True)
        [piece] = code.pieces
        assert (piece.ids, piece.type_ids) == (expected["input_ids"], expected["token_type_ids"])
        assert code.truncated == (len(theirs(*pair)["input_ids"]) > limit)


def test_windows_of_the_first_text_carry_the_whole_second() -> None:
    ours = Tokenizer.from_transformers(tiny_tokenizer("bert"), limit=16, type_ids=True)
    text = "the cast is great but the story never begins " * 6
    [code] = ours.encode([(text, "good film")], shorten="first", stride=3)
    [second] = [code.ids for code in ours.rust.encode_batch(["good film"], add_special_tokens=False)]
    bare = ours.rust.encode(text, add_special_tokens=False).ids
    seen: list[int] = []
    for piece in code.pieces:
        first = [i for i, kind in zip(piece.ids, piece.type_ids, strict=True) if kind == 0][1:-1]
        assert [i for i, kind in zip(piece.ids, piece.type_ids, strict=True) if kind == 1][:-1] == second
        assert len(piece) <= 16
        seen += first if not seen else first[3:]
    assert seen == bare and len(code.pieces) > 3 and not code.truncated
