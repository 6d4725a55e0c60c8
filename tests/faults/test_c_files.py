"""Catalogue C31: things that are not plain files, or may not be read. Typed errors, and nothing hangs."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from support.damage import copy_of, refused
from warmstart.checkpoints import find, load_model, load_tokenizer, verify
from warmstart.checkpoints.files import find_file

LOADED = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]


@pytest.fixture
def folder(tiny: Callable[..., Path], tmp_path: Path) -> Path:
    copy = copy_of(tiny("bert"), tmp_path / "checkpoint")
    assert verify(copy).tensors  # the healthy twin of every test here
    return copy


@pytest.mark.parametrize("name", [*LOADED, "vocab.txt", "chat_template.jinja", "warmstart.json", "MANIFEST.json"])
def test_c31_fifo_does_not_hang(folder: Path, name: str) -> None:
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    with refused("file-not-regular", name, seconds=1) as caught:
        verify(folder)
    assert "FIFO" in caught.value.what


@pytest.mark.parametrize("name", LOADED)
def test_c31_folder_in_the_place_of_a_file(folder: Path, name: str) -> None:
    (folder / name).unlink()
    (folder / name).mkdir()
    with refused("file-not-regular", name):
        verify(folder)


@pytest.mark.parametrize("name", LOADED)
def test_c31_device_behind_a_link(folder: Path, name: str) -> None:
    (folder / name).unlink()
    (folder / name).symlink_to("/dev/zero")
    with refused("symlink-outside", name):
        verify(folder)


def test_c31_socket(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)  # a socket's path may have about 100 characters
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("vocab.txt")
        with refused("file-not-regular", "vocab.txt"):
            verify(folder)


@pytest.mark.parametrize("name", LOADED)
def test_c31_dangling_link(folder: Path, name: str) -> None:
    (folder / name).unlink()
    (folder / name).symlink_to("nowhere")
    with refused("symlink-dangling", name):
        verify(folder)


def test_c31_link_that_leads_to_itself(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to("config.json")
    with refused("symlink-dangling", "config.json"):
        verify(folder)


def test_c31_twin_links_within_the_folder_and_within_a_hub_cache(folder: Path, tmp_path: Path) -> None:
    (folder / "tokenizer.json").rename(folder / "real.bin")
    (folder / "tokenizer.json").symlink_to("real.bin")
    assert verify(folder).tensors
    snapshot = tmp_path / "models--org--tiny" / "snapshots" / ("0" * 40)
    blobs = tmp_path / "models--org--tiny" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for path in folder.iterdir():
        (blobs / f"blob-{path.name}").write_bytes(path.read_bytes())
        (snapshot / path.name).symlink_to(f"../../blobs/blob-{path.name}")
    verified = verify(snapshot)
    assert load_model(verified, auto_class="AutoModelForSequenceClassification").config.num_labels == 2
    assert load_tokenizer(verified)("warm")["input_ids"]


def test_c31_unreadable_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "config.json").chmod(0)
    if os.access(folder / "config.json", os.R_OK):  # root reads everything: let the system say no
        monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "config.json")
    with refused("file-unreadable", "config.json") as caught:
        verify(folder)
    assert "chmod" in caught.value.fix


def test_c31_read_only_folder_is_enough(folder: Path) -> None:
    folder.chmod(0o555)
    try:
        assert load_tokenizer(verify(folder))("warm")["input_ids"]
    finally:
        folder.chmod(0o755)


def test_c31_missing_folder_and_folder_that_is_a_file(folder: Path) -> None:
    with refused("folder-missing", "nothing"):
        verify(folder / "nothing")
    with refused("folder-missing", "config.json"):
        verify(folder / "config.json")
    with refused("checkpoint-is-a-file", "config.json"):
        find(str(folder / "config.json"))


def test_c31_empty_folder_and_folder_of_folders(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with refused("config-missing", "empty"):
        verify(tmp_path / "empty")
    with refused("config-missing", "") as caught:
        verify(folder.parent)
    assert "checkpoint" in caught.value.fix  # it lies one level down


def test_c31_folder_with_a_flood_of_entries(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("warmstart.checkpoints.verified._ENTRIES_LIMIT", 50)
    for number in range(60):
        (folder / f"part-{number}").touch()
    with refused("folder-too-large", "checkpoint"):
        verify(folder)


def test_c31_find_file_of_a_name_that_is_not_there(folder: Path) -> None:
    assert find_file(folder, "missing.json") is None
    assert find_file(folder, "config.json/x") is None
    assert find_file(folder, "config.json") == folder / "config.json"
