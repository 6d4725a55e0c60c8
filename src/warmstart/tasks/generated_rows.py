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
from warmstart.tasks.class_loss import IGNORED
from warmstart.tasks.contract import text_of
from warmstart.tokenization import Encoded, Tokenizer

_AT_ONCE = 256  # rows that are encoded together: their encodings are many times as large as their texts


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
    lost: int = 0  # tokens to be learned among those that were cut off


def asked(rows: Sequence[Row], tokenizer: Tokenizer, chat: Chat, limit: int, long_text: str) -> Iterator[Told]:
    """Prompts and conversations up to their answer, of at most `limit` tokens: the beginning is cut off.

    Raises DataError "field-missing", "field-not-text", "field-not-seed", "messages-and-text", "prompt-too-long" (with
    long_text="error"), and those of `Chat.asked`.
    """
    _check_one_kind(rows, ("prompt",))
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


def learned(
    rows: Sequence[Row], tokenizer: Tokenizer, chat: Chat, end: tuple[int, ...], long_text: str
) -> Iterator[list[Learned]]:
    """Each row as one text or several: a plain text is learned whole, in parts of the limit where it is longer; of
    prompt and completion the completion, with `end` after it; of a conversation the answers. Beside what is learned,
    a row over the limit loses its beginning.

    Raises DataError "field-missing", "field-not-text", "messages-and-text", "messages-without-answer", "text-too-long"
    (with long_text="error"), and those of `Chat.answered`.
    """
    _check_one_kind(rows, ("prompt", "completion"))
    for start in range(0, len(rows), _AT_ONCE):
        some = rows[start : start + _AT_ONCE]
        for row, told in zip(some, _learned(some, tokenizer, chat, end), strict=True):
            if long_text == "error" and told[0].truncated:
                raise DataError(
                    "text-too-long",
                    f"the row has more than the {tokenizer.limit:,} tokens that the model reads",
                    where=row.where,
                    value=tokenizer.limit,
                    fix='shorten or split it, or accept that its beginning is cut: long_text="truncate"',
                )
            yield told


def _learned(rows: Sequence[Row], tokenizer: Tokenizer, chat: Chat, end: tuple[int, ...]) -> Iterator[list[Learned]]:
    limit = tokenizer.limit
    unbounded = dataclasses.replace(tokenizer, limit=1 << 30)
    plain = [row for row in rows if not _is_chat(row)]
    texts = [text_of(row, "prompt") or "" for row in plain]
    prompts = iter(unbounded.encode(texts, wheres=[row.where for row in plain]))
    completions = [text_of(row, "completion", optional=True) for row in plain]
    pairs = [(text, said) for text, said in zip(texts, completions, strict=True) if said is not None]
    answers = iter(unbounded.encode([said for _, said in pairs]))
    wholes = iter(unbounded.encode([text + said for text, said in pairs]))
    for row in rows:
        if _is_chat(row):
            segments, flags = chat.answered(row)
            if not segments:
                raise _no_answer(row)
            yield [_joined(segments, limit, flags)]
            continue
        code = next(prompts)
        ids = unbounded.inputs(code.pieces[0])["input_ids"]
        if row.get("completion") is None:
            parts = [ids[start : start + limit] for start in range(0, len(ids), limit)]
            yield [Learned(part, part, False, code.flags) for part in parts]
            continue
        answer, whole, before = next(answers), _without_specials(next(wholes)), _without_specials(code)
        # A tokenizer may write a text's first word otherwise than the same word in its midst.
        goes_on = whole[: len(before)] == before
        rest = whole[len(before) :] if goes_on else _without_specials(answer)
        given, said = Segment(tuple(ids.tolist())), Segment((*rest, *end), answered=True)
        flags = tuple(dict.fromkeys(code.flags + tuple(flag for flag in answer.flags if flag != "empty-text")))
        yield [_joined([given, said], limit, flags)]


def _without_specials(code: Encoded) -> list[int]:
    """The ids of a text without the tokens that are put around it."""
    [piece] = code.pieces
    return [token for token, special in zip(piece.ids, piece.special_tokens_mask, strict=True) if not special]


def _joined(segments: Sequence[Segment], limit: int, flags: tuple[str, ...]) -> Learned:
    ids = np.array([token for segment in segments for token in segment.ids], dtype=np.int64)
    answered = np.array([segment.answered for segment in segments for _ in segment.ids], dtype=bool)
    labels = np.where(answered, ids, IGNORED)
    return Learned(ids[-limit:], labels[-limit:], len(ids) > limit, flags, int(answered[:-limit].sum()))


def _check_one_kind(rows: Sequence[Row], texts: Sequence[str]) -> None:
    for row in rows:
        both = [name for name in texts if row.get(name) is not None]
        if _is_chat(row) and both:
            raise DataError(
                "messages-and-text",
                f"the row has 'messages' and {both[0]!r}: a row is a conversation or a text",
                where=dataclasses.replace(row.where, field=both[0]),
                value=row[both[0]],
                fix=f"leave 'messages' or {both[0]!r} out of this row",
            )


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


def _no_answer(row: Row) -> DataError:
    return DataError(
        "messages-without-answer",
        "no message of this conversation is the assistant's: there is nothing to learn or to judge",
        where=dataclasses.replace(row.where, field="messages"),
        fix="let each conversation have a message of role assistant",
    )
