"""What a person sees: messages and progress on stderr, tables with bars on a terminal's stdout."""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from warmstart.display import escape_terminal

BAR_WIDTH = 24


def is_terminal(stream: TextIO) -> bool:
    return stream.isatty()


def use_color(stream: TextIO) -> bool:
    """NO_COLOR (no-color.org) and TERM=dumb win; FORCE_COLOR colors a pipe too."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    return bool(os.environ.get("FORCE_COLOR")) or is_terminal(stream)


def paint(text: str, style: str, stream: TextIO) -> str:
    """`text` in an ANSI style ("1" bold, "2" dim, "31" red, "32" green, "33" yellow), where the stream shows color."""
    return f"\x1b[{style}m{text}\x1b[0m" if use_color(stream) else text


def error(text: str) -> None:
    _tell(f"{paint('error:', '1;31', sys.stderr)} {_encodable(_escape_lines(text), sys.stderr)}")


def say(text: str) -> None:
    """A line for the person, on stderr."""
    _tell(_encodable(_escape_lines(text), sys.stderr))


def show(text: str) -> None:
    """A line of result for a person, on stdout."""
    print(_encodable(text, sys.stdout))


def write(text: str) -> None:
    """A piece of a text that is the result, on stdout, seen at once; on a terminal without what could steer it."""
    shown = "\t".join(map(_escape_lines, text.split("\t"))) if is_terminal(sys.stdout) else text
    print(_encodable(shown, sys.stdout), end="", flush=True)


def emit(value: Mapping[str, Any] | Sequence[Any]) -> None:
    """A line of result for a program, on stdout: JSON in ASCII, so that it survives any locale."""
    print(json.dumps(value, allow_nan=False))


def bar(share: float, *, beside: int) -> str:
    """A bar for a share between 0 and 1, in a line that holds `beside` characters of text: shorter on a narrow
    terminal, and of ASCII where the stream's encoding has no blocks."""
    width = max(0, min(BAR_WIDTH, shutil.get_terminal_size().columns - beside))
    full, part = divmod(round(max(0.0, min(1.0, share)) * width * 8), 8)
    text = "█" * full + (" ▏▎▍▌▋▊▉"[part] if part else "")
    if _encodable(text, sys.stdout) != text:
        text = "#" * (full + (part >= 4))
    return text.ljust(width)


@contextmanager
def listening() -> Iterator[None]:
    """Show what the library says (logger "warmstart") on stderr, for as long as the block lasts."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter())
    logger = logging.getLogger("warmstart")
    before = logger.handlers, logger.level, logger.propagate
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.handlers, logger.propagate = before[0], before[2]
        logger.setLevel(before[1])


class Line:
    """A progress line on stderr: rewritten in place on a terminal, printed now and then elsewhere."""

    def __init__(self, every_seconds: float = 10.0) -> None:
        self._live = _is_live()
        self._every = 0.1 if self._live else every_seconds
        self._last = time.monotonic() if not self._live else 0.0

    def update(self, text: str, *, last: bool = False) -> None:
        now = time.monotonic()
        if not last and now - self._last < self._every:
            return
        self._last = now
        text = _encodable(text, sys.stderr)
        if self._live:
            _tell(text, end="\n" if last else "")
        else:
            _tell(text)


def _tell(text: str, end: str = "\n") -> None:
    # A stderr that takes nothing is no reason to lose the result, or its exit code.
    with suppress(OSError):
        print(f"{_fresh_line()}{text}", end=end, file=sys.stderr, flush=True)


def _is_live() -> bool:
    return is_terminal(sys.stderr) and os.environ.get("TERM") != "dumb"


def _fresh_line() -> str:
    """Takes back a progress line that stands there without an end."""
    return "\r\x1b[K" if _is_live() else ""


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        text = _encodable(_escape_lines(record.getMessage()), sys.stderr)
        if record.levelno >= logging.WARNING:
            return f"{_fresh_line()}{paint('warning:', '33', sys.stderr)} {text}"
        return f"{_fresh_line()}{paint(text, '2', sys.stderr)}"


def _escape_lines(text: str) -> str:
    """Safe to show, line by line: a label or a file name in a message may come from a stranger."""
    return "\n".join(escape_terminal(line) for line in text.split("\n"))


def _encodable(text: str, stream: TextIO) -> str:
    """What the stream's encoding cannot show becomes an escape: LANG=C is no reason for a traceback."""
    encoding = stream.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)
