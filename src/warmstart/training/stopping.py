"""Stopping a run by a signal without losing work: once means after this step, twice means now."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass
class Stop:
    """Whether somebody asked for the end. `signal`: the number of the signal, or None."""

    signal: int | None = None

    def outcome(self) -> BaseException:
        """What the run ends with: KeyboardInterrupt (exit code 130) for SIGINT, SystemExit of 143 for SIGTERM."""
        return KeyboardInterrupt() if self.signal == signal.SIGINT else SystemExit(128 + signal.SIGTERM)


@contextmanager
def listening() -> Iterator[Stop]:
    """In the main thread, take note of the first SIGINT or SIGTERM, and end at once by the second.

    A signal that the process was told to ignore stays ignored; the handlers are what they were afterwards. Elsewhere
    than in the main thread Python has no signals, and nothing changes.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def note(number: int, frame: FrameType | None) -> None:
        again = stop.signal is not None
        stop.signal = number
        if again:
            raise stop.outcome()

    before = {number: signal.getsignal(number) for number in SIGNALS}
    # None stands for a handler that was not set from Python, which could not be put back.
    taken = [number for number, handler in before.items() if handler not in (None, signal.SIG_IGN)]
    try:
        for number in taken:
            signal.signal(number, note)
        yield stop
    finally:
        for number in taken:
            signal.signal(number, before[number])
