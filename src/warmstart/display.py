"""Text that is safe to show on a terminal. A label, a file name or a config value may come from a stranger."""

from __future__ import annotations

import unicodedata

# Format characters reorder or hide what a person reads; these two are needed to spell (Persian, emoji families).
_JOINERS = frozenset("\u200c\u200d")


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
    if character in _JOINERS or category not in {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}:
        return character
    code = ord(character)
    if code <= 0xFF:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"
