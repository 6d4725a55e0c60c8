"""Standard streams as a shell may hand them over: closed, full, or without a reader."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO, cast


@contextmanager
def usable_streams() -> Iterator[None]:
    """Put a stream in the place of each closed one, which Python shows as None, for as long as the block lasts.

    A closed stdin is empty, a closed stderr swallows, and a closed stdout fails when something is written to it: a
    result that goes nowhere is an error, a command that writes to a file does not need it.
    """
    before = sys.stdin, sys.stdout, sys.stderr
    opened: list[TextIO] = []

    def put(stream: TextIO | None, flags: int, mode: str) -> TextIO:
        if stream is not None:
            return stream
        opened.append(cast("TextIO", os.fdopen(os.open(os.devnull, flags), mode)))
        return opened[-1]

    sys.stdin = put(sys.stdin, os.O_RDONLY, "r")
    sys.stdout = put(sys.stdout, os.O_RDONLY, "w")  # for reading only: each write fails, as on a closed stream
    sys.stderr = put(sys.stderr, os.O_WRONLY, "w")
    try:
        yield
    finally:
        settle()
        for stream in opened:
            stream.close()
        sys.stdin, sys.stdout, sys.stderr = before


def settle() -> None:
    """Flush what is written; what a stream does not take is dropped, or Python would complain about it at its exit."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, stream.fileno())
            os.close(nothing)
