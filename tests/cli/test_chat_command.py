"""A conversation on the command line, and text as it comes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import warmstart as ws
from warmstart.engine import TextStream

NEW = ("--option", "max_new_tokens=6")


def test_each_line_is_a_turn_and_the_conversation_is_remembered(warmstart: Any, tiny: Callable[..., Path]) -> None:
    folder = tiny("llama", "generation")
    pipe = ws.load(folder, options={"max_new_tokens": 6}, device="cpu")
    messages: list[dict[str, str]] = [{"role": "system", "content": "be kind"}]
    for line in ("is it fun", "why"):
        messages.append({"role": "user", "content": line})
        messages.append({"role": "assistant", "content": pipe({"messages": messages}).generated_text})
    done = warmstart("chat", "-m", folder, "--system", "be kind", *NEW, "--device", "cpu", stdin=b"is it fun\n\nwhy\n")
    assert done.code == 0
    shown = [message["content"] for message in messages if message["role"] == "assistant"]
    assert done.out == "".join(f"{text}\n" for text in shown)
    assert "the answer was cut: --option max_new_tokens=" in done.err


def test_a_full_context_is_said_for_what_it_is(warmstart: Any, tiny: Callable[..., Path]) -> None:
    """More new tokens would not help where there is no room for them."""
    full = ("--option", "max_new_tokens=100", "--option", "min_new_tokens=100", "--option", "max_length=40")
    done = warmstart("chat", "-m", tiny("llama", "generation"), *full, "--device", "cpu", stdin=b"is it fun\n")
    assert done.code == 0
    assert "the answer was cut: the model's context is full" in done.err and "A new conversation" in done.err
    assert "max_new_tokens" not in done.err


def test_a_full_context_is_said_of_a_streamed_row_too(warmstart: Any, tiny: Callable[..., Path]) -> None:
    full = ("--option", "max_new_tokens=100", "--option", "min_new_tokens=100", "--option", "max_length=40")
    common = ("-m", tiny("llama", "generation"), *full, "--device", "cpu")
    done = warmstart("predict", "--stream", *common, "is it fun")
    assert done.code == 0 and "row 0: answer-shortened" in done.err
    assert "row 0: the answer was cut: the model's context is full. A shorter prompt" in done.err
    assert "max_new_tokens" not in done.err


def test_an_interrupt_stops_the_answer_and_not_the_program(
    warmstart: Any, tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted: list[TextStream] = []
    grow = TextStream.__next__

    def once(self: TextStream) -> str:
        if self.text and not interrupted:
            interrupted.append(self)
            raise KeyboardInterrupt
        return grow(self)

    monkeypatch.setattr(TextStream, "__next__", once)
    long = ("--option", "max_length=24")  # so that the beginning is left out, of the second turn too
    lines = b"good good good good good is it fun\nwhy\n"
    done = warmstart("chat", "-m", tiny("llama", "generation"), *NEW, *long, "--device", "cpu", stdin=lines)
    assert done.code == 0
    assert done.err.count("the beginning of the conversation no longer fits and was left out") == 2
    [stopped] = interrupted
    assert done.out.startswith(f"{stopped.text} …\n")  # and the second answer is whole
    assert len(done.out) > len(stopped.text) + 4


def test_predict_streams_the_text_that_it_predicts(warmstart: Any, tiny: Callable[..., Path]) -> None:
    folder = tiny("gpt2", "generation")
    texts = ["I love this film", "A dull"]
    common = ("-m", folder, *NEW, "--device", "cpu")
    streamed = warmstart("predict", "--stream", *common, *texts)
    predicted = warmstart("predict", *common, *texts)
    assert streamed.code == predicted.code == 0
    assert streamed.out == "".join(f"{line['generated_text']}\n" for line in predicted.lines)
    for wrong in (["--json"], ["-o", "out.jsonl"]):
        done = warmstart("predict", "--stream", *wrong, *common, *texts)
        assert done.code == 2 and "option-conflict" in done.err


def test_predict_says_what_was_odd_about_a_streamed_row(warmstart: Any, tiny: Callable[..., Path]) -> None:
    common = ("-m", tiny("gpt2", "generation"), *NEW, "--device", "cpu", "--option", "max_length=24")
    done = warmstart("predict", "--stream", *common, "x", "good " * 40, " ")
    assert done.code == 0
    assert "row 1: the text is longer than 18 tokens and was cut" in done.err and done.err.count("tokens and was") == 1
    assert "row 2: empty-text" in done.err
    assert "row 0: the answer was cut: --option max_new_tokens=" in done.err
    assert "row" not in done.out
