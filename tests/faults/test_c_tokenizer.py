"""Catalogue C25, C26: tokenizers that do not fit the model, or are made to stall it."""

from __future__ import annotations

import json
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.damage import copy_of, edit_json, refused
from warmstart.checkpoints import load_tokenizer, verify
from warmstart.checkpoints.tokenizer_file import PROBE_SECONDS
from warmstart.errors import CheckpointError

NAME = "tokenizer.json"


@pytest.fixture
def folder(tiny: Callable[..., Path], tmp_path: Path) -> Path:
    copy = copy_of(tiny("bert"), tmp_path / "checkpoint")
    assert verify(copy).findings == ()  # the healthy twin of every test here
    return copy


def _edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads((folder / NAME).read_text())
    change(content)
    (folder / NAME).write_text(json.dumps(content))


def _regex(folder: Path, pattern: str) -> None:
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    sequence = {"type": "Sequence", "pretokenizers": [split]}
    _edit(folder, lambda content: content.update(pre_tokenizer=sequence))


def _rows(folder: Path) -> int:
    return int(json.loads((folder / "config.json").read_text())["vocab_size"])


def test_c25_vocabulary_larger_than_the_embedding(folder: Path) -> None:
    rows = _rows(folder)
    _edit(folder, lambda content: content["model"]["vocab"].update(beyond=rows))
    with refused("tokenizer-vocab-too-large", NAME) as caught:
        verify(folder)
    assert caught.value.value == rows


def test_c25_added_token_beyond_the_embedding(folder: Path) -> None:
    token = {"id": _rows(folder) + 5, "content": "<new>", "special": True}
    _edit(folder, lambda content: content["added_tokens"].append(token))
    with refused("tokenizer-vocab-too-large", NAME):
        verify(folder)


@pytest.mark.parametrize(
    ("file", "changes", "token"),
    [
        ("tokenizer_config.json", {"pad_token": "[NEWPAD]"}, "[NEWPAD]"),
        ("tokenizer_config.json", {"additional_special_tokens": ["<one>", "<two>"]}, "<one>"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"0": {"content": "<zz>", "special": True}}}, "<zz>"),
    ],
)
def test_c25_tokens_added_outside_tokenizer_json(folder: Path, file: str, changes: dict[str, Any], token: str) -> None:
    assert load_tokenizer(verify(folder)).pad_token == "[PAD]"  # the healthy twin; imports
    edit_json(folder / file, changes)
    with refused("tokenizer-vocab-too-large", file) as caught:
        load_tokenizer(verify(folder))
    assert token in str(caught.value.value)


def test_c25_vocabulary_without_tokenizer_json(folder: Path) -> None:
    vocab = json.loads((folder / NAME).read_text())["model"]["vocab"]
    (folder / NAME).unlink()
    edit_json(folder / "tokenizer_config.json", {"tokenizer_class": "BertTokenizer"})
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in vocab))
    assert len(load_tokenizer(verify(folder))) == len(vocab)
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in [*vocab, "beyond"]))
    with refused("tokenizer-vocab-too-large", "tokenizer_config.json"):
        load_tokenizer(verify(folder))


def test_c25_twin_the_last_row_may_be_used_and_rows_may_be_spare(folder: Path, tiny: Callable[..., Path]) -> None:
    ids = json.loads((folder / NAME).read_text())["model"]["vocab"].values()
    assert max(ids) == _rows(folder) - 1
    _edit(folder, lambda content: content["model"]["vocab"].popitem())
    assert verify(folder).findings == ()


@pytest.mark.parametrize("pattern", [r"(a+)+$", r"(x+x+)+y", r"(\w+\s?)*!$"])
def test_c26_catastrophic_regex_is_stopped_in_time(folder: Path, pattern: str) -> None:
    _regex(folder, pattern)
    start = time.perf_counter()
    try:
        verified = verify(folder)
    except CheckpointError as error:  # the library may give up on the pattern itself, or the probe on its time
        assert error.code in ("tokenizer-too-slow", "tokenizer-invalid")
        assert NAME in str(error.where)
    else:
        assert load_tokenizer(verified)("a" * 3000 + "!")["input_ids"]
    assert time.perf_counter() - start < PROBE_SECONDS + 5


