"""find: folders, runs, packages, starters, and the hub road against a stand-in."""

from __future__ import annotations

import logging
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.damage import copy_of, refused
from support.hub import COMMIT, Hub, serve_hub
from warmstart.checkpoints import Found, cached_names, find, verify
from warmstart.errors import CheckpointError, UsageError


@pytest.fixture
def hub(tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    folder = copy_of(tiny("bert"), tmp_path / "published")
    (folder / "pytorch_model.bin").write_bytes(b"never fetched")
    (folder / "modeling_evil.py").write_text("raise SystemExit")
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.onnx").write_bytes(b"never fetched")
    with serve_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        hub.models["org/tiny"] = hub.models["tiny-legacy"] = folder
        yield hub


def test_folder_as_text_and_as_path(tiny: Callable[..., Path]) -> None:
    folder = tiny("bert")
    assert find(folder) == Found(folder, str(folder), None, "folder")
    assert find(str(folder)).folder == folder


def test_local_folder_wins_over_a_hub_id(
    tiny: Callable[..., Path], tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy_of(tiny("bert"), tmp_path / "org" / "tiny")
    monkeypatch.chdir(tmp_path)
    assert find("org/tiny").source == "folder"
    assert hub.requests == []


def test_run_directory(tiny: Callable[..., Path], tmp_path: Path) -> None:
    run = tmp_path / "run"
    copy_of(tiny("bert"), run / "model")
    (run / "config.toml").write_text("epochs = 1\n")
    assert find(str(run)) == Found(run / "model", str(run), None, "run")
    (run / "model").rename(run / "other")
    with refused("run-without-model", "run"):
        find(str(run))


def test_missing_path_offers_the_nearest_neighbour(tmp_path: Path) -> None:
    (tmp_path / "my-model").mkdir()
    with refused("checkpoint-not-found", "my-modle") as caught:
        find(str(tmp_path / "my-modle"))
    assert "my-model" in caught.value.fix


@pytest.mark.parametrize(
    "name", ["a b", "a/b/c", "../x", "org/..", "x" * 5000, "a\x00b", "", "org/tiny@", "o/t@a..b", "-x"]
)
def test_names_that_cannot_be(name: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        find(name)
    assert caught.value.code == "checkpoint-not-found"


def test_revision_where_there_is_none(tiny: Callable[..., Path]) -> None:
    with pytest.raises(UsageError) as caught:
        find(tiny("bert"), revision="main")
    assert caught.value.code == "revision-without-hub"
    with pytest.raises(UsageError) as caught:
        find("org/tiny@a", revision="b")
    assert caught.value.code == "revision-twice"


@pytest.fixture
def package(tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package that carries two checkpoints and would leave a mark if it were imported."""
    site = tmp_path / "site"
    root = site / "carrier_pkg"
    copy_of(tiny("bert"), root / "model")
    (root / "__init__.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w')")
    info = site / "carrier_pkg-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: carrier-pkg\nVersion: 1.0\n")
    (info / "RECORD").write_text("carrier_pkg/__init__.py,,\ncarrier_pkg/model/config.json,,\n")
    monkeypatch.syspath_prepend(str(site))
    return root


@pytest.mark.parametrize("name", ["pkg:carrier-pkg", "pkg:carrier_pkg", "pkg:carrier-pkg/model"])
def test_package_is_found_and_not_imported(package: Path, tmp_path: Path, name: str) -> None:
    assert find(name) == Found(package / "model", name, None, "package")
    assert not (tmp_path / "imported").exists()
    assert "carrier_pkg" not in sys.modules


def test_package_errors(package: Path, tiny: Callable[..., Path]) -> None:
    with refused("package-not-found", ""):
        find("pkg:no-such-package-anywhere")
    with refused("package-not-found", ""):
        find("pkg:__main__")
    with refused("package-without-checkpoint", "", seconds=5):
        find("pkg:packaging")
    copy_of(tiny("gpt2"), package / "second")
    with refused("package-ambiguous", "carrier_pkg") as caught:
        find("pkg:carrier-pkg")
    assert "pkg:carrier-pkg/" in caught.value.fix
    assert find("pkg:carrier-pkg/second").folder == package / "second"


def test_hub_fetches_only_what_is_needed_and_says_so(hub: Hub, caplog: pytest.LogCaptureFixture) -> None:
    found = find("org/tiny")
    assert (found.source, found.revision, found.folder.name) == ("hub", None, COMMIT)
    assert sorted(hub.downloads) == ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    assert any("fetching org/tiny" in record.getMessage() and "MB" in record.getMessage() for record in caplog.records)
    assert verify(found.folder).labels == ("NEGATIVE", "POSITIVE")


def test_hub_legacy_name_and_revision(hub: Hub) -> None:
    assert find("tiny-legacy").folder.name == COMMIT
    assert find("org/tiny@main").revision == "main"
    assert find(f"org/tiny@{COMMIT}").revision == COMMIT
    assert find("org/tiny", revision="main").folder.name == COMMIT


def test_hub_cache_is_used_without_a_request_and_offline(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    first = find("org/tiny").folder
    count = len(hub.requests)
    assert find("org/tiny").folder == first
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert find("org/tiny").folder == first
    assert len(hub.requests) == count
    with refused("hub-offline", hub.url) as caught:
        find("org/tinny")
    assert "org/tiny" in caught.value.fix
    assert "starter" in caught.value.fix


def test_hub_token_is_sent(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    find("org/tiny")
    assert {token for _, _, token in hub.requests} == {"Bearer hf_test"}


def test_prefilled_cache_of_another_program(
    tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "distilbert-base-uncased-finetuned-sst-2-english"
    repository = tmp_path / "hub" / f"models--{name}"
    copy_of(tiny("distilbert"), repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert find(name).folder.name == COMMIT
    assert name in cached_names()
    (repository / "snapshots" / COMMIT / "model.safetensors").unlink()  # half a snapshot is none
    with refused("hub-offline", "127.0.0.1"):
        find(name)


@pytest.mark.parametrize(
    ("status", "header", "code"),
    [
        (403, "GatedRepo", "hub-gated"),
        (401, "GatedRepo", "hub-gated"),
        (403, "", "hub-forbidden"),
        (401, "RepoNotFound", "hub-not-found"),
        (404, "RepoNotFound", "hub-not-found"),
        (500, "", "hub-error"),
        (503, "", "hub-error"),
    ],
)
def test_hub_refusals_are_typed(hub: Hub, status: int, header: str, code: str) -> None:
    hub.refuse["org/closed"] = (status, header)
    with refused(code, hub.url, seconds=4):
        find("org/closed")


def test_hub_unknown_name_offers_the_nearest_cached(hub: Hub) -> None:
    find("org/tiny")
    with refused("hub-not-found", hub.url) as caught:
        find("org/tinny")
    assert "org/tiny" in caught.value.fix
    with refused("hub-revision-not-found", hub.url):
        find("org/tiny@v9")


def test_hub_repository_without_safetensors(hub: Hub) -> None:
    (hub.models["org/tiny"] / "model.safetensors").unlink()
    with refused("pickle-refused", hub.url):
        find("org/tiny")
    assert hub.downloads == []


def test_hub_that_refuses_connections_is_said_at_once() -> None:
    with refused("hub-unreachable", "127.0.0.1", seconds=4) as caught:
        find("org/model")
    assert "starter-encoder" in caught.value.fix


def test_hub_that_swallows_packets_costs_less_than_4_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as silent:  # accepts in the backlog, never answers
        silent.bind(("127.0.0.1", 0))
        silent.listen(8)
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with refused("hub-unreachable", "127.0.0.1", seconds=4):
            find("org/model")


def test_hub_whose_name_does_not_resolve_costs_less_than_4_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.invalid")
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: time.sleep(8))
    with refused("hub-unreachable", "hub.invalid", seconds=4):
        find("org/model")


def test_download_that_breaks_off_is_typed(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise OSError("connection reset by peer")

    monkeypatch.setattr("huggingface_hub.snapshot_download", broken)
    with refused("hub-download-failed", hub.url):
        find("org/tiny")


def test_find_and_verify_import_neither_torch_nor_transformers(tiny: Callable[..., Path]) -> None:
    code = (
        "import sys; from warmstart.checkpoints import find, verify; verify(find(sys.argv[1]).folder); "
        "print([m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code, str(tiny("bert"))], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_starter_encoder_is_found(encoder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert find("starter-encoder") == Found(encoder, "starter-encoder", None, "starter")
