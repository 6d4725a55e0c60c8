"""Fingerprints see what matters and nothing else; secrets never get in (G103)."""

from __future__ import annotations

import datetime
import doctest
import json
import os
import time
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from warmstart import provenance
from warmstart.errors import DataError
from warmstart.provenance import (
    RowsDigest,
    canonical_json,
    environment,
    file_digest,
    folder_digest,
    json_digest,
    redact,
    redact_args,
    rows_digest,
)

SECRETS = [
    "hf_" + "aB3" * 11,
    "sk-" + "proj_" + "x9" * 12,
    "ghp_" + "z" * 36,
    "github_pat_" + "q" * 30,
    "AKIA" + "ABCDEFGH12345678",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl",
]


def test_examples() -> None:
    result = doctest.testmod(provenance, optionflags=doctest.ELLIPSIS)
    assert result.attempted > 0
    assert result.failed == 0


def test_file_digest_is_sha256(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert file_digest(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.mark.parametrize("kind", ["absent", "folder", "fifo", "dangling"])
def test_no_file_is_a_typed_error_at_once(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x"
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "dangling":
        path.symlink_to(tmp_path / "nowhere")
    start = time.monotonic()
    with pytest.raises(DataError) as caught:
        file_digest(path)
    assert caught.value.code == "file-unreadable"
    assert caught.value.where.source == str(path)
    assert time.monotonic() - start < 1


def test_folder_digest_sees_names_and_contents_only(tmp_path: Path) -> None:
    def folder(name: str, files: dict[str, str]) -> Path:
        for file, text in files.items():
            path = tmp_path / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path / name

    a = folder("a", {"x": "1", "sub/y": "2"})
    same = folder("b", {"sub/y": "2", "x": "1"})
    os.utime(same / "x", (0, 0))
    (same / "empty").mkdir()
    assert folder_digest(a) == folder_digest(same)
    for i, files in enumerate(
        [{"x": "1"}, {"x": "1", "sub/y": "3"}, {"x": "1", "sub/z": "2"}, {"x": "12", "suby": ""}]
    ):
        assert folder_digest(folder(f"other{i}", files)) != folder_digest(a)


def test_folder_digest_follows_links_to_files_and_ends_on_a_loop(tmp_path: Path) -> None:
    (tmp_path / "blob").write_text("1")
    plain, linked = tmp_path / "plain", tmp_path / "linked"
    plain.mkdir(), linked.mkdir()
    (plain / "x").write_text("1")
    (linked / "x").symlink_to(tmp_path / "blob")
    (linked / "loop").symlink_to(linked)
    assert folder_digest(plain) == folder_digest(linked)


def test_folder_digest_of_no_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        folder_digest(tmp_path / "absent")
    assert caught.value.code == "file-unreadable"


rows = st.lists(
    st.dictionaries(st.text(max_size=5), st.one_of(st.text(max_size=8), st.integers(), st.none())), max_size=6
)


@given(rows, st.randoms())
def test_rows_digest_order(data: list[dict[str, object]], random: object) -> None:
    shuffled = list(data)
    random.shuffle(shuffled)
    a, b = rows_digest(data), rows_digest(shuffled)
    assert a["unordered"] == b["unordered"]
    assert (a["ordered"] == b["ordered"]) == (data == shuffled)
    assert a["rows"] == len(data)


def test_rows_digest_counts_repeats_and_ignores_key_order() -> None:
    once, twice = rows_digest([{"a": 1}]), rows_digest([{"a": 1}, {"a": 1}])
    assert once["unordered"] != twice["unordered"]
    assert rows_digest([{"a": 1, "b": 2}]) == rows_digest([{"b": 2, "a": 1}])
    assert rows_digest([{"a": 1}]) != rows_digest([{"a": "1"}])


def test_rows_digest_is_pinned() -> None:
    digest = RowsDigest()
    digest.update({"text": "I love LangChain!", "label": 1})
    assert digest.as_dict() == {
        "rows": 1,
        "ordered": "7dbbc12aa5993b5c15d33eaf741a8790d25aa7cc79b646035531222618662d76",
        "unordered": "029f71ceb02cbaa618e0203c5f7655e5a9f2ea5036d962b68f845a782fd4541a",
    }


def test_canonical_json_of_the_values_rows_hold() -> None:
    value = {
        "surrogate": "\ud800", "nan": float("nan"), "array": np.arange(2), "np": np.float32(0.5), "bytes": b"abc",
        "day": datetime.date(2024, 1, 2), "money": Decimal("1.50"), "list": [(1, 2)],
        "none": None, "bool": np.bool_(True),
    }  # fmt: skip
    back = json.loads(canonical_json(value))
    assert back["nan"] == "nan"
    assert back["array"] == [0, 1]
    assert back["np"] == 0.5
    assert back["bytes"]["sha256"].startswith("ba7816bf")
    assert (back["day"], back["money"], back["list"], back["bool"]) == ("2024-01-02", "1.50", [[1, 2]], True)
    assert json_digest({"a": [1]}) != json_digest({"a": [2]})


@pytest.mark.parametrize("value", [object(), {1: 2}, {"a": {1, 2}}])
def test_what_has_no_fixed_form_is_refused(value: object) -> None:
    with pytest.raises(DataError) as caught:
        canonical_json(value)
    assert caught.value.code == "not-json"


def test_environment_is_json_and_names_the_packages() -> None:
    env = environment()
    assert json.loads(json.dumps(env)) == env
    assert env["packages"]["torch"]
    assert env["packages"]["warmstart"]
    assert env["cpu"]["cores"] >= 1


@pytest.mark.parametrize("secret", SECRETS)
def test_g103_secrets_are_recorded_nowhere(secret: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", secret)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", secret)  # a recorded variable that someone misuses
    command = [
        "warmstart",
        "train",
        "--hub-token",
        secret,
        f"--set=token={secret}",
        f"https://u:{secret}@host/x",
        secret,
    ]
    text = json.dumps(environment(command))
    assert secret not in text
    assert "train" in text  # the healthy rest of the call stays


@pytest.mark.parametrize(
    "text",
    [
        "password: hunter2",
        '{"api_key": "hunter2"}',
        "HF_TOKEN=hunter2",
        "Authorization: Bearer hunter2",
        "https://host/?token=hunter2&x=1",
        "postgres://me:hunter2@host/db",
        "MY_SECRET='hunter2'",
    ],
)
def test_g103_values_of_secret_names_are_hidden(text: str) -> None:
    assert "hunter2" not in redact(text)
    assert "[redacted]" in redact(text)


@pytest.mark.parametrize(
    "text",
    [
        "max_tokens=8192",
        "pad_token: [PAD]",
        "tokens: 5",
        "tokenizer=fast",
        "author: me",
        "text=I love LangChain!",
        "a@b.org",
    ],
)
def test_g103_healthy_text_is_left_alone(text: str) -> None:
    assert redact(text) == text


def test_g103_options() -> None:
    args = ["--token", "abc", "--max-tokens", "512", "--api-key-file", "keys.txt", "--api-key", "k"]
    assert redact_args(args) == [
        "--token", "[redacted]", "--max-tokens", "512", "--api-key-file", "keys.txt", "--api-key", "[redacted]",
    ]  # fmt: skip


def test_g103_redaction_is_linear() -> None:
    start = time.monotonic()
    for text in ("token" * 40_000, "a-" * 100_000, "://" * 60_000, "eyJ" + "a" * 200_000, "secret=" * 30_000):
        redact(text)
    assert time.monotonic() - start < 2
