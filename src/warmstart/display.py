"""Text that is safe to show on a terminal. A label, a file name or a config value may come from a stranger."""

from __future__ import annotations

import unicodedata

# Characters that reorder or hide what a person reads (bidi embeddings, overrides, isolates, zero-width marks).
_INVISIBLE = frozenset(
    "\u200b\u200c\u200e\u200f\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2060\u2066\u2067\u2068\u2069\ufeff"
)


def escape_terminal(text: str) -> str:
    r"""The text with control characters, ANSI escapes, line breaks and bidi marks written out as `\x1b` or `\u202e`.

    A backslash stays as it is: this is for reading, not for parsing back. Lone surrogates are written out too, so the
    result can always be encoded.

    >>> escape_terminal("red\x1b[31m\u202elabel")
    'red\\x1b[31m\\u202elabel'
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(_escape(character) for character in text)


def _escape(character: str) -> str:
    category = unicodedata.category(character)
    if character not in _INVISIBLE and category not in {"Cc", "Cs", "Co", "Cn", "Zl", "Zp"}:
        return character
    code = ord(character)
    if code <= 0xFF:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"