def test_c26_endless_pattern_costs_the_probes_time_and_no_more(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _regex(folder, r"(?:(?:a*)*)*b|(a|aa)+$")
    monkeypatch.setattr("warmstart.checkpoints.tokenizer_file._PROBE", "import time; time.sleep(60)")
    monkeypatch.setattr("warmstart.checkpoints.tokenizer_file.PROBE_SECONDS", 0.3)
    with refused("tokenizer-too-slow", NAME):
        verify(folder)
    assert PROBE_SECONDS <= 5


def test_c26_pattern_that_is_no_regex(folder: Path) -> None:
    _regex(folder, r"(unclosed")
    with refused("tokenizer-invalid", NAME):
        verify(folder)


@pytest.mark.parametrize("pattern", [r"\p{N}{1,3}", r"[^\W\d_]+|\d", r"\w+|[^\w\s]+"])
def test_c26_twin_ordinary_patterns_pass(folder: Path, pattern: str) -> None:
    _regex(folder, pattern)
    assert verify(folder).findings == ()
    assert load_tokenizer(verify(folder))("warm 123")["input_ids"]


@pytest.mark.parametrize("name", [NAME, "vocab.txt", "merges.txt", "tokenizer.model", "added_tokens.json"])
def test_c26_a_gigabyte_is_not_read(folder: Path, name: str) -> None:
    with (folder / name).open("ab") as file:
        file.truncate(1 << 30)  # sparse: takes no space
    tracemalloc.start()
    try:
        with refused("file-too-large", name):
            verify(folder)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_c26_a_flood_of_added_tokens(folder: Path) -> None:
    tokens = [{"id": 0, "content": f"<{i}>"} for i in range(60_000)]
    _edit(folder, lambda content: content.update(added_tokens=tokens))
    with refused("tokenizer-added-tokens", NAME):
        verify(folder)


def test_c26_post_processor_that_floods_every_text(folder: Path) -> None:
    piece = {"SpecialToken": {"id": "[CLS]", "type_id": 0}}
    _edit(folder, lambda content: content["post_processor"].update(single=[piece] * 100_000))
    with refused("tokenizer-template", NAME):
        verify(folder)


def test_c26_special_token_that_stands_for_many_ids(folder: Path) -> None:
    entry = {"id": "[CLS]", "ids": [0] * 50_000, "tokens": ["[PAD]"] * 50_000}
    _edit(folder, lambda content: content["post_processor"]["special_tokens"].update({"[CLS]": entry}))
    with refused("tokenizer-template", NAME):
        verify(folder)


def test_c26_nested_post_processors(folder: Path) -> None:
    processor: dict[str, Any] = {"type": "Sequence", "processors": []}
    for _ in range(200):
        processor = {"type": "Sequence", "processors": [processor]}
    _edit(folder, lambda content: content.update(post_processor=processor))
    with refused("json-too-deep", NAME):
        verify(folder)


@pytest.mark.parametrize(
    "content", [b"{}", b'{"model": []}', b'{"model": {"vocab": {"a": "b"}}}', b"[1]", b"\x00" * 100]
)
def test_c26_tokenizer_file_of_another_kind(folder: Path, content: bytes) -> None:
    (folder / NAME).write_bytes(content)
    with refused("json-invalid" if content[:1] != b"{" else "tokenizer-invalid", NAME):
        verify(folder)


def test_c26_the_library_refuses_what_we_let_pass(folder: Path) -> None:
    _edit(folder, lambda content: content.update(pre_tokenizer={"type": "NoSuchPreTokenizer"}))
    with refused("tokenizer-invalid", "checkpoint"):
        load_tokenizer(verify(folder))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("tokenizer_file", "/etc/passwd"),
        ("vocab_file", "../../secret.txt"),
        ("init_inputs", ["/etc/passwd"]),
        ("fast_tokenizer_files", ["tokenizer.4.0.0.json"]),
        ("custom_tokenizer", "evil.Tokenizer"),
    ],
)
def test_c26_tokenizer_config_names_other_files(folder: Path, key: str, value: object) -> None:
    expected = load_tokenizer(verify(folder))("warm start")["input_ids"]
    edit_json(folder / "tokenizer_config.json", {key: value})
    verified = verify(folder)
    assert any(key in finding for finding in verified.findings)
    tokenizer = load_tokenizer(verified)
    assert tokenizer("warm start")["input_ids"] == expected
    assert tokenizer.name_or_path == str(verified.folder)


def test_c26_no_tokenizer_at_all(folder: Path) -> None:
    (folder / NAME).unlink()
    (folder / "tokenizer_config.json").unlink()
    with refused("tokenizer-missing", "checkpoint"):
        load_tokenizer(verify(folder))
