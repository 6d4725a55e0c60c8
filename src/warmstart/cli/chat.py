"""`warmstart chat`: a conversation in the terminal, or with what is piped in, a line a turn."""

from __future__ import annotations

import sys
from typing import Any

import click

from warmstart.cli import console
from warmstart.cli.generated import why_cut
from warmstart.cli.options import device_option, option_option


@click.command("chat")
@click.option("-m", "--model", default="starter-chat", show_default=True, help="A folder, run, hub id or starter name.")
@click.option("--system", help="What the model is told before the conversation.")
@option_option
@device_option
def command(model: str, system: str | None, options: dict[str, Any], device: str) -> None:
    """Talk with MODEL. Each line is a turn; the end of the input (Ctrl-D) ends the conversation.

    Ctrl-C stops an answer, and what came of it stays in the conversation; between answers it ends the program.

    \b
    warmstart chat
    warmstart chat -m runs/mine --option temperature=0.7
    echo "What is the capital of France?" | warmstart chat
    """
    from warmstart.verbs.load import load

    pipe = load(model, task="text-generation", options={"max_new_tokens": 512} | options, device=device)
    messages: list[dict[str, str]] = [] if system is None else [{"role": "system", "content": system}]
    while (line := _next_line()) is not None:
        if not line.strip():
            continue
        messages.append({"role": "user", "content": line})
        messages.append({"role": "assistant", "content": _answer(pipe, messages)})


def _answer(pipe: Any, messages: list[dict[str, str]]) -> str:
    """The answer, shown as it comes; what there is of it after Ctrl-C."""
    stream = pipe.stream({"messages": messages})
    try:
        for piece in stream:
            console.write(piece)
    except KeyboardInterrupt:
        console.write(" …")
    finally:
        stream.close()
    console.show("")
    if stream.truncated:
        console.say("the beginning of the conversation no longer fits and was left out")
    if (cut := why_cut(stream, room="A new conversation has room: Ctrl-D, then again")) is not None:
        console.say(cut)
    return str(stream.text)


def _next_line() -> str | None:
    if console.is_terminal(sys.stdin):
        try:
            return input("> ")
        except EOFError:
            return None
    line = sys.stdin.readline()
    return line.rstrip("\n") if line else None
