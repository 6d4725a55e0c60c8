"""Rows of text generation as ids: prompts and conversations to answer, texts to learn."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from warmstart.errors import DataError
from warmstart.features import Array
from warmstart.rows import Row
from warmstart.tasks.chat import Chat, Segment
from warmstart.tasks.contract import text_of
from warmstart.tokenization import Tokenizer

IGNORED = -100  # of a label: this token is given, not learned. The value that transformers' losses leave out


@dataclass(frozen=True)
class Told:
    """One row's prompt. `key` stands for the row where its tokens are drawn."""

    ids: Array  # (T,), T at least 1
    truncated: bool
    flags: tuple[str, ...]
    key: str
    seed: int | None


@dataclass(frozen=True)
class Learned:
    """A text, or a part of one: `labels` are the ids that are learned, IGNORED elsewhere."""

    ids: Array  # (T,)
    labels: Array  # (T,)
    truncated: bool
    flags: tuple[str, ...]


def asked(rows: Sequence[Row], tokenizer: Tokenizer, chat: Chat, limit: int, long_text: str) -> Iterator[Told]:
    """Prompts and conversations up to their answer, of at most `limit` tokens: the beginning is cut off.

    Raises DataError "field-missing", "field-not-text", "field-not-seed", "prompt-too-long" (with long_text="error"),
    and those of `Chat.asked`.
    """
    plain = [row for row in rows if not _is_chat(row)]
    cutting = dataclasses.replace(tokenizer, limit=limit, truncation_side="left")
    texts = [text_of(row, "prompt") or "" for row in plain]
    encoded = iter(cutting.encode(texts, wheres=[row.where for row in plain]))
    for row in rows:
        if _is_chat(row):
            ids, flags = chat.asked(row)
            cut, whole = ids[-limit:] or [tokenizer.pad_id], len(ids)
            truncated = whole > limit
            array = np.array(cut, dtype=np.int64)
        else:
            code = next(encoded)
            array = cutting.inputs(code.pieces[0])["input_ids"]
            truncated, flags = code.truncated, code.flags
        if truncated and long_text == "error":
            raise DataError(
                "prompt-too-long",
                f"the prompt has more than the {limit:,} tokens that leave room for an answer",
                where=row.where,
                value=limit,
                fix="shorten it, lower max_new_tokens, or let its beginning be cut off: long_text=truncate",
            )
        key = hashlib.blake2b(array.tobytes(), digest_size=16).hexdigest()
        yield Told(array, truncated, flags, key, _seed_of(row))


def learned(rows: Sequence[Row], tokenizer: Tokenizer, chat: Chat, end: tuple[int, ...]) -> Iterator[list[Learned]]:
    """Each row as one text or several: a plain text is learned whole, in parts of the limit where it is longer; of
    prompt and completion the completion, with `end` after it; of a conversation the answers. Beside what is learned,
    a row over the limit loses its beginning.

    Raises DataError "field-missing", "field-not-text", "messages-without-answer", and those of `Chat.answered`.
    """
    unbounded = dataclasses.replace(tokenizer, limit=1 << 30)
    for row in rows:
        if _is_chat(row):
            segments, flags = chat.answered(row)
            if not segments:
                raise _no_answer(row)
            yield [_joined(segments, tokenizer.limit, flags)]
            continue
        prompt = text_of(row, "prompt") or ""
        completion = text_of(row, "completion", optional=True)
        [code] = unbounded.encode([prompt], wheres=[row.where])
        ids = unbounded.inputs(code.pieces[0])["input_ids"].tolist()
        if completion is None:
            limit = tokenizer.limit
            parts = [np.array(ids[start : start + limit], dtype=np.int64) for start in range(0, len(ids), limit)]
            yield [Learned(part, part, False, code.flags) for part in parts]
            continue
        [answer] = unbounded.encode([completion], wheres=[row.where])
        answered = [*tokenizer.rust.encode(_clean(completion), add_special_tokens=False).ids, *end]
        flags = tuple(dict.fromkeys(code.flags + tuple(flag for flag in answer.flags if flag != "empty-text")))
        yield [_joined([Segment(tuple(ids)), Segment(tuple(answered), answered=True)], tokenizer.limit, flags)]


def _joined(segments: Sequence[Segment], limit: int, flags: tuple[str, ...]) -> Learned:
    ids = np.array([token for segment in segments for token in segment.ids], dtype=np.int64)
    answered = np.array([segment.answered for segment in segments for _ in segment.ids], dtype=bool)
    labels = np.where(answered, ids, IGNORED)
    return Learned(ids[-limit:], labels[-limit:], len(ids) > limit, flags)


def _is_chat(row: Row) -> bool:
    return row.get("messages") is not None


def _seed_of(row: Row) -> int | None:
    seed = row.get("seed")
    if seed is None or (type(seed) is int and seed >= 0):
        return seed
    raise DataError(
        "field-not-seed",
        "'seed' must be a whole number from 0",
        where=dataclasses.replace(row.where, field="seed"),
        value=seed,
        fix="leave it out, or give a number",
    )


def _clean(text: str) -> str:
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _no_answer(row: Row) -> DataError:
    return DataError(
        "messages-without-answer",
        "no message of this conversation is the assistant's: there is nothing to learn or to judge",
        where=dataclasses.replace(row.where, field="messages"),
        fix="let each conversation have a message of role assistant",
    )
