"""Conversations: reading `messages`, writing them as a checkpoint's chat template says, and what of it was answered."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from warmstart.errors import CheckpointError, DataError
from warmstart.rows import Row
from warmstart.tasks.chat_functions import TemplateRefusedError
from warmstart.tasks.chat_sandbox import ChatProgram, TemplateFailedError
from warmstart.tokenization import Tokenizer

TEMPLATE, SETTINGS = "chat_template.jinja", "tokenizer_config.json"
_SURROGATES = re.compile("[\ud800-\udfff]")
_MARKS = range(0xE000, 0xE100)  # characters of no meaning

Message = dict[str, str]


@dataclass(frozen=True)
class Segment:
    """A part of a conversation as the model reads it; `answered`: the assistant wrote it, so it can be learned."""

    ids: tuple[int, ...]
    answered: bool = False


@dataclass(frozen=True)
class Chat:
    """A checkpoint's chat template over its tokenizer. `variables`: special tokens as templates name them."""

    tokenizer: Tokenizer
    source: str | None = None
    variables: Mapping[str, str] = field(default_factory=dict)
    folder: Path | None = None

    @classmethod
    def from_folder(cls, tokenizer: Tokenizer, folder: Path) -> Chat:
        """What the folder's `chat_template.jinja`, else its `tokenizer_config.json`, says; nothing is run yet."""
        path = folder / SETTINGS
        settings = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        source = settings.get("chat_template")
        if isinstance(source, list):  # several by name
            named = {item.get("name"): item.get("template") for item in source if isinstance(item, dict)}
            source = named.get("default")
        if (folder / TEMPLATE).is_file():
            source = (folder / TEMPLATE).read_text(encoding="utf-8", errors="replace")
        values = {name: settings.get(name) for name in ("bos_token", "eos_token", "pad_token", "unk_token")}
        texts = {name: value.get("content") if isinstance(value, dict) else value for name, value in values.items()}
        known = {name: text for name, text in texts.items() if isinstance(text, str)}
        return cls(tokenizer, source if isinstance(source, str) else None, known, folder)

    def asked(self, row: Row) -> tuple[list[int], tuple[str, ...]]:
        """The conversation up to where an answer begins, as ids; and flags of what was odd about its texts.

        Raises DataError "field-not-messages", "messages-refused"; CheckpointError "chat-template-missing",
        "chat-template-unusable".
        """
        messages, mark, flags = self._marked(row)
        return self._ids(self._write(messages, row, answer=True), mark), flags

    def answered(self, row: Row) -> tuple[list[Segment], tuple[str, ...]]:
        """The whole conversation, each answer a segment of its own that begins where `asked` would have ended, and
        ends with the token that ends it: what a template writes after that (a new line, say) is not the model's to say.

        Raises as `asked`, and CheckpointError "chat-template-not-stepwise" for a template that writes the messages
        before an answer otherwise once the answer is there.
        """
        messages, mark, flags = self._marked(row)
        segments, ids, written = list[Segment](), list[int](), ""
        for place, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            after = self._write(messages[: place + 1], row, answer=False)
            before = self._write(messages[:place], row, answer=True) if place else self._opened(message, row, after)
            if not (before.startswith(written) and after.startswith(before)):
                raise CheckpointError(
                    "chat-template-not-stepwise",
                    "the template writes the messages before an answer otherwise once the answer is there",
                    where=None if self.folder is None else str(self.folder),
                    value=before[-80:],
                    fix="give prompt and completion, written as the model shall read them",
                )
            given = self._following(ids, self._ids(before, mark), before[len(written) :], mark)
            said = self._following(ids + given, self._ids(after, mark), after[len(before) :], mark)
            end = self._end(said)
            segments.append(Segment(tuple(given)))
            segments += [Segment(tuple(said[:end]), answered=True), Segment(tuple(said[end:]))]
            ids += given + said
            written = after
        return segments, flags

    def _following(self, ids: list[int], whole: list[int], text: str, mark: str) -> list[int]:
        """What follows `ids` in the whole text's ids, whose last part is `text`: a tokenizer may write a text's first
        word otherwise than the same word in its midst. Where a token reaches over the border, the ids of the part."""
        return whole[len(ids) :] if whole[: len(ids)] == ids else self._ids(text, mark)

    def _opened(self, message: Message, row: Row, written: str) -> str:
        """What the template writes before the content of a conversation's first message, given with the content: there
        is no question that `asked` could write."""
        other = {**message, "content": next(chr(code) for code in _MARKS if chr(code) not in message["content"])}
        pairs = enumerate(zip(written, self._write([other], row, answer=False), strict=False))
        return written[: next((place for place, (one, two) in pairs if one != two), len(written))]

    def _end(self, said: Sequence[int]) -> int:
        """How many of an answer's tokens there are up to the one that ends it; all, where none does."""
        specials = {self.tokenizer.rust.token_to_id(token) for token in self.tokenizer.specials}
        last = max((place for place, token in enumerate(said) if token in specials), default=-1) + 1
        if last and not self.tokenizer.rust.decode(said[last:]).strip():
            return last
        end = self.tokenizer.rust.token_to_id(self.variables.get("eos_token", ""))
        return max((place for place, token in enumerate(said) if token == end), default=len(said) - 1) + 1

    @cached_property
    def _program(self) -> ChatProgram:
        if self.source is None:
            raise CheckpointError(
                "chat-template-missing",
                "the checkpoint has no chat template: it was not made for conversations",
                where=None if self.folder is None else str(self.folder),
                fix="give a prompt instead of messages, or use a checkpoint made for chat (starter-chat is one)",
            )
        try:
            return ChatProgram(self.source)
        except TemplateFailedError as error:
            raise self._unusable(error) from None

    def _write(self, messages: Sequence[Message], row: Row, *, answer: bool) -> str:
        none = {"tools": None, "documents": None}  # as transformers has it: templates ask whether they are none
        variables = {**self.variables, **none, "messages": list(messages), "add_generation_prompt": answer}
        try:
            return self._program.render(variables)
        except TemplateRefusedError as error:
            raise DataError(
                "messages-refused",
                f"the checkpoint's chat template refuses these messages: {error}",
                where=_place(row),
                value=[message["role"] for message in messages],
                fix="most templates want user and assistant in turn, after at most one system message",
            ) from None
        except TemplateFailedError as error:
            raise self._unusable(error) from None

    def _unusable(self, error: TemplateFailedError) -> CheckpointError:
        return CheckpointError(
            "chat-template-unusable",
            f"the checkpoint's chat template cannot be used: {error}",
            where=None if self.folder is None else str(self.folder),
            fix="get the checkpoint from its publisher again, or give a prompt instead of messages",
        )

    def _marked(self, row: Row) -> tuple[list[Message], str, tuple[str, ...]]:
        """The messages, with a mark before each character of a special token that somebody spelled out: it is text,
        whoever says so.

        Also the mark ("" if there is none), and flags.
        """
        messages = messages_of(row)
        texts = [text for message in messages for text in message.values()]
        flags = () if any(message["content"].strip() for message in messages) else ("empty-text",)
        spelled = self._specials is not None and any(map(self._specials.search, texts))
        if spelled:
            flags = (*flags, "special-tokens-as-text")
        if any(map(_SURROGATES.search, texts)):
            flags = (*flags, "surrogates-replaced")
        mark = next(chr(code) for code in _MARKS if not any(chr(code) in text for text in texts)) if spelled else ""

        def clean(text: str) -> str:
            text = _SURROGATES.sub("\N{REPLACEMENT CHARACTER}", text)
            if mark and self._specials is not None:
                # Tokens may lie over each other: at each place the longest, whatever began before it.
                spans = [match.span(1) for match in re.finditer(f"(?=({self._specials.pattern}))", text)]
                places = {place for span in spans for place in range(*span)}
                text = "".join(mark + letter if i in places else letter for i, letter in enumerate(text))
            return text

        return [{name: clean(text) for name, text in message.items()} for message in messages], mark, flags

    def _ids(self, text: str, mark: str) -> list[int]:
        """The ids of a text in which special tokens are tokens, and those with the mark before a letter are text."""
        if not mark:
            return list(self.tokenizer.reading_specials.encode(text, add_special_tokens=False).ids)
        ids: list[int] = []
        assert self._specials is not None, "there is a mark only where there are special tokens"
        end = 0
        for match in [*re.finditer(f"(?<!{mark})(?:{self._specials.pattern})", text), None]:
            plain = text[end : match.start() if match else None].replace(mark, "")
            ids += self.tokenizer.rust.encode(plain, add_special_tokens=False).ids
            if match:
                ids.append(self.tokenizer.rust.token_to_id(match[0]))
                end = match.end()
        return ids

    @cached_property
    def _specials(self) -> re.Pattern[str] | None:
        """Matches a special token, the longest first."""
        tokens = sorted(self.tokenizer.specials, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, tokens))) if tokens else None


def messages_of(row: Row) -> list[Message]:
    """The messages of a row, each with `role` and `content`. Raises DataError "field-not-messages"."""
    value = row.get("messages")
    if isinstance(value, list | tuple) and value and all(map(_is_message, value)):
        return [dict(message) for message in value]
    raise DataError(
        "field-not-messages",
        "messages must be a list of objects with the texts role and content, and nothing else",
        where=_place(row),
        value=value,
        fix='e.g. [{"role": "user", "content": "What is the capital of France?"}]',
    )


def _is_message(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and value.keys() == {"role", "content"}
        and all(isinstance(text, str) for text in value.values())
    )


def _place(row: Row) -> Any:
    return dataclasses.replace(row.where, field="messages")
