"""What a person is told about text that was generated."""

from __future__ import annotations

from typing import Any


def why_cut(stream: Any, *, room: str) -> str | None:
    """Why the answer of a stream ended before its end, and what helps; None for one that is whole, or was stopped.

    `room` says what gives a full context more room: there, more new tokens are no help.
    """
    if stream.prediction is None or stream.prediction.finish_reason != "length":
        return None
    if "answer-shortened" in stream.flags:
        return f"the answer was cut: the model's context is full. {room}"
    return "the answer was cut: --option max_new_tokens=… allows more"
