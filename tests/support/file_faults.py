"""A fault or a kill at the n-th file operation of a piece of work; and the order in which it made them."""

from __future__ import annotations

import io
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import transformers.modeling_utils
from safetensors import SafetensorError

NAMES = ("mkdir", "rename", "replace", "chmod", "unlink", "rmdir", "fsync")


_SILENT = threading.local()


@contextmanager
def unwatched() -> Iterator[None]:
    """What is done here, by who watches, is no operation."""
    _SILENT.on = True
    try:
        yield
    finally:
        _SILENT.on = False


@dataclass
class Operations:
    """Counts file operations that change something, from 1, and calls `at(number, name)` before each."""

    at: Callable[[int, str], None]
    made: list[tuple[str, str, str]] = field(default_factory=list)  # (name, path, second path)
    _lock: Any = field(default_factory=threading.RLock)

    def note(self, name: str, path: Any, other: Any = "") -> None:
        if _SILENT.__dict__.get("on"):
            return
        with self._lock:
            self.made.append((name, _name(path), _name(other)))
            self.at(len(self.made), name)


def _name(path: Any) -> str:
    if isinstance(path, int):  # a descriptor
        try:
            return str(Path(f"/proc/self/fd/{path}").readlink())
        except OSError:
            return f"descriptor {path}"
    return os.fspath(path) if path != "" else ""


@dataclass
class _File:
    """A file whose writes are operations too."""

    file: Any
    operations: Operations

    def write(self, data: Any) -> Any:
        self.operations.note("write", self.file.name)
        return self.file.write(data)

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *arguments: object) -> None:
        self.file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


@contextmanager
def watched(operations: Operations) -> Iterator[None]:
    """Every file operation made by way of `os`, `io.open` and the writer of safetensors is noted before it is made."""
    real_open, real_save = io.open, transformers.modeling_utils.safe_save_file

    def opened(file: Any, mode: str = "r", *arguments: Any, **named: Any) -> Any:
        if not set(mode) & set("wax+"):
            return real_open(file, mode, *arguments, **named)
        operations.note("open", file)
        return _File(real_open(file, mode, *arguments, **named), operations)

    def saved(tensors: Any, filename: Any, metadata: Any = None) -> Any:
        try:
            operations.note("write", filename)
        except OSError as error:  # its own way to say it
            raise SafetensorError(f"Error while serializing: I/O error: {error.strerror}") from None
        return real_save(tensors, filename, metadata=metadata)

    with pytest.MonkeyPatch.context() as patch:
        for name in NAMES:
            patch.setattr(os, name, _noted(name, getattr(os, name), operations))
        patch.setattr(io, "open", opened)
        patch.setattr(transformers.modeling_utils, "safe_save_file", saved)
        yield


def _noted(name: str, real: Callable[..., Any], operations: Operations) -> Callable[..., Any]:
    def call(path: Any, *arguments: Any, **named: Any) -> Any:
        operations.note(name, path, arguments[0] if name in ("rename", "replace") else "")
        return real(path, *arguments, **named)

    return call


def operations_of(action: Callable[[], Any]) -> list[tuple[str, str, str]]:
    """The operations that `action` makes: (name, path, second path)."""
    operations = Operations(lambda number, name: None)
    with watched(operations):
        action()
    return operations.made


def killed_at(number: int, action: Callable[[], Any]) -> bool:
    """Do `action` in a forked process that is killed (SIGKILL) before its n-th file operation; was it?"""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # from Python 3.12 on, of forks beside threads
        child = os.fork()
    if child == 0:

        def kill(count: int, name: str) -> None:
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)

        try:
            with watched(Operations(kill)):
                action()
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
