"""Text to token ids, by an own copy of the checkpoint's Rust tokenizer that nobody mutates.

A `tokenizer.json` may carry stored truncation and padding, and a call of a transformers tokenizer changes both on the
Rust object it shares. Here both are switched off once, at construction; afterwards every method only reads, so one
`Tokenizer` serves any number of threads. Text that spells out a special token ("[CLS]", "</s>") stays text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from warmstart.errors import UsageError
from warmstart.features import Array

Text = str | tuple[str, str]

# A stand-in of one character, so that offsets still point into the text as it was given.
_SURROGATES = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Encoded:
    """One text (or pair) as one or more pieces that each fit the limit.

    `pieces` are `tokenizers.Encoding` objects (ids, type_ids, offsets, word_ids), special tokens included.
    `truncated`: tokens of the text stand in no piece. `flags` tell what was odd about the text.
    """

    pieces: tuple[Any, ...]
    truncated: bool = False
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Tokenizer:
    """`limit`: the most tokens a piece may have, special tokens included."""

    rust: Any  # tokenizers.Tokenizer, ours alone
    limit: int
    pad_id: int = 0
    type_ids: bool = False  # does the model tell the two texts of a pair apart by token types
    specials: frozenset[str] = frozenset()
    unknown_id: int | None = None
    _special_pattern: re.Pattern[str] | None = field(init=False, repr=False, default=None)

    def __post_init__(self) -> None:
        if self.specials:
            alternatives = "|".join(re.escape(token) for token in sorted(self.specials))
            object.__setattr__(self, "_special_pattern", re.compile(alternatives))
        if self.limit <= self.rust.num_special_tokens_to_add(True):
            raise UsageError(
                "limit-too-small",
                f"a limit of {self.limit} tokens leaves no room for text beside the special tokens",
                value=self.limit,
                fix="raise max_length, or leave it out to use the checkpoint's own limit",
            )

    @classmethod
    def from_json(
        cls, text: str, *, limit: int, pad_id: int = 0, type_ids: bool = False, unknown: str | None = None
    ) -> Tokenizer:
        """From the text of a `tokenizer.json`. What it stores about truncation and padding is not obeyed."""
        import tokenizers

        rust = tokenizers.Tokenizer.from_str(text)
        rust.no_truncation()
        rust.no_padding()
        rust.encode_special_tokens = True
        added = rust.get_added_tokens_decoder().values()
        return cls(
            rust=rust,
            limit=limit,
            pad_id=pad_id,
            type_ids=type_ids,
            specials=frozenset(token.content for token in added if token.special),
            unknown_id=None if unknown is None else rust.token_to_id(unknown),
        )

    @classmethod
    def from_folder(cls, folder: Path, *, limit: int, pad_id: int = 0, type_ids: bool = False) -> Tokenizer:
        """From a checkpoint folder's `tokenizer.json`."""
        return cls.from_json(
            (folder / "tokenizer.json").read_text(encoding="utf-8"), limit=limit, pad_id=pad_id, type_ids=type_ids
        )

    @classmethod
    def from_transformers(cls, tokenizer: Any, *, limit: int, type_ids: bool) -> Tokenizer:
        """A copy of a transformers tokenizer's Rust object; the original goes on belonging to the person."""
        return cls.from_json(
            tokenizer.backend_tokenizer.to_str(),
            limit=min(limit, tokenizer.model_max_length),
            pad_id=tokenizer.pad_token_id or 0,
            type_ids=type_ids,
            unknown=tokenizer.unk_token,
        )

    def encode(self, texts: Sequence[Text], *, stride: int | None = None) -> list[Encoded]:
        """Encode texts and pairs in bulk, in their order.

        A text over the limit is cut at its end (`stride=None`), a pair by "longest first": tokens leave the longer of
        the two until both fit. With a `stride` a text becomes overlapping windows that share `stride` tokens and
        cover all of it; of a pair the second text is windowed, and each window carries the whole first text.
        """
        try:
            whole = self.rust.encode_batch(list(texts))
        except TypeError:  # the Rust call takes no lone surrogates; find the texts that have any
            return [self._encode_cleaned(text, stride) for text in texts]
        return [self._fit(text, encoding, stride) for text, encoding in zip(texts, whole, strict=True)]

    def inputs(self, piece: Any) -> dict[str, Array]:
        """What a model reads of a piece: int64 arrays of shape (T,)."""
        ids = np.array(piece.ids, dtype=np.int64)
        inputs: dict[str, Array] = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        if self.type_ids:
            inputs["token_type_ids"] = np.array(piece.type_ids, dtype=np.int64)
        return inputs

    def _encode_cleaned(self, text: Text, stride: int | None) -> Encoded:
        parts = (text,) if isinstance(text, str) else text
        cleaned = tuple(_SURROGATES.sub("�", part) for part in parts)
        clean: Text = cleaned[0] if len(cleaned) == 1 else (cleaned[0], cleaned[1])
        encoded = self._fit(clean, self.rust.encode_batch([clean])[0], stride)
        if cleaned == parts:
            return encoded
        return Encoded(encoded.pieces, encoded.truncated, (*encoded.flags, "surrogates-replaced"))

    def _fit(self, text: Text, encoding: Any, stride: int | None) -> Encoded:
        flags = self._flags(text, encoding)
        if len(encoding) <= self.limit:
            return Encoded((encoding,), flags=flags)
        if isinstance(text, str):
            pieces = self._cut_single(text, stride)
        else:
            pieces = self._cut_pair(text, stride)
        return Encoded(pieces, truncated=stride is None, flags=flags)

    def _cut_single(self, text: str, stride: int | None) -> tuple[Any, ...]:
        bare = self._bare(text)
        windows = _windows(bare, self.limit - self.rust.num_special_tokens_to_add(False), stride)
        return tuple(self.rust.post_process(window) for window in windows)

    def _cut_pair(self, pair: tuple[str, str], stride: int | None) -> tuple[Any, ...]:
        first, second = self._bare(pair[0]), self._bare(pair[1])
        room = self.limit - self.rust.num_special_tokens_to_add(True)
        if stride is None:
            keep_first, keep_second = _longest_first(len(first), len(second), room)
            first.truncate(keep_first)
            second.truncate(keep_second)
            return (self.rust.post_process(first, second),)
        left = room - len(first)
        if left <= stride:
            raise UsageError(
                "window-too-small",
                f"the first text of a pair takes {len(first)} of {room} tokens: no window of the second fits beside it",
                value=pair[0],
                fix='shorten the first text, lower `stride`, or use long_text="truncate"',
            )
        return tuple(self.rust.post_process(first, window) for window in _windows(second, left, stride))

    def _bare(self, text: str) -> Any:
        return self.rust.encode(text, add_special_tokens=False)

    def _flags(self, text: Text, encoding: Any) -> tuple[str, ...]:
        joined = text if isinstance(text, str) else "\n".join(text)
        flags = []
        if not joined.strip():
            flags.append("empty-text")
        elif self.unknown_id is not None and self.unknown_id in encoding.ids and self._only_unknown(encoding):
            flags.append("unknown-tokens-only")
        if self._special_pattern is not None and self._special_pattern.search(joined):
            flags.append("special-tokens-as-text")
        return tuple(flags)

    def _only_unknown(self, encoding: Any) -> bool:
        real = [token for token, special in zip(encoding.ids, encoding.special_tokens_mask, strict=True) if not special]
        return all(token == self.unknown_id for token in real)


def _windows(encoding: Any, size: int, stride: int | None) -> list[Any]:
    """The encoding cut to `size` tokens; with a stride, followed by the windows that cover the rest."""
    encoding.truncate(size, stride=stride or 0)
    return [encoding] if stride is None else [encoding, *encoding.overflowing]


def _longest_first(first: int, second: int, room: int) -> tuple[int, int]:
    """How many tokens each text of a pair keeps, as `truncation=True` does in transformers."""
    if min(first, second) * 2 >= room:
        shorter = room // 2
        return (shorter, room - shorter) if first <= second else (room - shorter, shorter)
    return (first, room - first) if first <= second else (room - second, second)
