"""Text to token ids, by an own copy of the checkpoint's Rust tokenizer that nobody mutates.

A `tokenizer.json` may carry stored truncation and padding, and a call of a transformers tokenizer changes both on the
Rust object it shares. Here both are switched off once, at construction; afterwards every method only reads, so one
`Tokenizer` serves any number of threads. Text that spells out a special token ("[CLS]", "</s>") stays text.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tokenizers

from warmstart.errors import CheckpointError, DataError, UsageError, Where
from warmstart.features import Array

Text = str | tuple[str, str]

# A stand-in of one character, so that offsets still point into the text as it was given.
_SURROGATES = re.compile("[\ud800-\udfff]")

# A text of more characters a token of the limit than this is most likely over it, and goes the way on which cutting
# costs no second encoding. Which way a text goes changes its speed only.
_LONG = 4

# Texts that are encoded together where they are encoded as they are taken.
_AT_ONCE = 256


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
    mask: str | None = None  # how the mask token is spelled, in a checkpoint that has one
    truncation_side: str = "right"  # the side on which a text over the limit loses tokens
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
        cls,
        text: str,
        *,
        limit: int,
        pad_id: int = 0,
        type_ids: bool = False,
        unknown: str | None = None,
        mask: str | None = None,
    ) -> Tokenizer:
        """From the text of a `tokenizer.json`. What it stores about truncation and padding is not obeyed."""
        rust = _rust_copy(text)
        added = rust.get_added_tokens_decoder().values()
        return cls(
            rust=rust,
            limit=limit,
            pad_id=pad_id,
            type_ids=type_ids,
            specials=frozenset(token.content for token in added if token.special),
            unknown_id=None if unknown is None else rust.token_to_id(unknown),
            mask=mask,
        )

    @classmethod
    def from_folder(cls, folder: Path, *, limit: int, pad_id: int = 0, type_ids: bool = False) -> Tokenizer:
        """From a checkpoint folder's `tokenizer.json`."""
        return cls.from_json(
            (folder / "tokenizer.json").read_text(encoding="utf-8"), limit=limit, pad_id=pad_id, type_ids=type_ids
        )

    @classmethod
    def from_transformers(cls, tokenizer: Any, *, limit: int, type_ids: bool) -> Tokenizer:
        """A copy of a transformers tokenizer's Rust object; the original goes on belonging to the person.

        Raises CheckpointError "tokenizer-not-fast" for a tokenizer that is written in Python.
        """
        if not tokenizer.is_fast:
            raise CheckpointError(
                "tokenizer-not-fast",
                f"{type(tokenizer).__name__} has no Rust tokenizer, which this package encodes with",
                where=str(tokenizer.name_or_path),
                fix="use a checkpoint with a tokenizer.json, or convert the tokenizer to one",
            )
        copy = cls.from_json(
            tokenizer.backend_tokenizer.to_str(),
            limit=min(limit, tokenizer.model_max_length),
            pad_id=tokenizer.pad_token_id or 0,
            type_ids=type_ids,
            unknown=tokenizer.unk_token,
            mask=tokenizer.mask_token,
        )
        return dataclasses.replace(copy, truncation_side=tokenizer.truncation_side)

    def encode(
        self,
        texts: Sequence[Text],
        *,
        stride: int | None = None,
        wheres: Sequence[Where] = (),
        shorten: Literal["longest", "first"] = "longest",
    ) -> list[Encoded]:
        """Encode texts and pairs in bulk, in their order.

        A text over the limit is cut on its `truncation_side` (`stride=None`), a pair by "longest first": tokens leave
        the longer of the two until both fit. With a `stride` a text becomes overlapping windows that share `stride`
        tokens and cover all of it; of a pair the second text is windowed, and each window carries the whole first text.
        With `shorten="first"` it is the first text of a pair that is cut or windowed, and the second stays whole.

            tokenizer.encode(["a text", ("a question", "its context")], stride=32)[1].pieces[0].ids

        Raises UsageError "stride-too-large"; DataError "window-too-small" for a pair whose whole text leaves no room,
        at its place in `wheres` if those are given.
        """
        if stride is not None and stride >= (room := self._room(pair=False)):
            raise UsageError(
                "stride-too-large",
                f"windows of {room} tokens cannot share {stride} of them",
                value=stride,
                fix=f"set stride below {room}, or raise max_length",
            )
        clean = [_clean(text) for text in texts]
        long = [sum(map(len, parts)) > _LONG * self.limit for parts in clean]
        whole = iter(self.rust.encode_batch([_text(parts) for parts, far in zip(clean, long, strict=True) if not far]))
        bare = iter(self._bare([part for parts, far in zip(clean, long, strict=True) if far for part in parts]))
        encoded = []
        for i, (text, parts) in enumerate(zip(texts, clean, strict=True)):
            place = wheres[i] if wheres else Where(row=i)
            if long[i]:
                pieces, truncated = self._pieces([next(bare) for _ in parts], stride, place, shorten)
            elif len(piece := next(whole)) <= self.limit:
                pieces, truncated = (piece,), False
            else:
                pieces, truncated = self._pieces(self._bare(parts), stride, place, shorten)
            encoded.append(Encoded(pieces, truncated, self._flags(text, parts, pieces)))
        return encoded

    def encode_as_taken(
        self,
        texts: Sequence[Text],
        *,
        stride: int | None,
        wheres: Sequence[Where],
        shorten: Literal["longest", "first"] = "longest",
    ) -> Iterator[Encoded]:
        """What `encode` gives, a few texts at a time: of a row that is many pairs, all are much larger than it."""
        for start in range(0, len(texts), _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            yield from self.encode(texts[part], stride=stride, wheres=wheres[part], shorten=shorten)

    def inputs(self, piece: Any) -> dict[str, Array]:
        """What a model reads of a piece: int64 arrays of shape (T,), T at least 1.

        A piece without any token (an empty text, where the checkpoint adds no special tokens) becomes one padding
        token that is attended to: no model computes anything from nothing.
        """
        ids = np.array(piece.ids or [self.pad_id], dtype=np.int64)
        inputs: dict[str, Array] = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        if self.type_ids:
            inputs["token_type_ids"] = np.array(piece.type_ids or [0], dtype=np.int64)
        return inputs

    @cached_property
    def _plain(self) -> Any:
        """The Rust tokenizer without its post-processor, which would trim the offsets of what it sees a second time."""
        plain = _rust_copy(self.rust.to_str())
        plain.post_processor = None
        return plain

    @cached_property
    def reading_specials(self) -> Any:
        """The Rust tokenizer for what a checkpoint's own template wrote: there, a spelled special token is one."""
        rust = _rust_copy(self.rust.to_str())
        rust.encode_special_tokens = False
        return rust

    @cached_property
    def together(self) -> frozenset[int]:
        """The ids that say something together with those beside them alone: single bytes, where the decoder makes
        characters of a whole run of them (`ByteFallback`), and special tokens, which say nothing and part no run."""
        known = [self.rust.token_to_id(f"<0x{byte:02X}>") for byte in range(256)]
        single = [token for token in known if token is not None]
        if not single or not _has_step(json.loads(self.rust.to_str())["decoder"], "ByteFallback"):
            return frozenset()
        return frozenset([*single, *(self.rust.token_to_id(token) for token in self.specials)])

    def _bare(self, texts: Sequence[str]) -> list[Any]:
        """The encodings of single texts before any special token is added; none is made where there is no text."""
        return self._plain.encode_batch(list(texts)) if texts else []

    def _room(self, *, pair: bool) -> int:
        return self.limit - self.rust.num_special_tokens_to_add(pair)

    def _pieces(
        self, bare: Sequence[Any], stride: int | None, where: Where, shorten: str
    ) -> tuple[tuple[Any, ...], bool]:
        """A text (one bare encoding) or pair (two) as pieces with special tokens; whether tokens were cut."""
        room = self._room(pair=len(bare) == 2)
        if sum(map(len, bare)) <= room:
            return (self.rust.post_process(*bare),), False
        if shorten == "first" or stride is not None:
            cut_one, *whole = bare if shorten == "first" else reversed(bare)
            left = room - sum(map(len, whole))
            if left <= (stride or 0):
                raise _no_room(room - left, room, where)
            if stride is None:
                parts = (_cut(cut_one, left, self.truncation_side),)
            else:
                cut_one.truncate(left, stride=stride)
                parts = (cut_one, *cut_one.overflowing)
            # One by one: windows that are processed along with the other text get no token types.
            pairs = [(part, *whole) if shorten == "first" else (*whole, part) for part in parts]
            return tuple(self.rust.post_process(*pair) for pair in pairs), stride is None
        keep = _longest_first(len(bare[0]), len(bare[1]), room) if len(bare) == 2 else (room,)
        cut = [_cut(encoding, most, self.truncation_side) for encoding, most in zip(bare, keep, strict=True)]
        return (self.rust.post_process(*cut),), True

    def _flags(self, text: Text, parts: Sequence[str], pieces: Sequence[Any]) -> tuple[str, ...]:
        flags = []
        if not any(part.strip() for part in parts) or len(pieces[0]) == self.limit - self._room(pair=len(parts) == 2):
            flags.append("empty-text")
        elif self.unknown_id is not None and all(map(self._only_unknown, pieces)):
            flags.append("unknown-tokens-only")
        if self._special_pattern is not None and any(map(self._special_pattern.search, parts)):
            flags.append("special-tokens-as-text")
        if text != _text(parts):
            flags.append("surrogates-replaced")
        return tuple(flags)

    def _only_unknown(self, piece: Any) -> bool:
        ids = piece.ids
        return self.unknown_id in ids and all(
            token == self.unknown_id
            for token, special in zip(ids, piece.special_tokens_mask, strict=True)
            if not special
        )


def _rust_copy(text: str) -> Any:
    rust = tokenizers.Tokenizer.from_str(text)
    rust.no_truncation()
    rust.no_padding()
    rust.encode_special_tokens = True
    return rust


def _has_step(decoder: dict[str, Any] | None, kind: str) -> bool:
    """Is a decoder of this kind, or one of those that it is made of?"""
    steps = [] if decoder is None else [decoder, *decoder.get("decoders", ())]
    return any(step["type"] == kind for step in steps)


def _clean(text: Text) -> tuple[str, ...]:
    """The one or two texts, without lone surrogates, which the Rust call does not take."""
    parts = (text,) if isinstance(text, str) else text
    return tuple(part if part.isascii() else _SURROGATES.sub("\N{REPLACEMENT CHARACTER}", part) for part in parts)


def _text(parts: Sequence[str]) -> Text:
    return parts[0] if len(parts) == 1 else (parts[0], parts[1])


def _no_room(taken: int, room: int, where: Where) -> DataError:
    return DataError(
        "window-too-small",
        f"one text of the pair is kept whole and takes {taken} of {room} tokens: too little is left beside it",
        where=where,
        fix='shorten that text, lower `stride`, or use long_text="truncate"',
    )


def _cut(encoding: Any, size: int, side: str) -> Any:
    """An encoding without what it has beyond `size` tokens on a side.

    `truncate` keeps what it cuts off in pieces, and `post_process` joins every piece of a pair's first text with every
    piece of its second: quadratic in their lengths. So the part that stays is the one piece that is cut off the other
    side, which keeps nothing.
    """
    rest = len(encoding) - size
    if rest <= 0 or size == 0:
        encoding.truncate(size)
        return encoding
    encoding.truncate(max(rest, size), stride=max(size - rest, 0), direction="left" if side == "right" else "right")
    [part] = encoding.overflowing
    return part


def _longest_first(first: int, second: int, room: int) -> tuple[int, int]:
    """How many tokens each text of a pair keeps, as `truncation=True` does in transformers."""
    if min(first, second) * 2 >= room:
        shorter = room // 2
        return (shorter, room - shorter) if first <= second else (room - shorter, shorter)
    return (first, room - first) if first <= second else (room - second, second)
