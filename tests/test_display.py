"""Text from strangers, made safe to print."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from warmstart.display import escape_terminal


@given(st.text(st.characters(), max_size=60))
def test_what_is_escaped_is_printable_and_encodable(text: str) -> None:
    shown = escape_terminal(text)
    assert shown.encode("utf-8").decode("utf-8") == shown
    assert not any(ord(c) < 32 or 0x7F <= ord(c) < 0xA0 or 0x202A <= ord(c) <= 0x202E for c in shown)
    assert escape_terminal(shown) == shown


def test_ordinary_text_of_any_language_stays() -> None:
    for text in ("positive", "größer", "肯定的", "إيجابي", "👍🏽", "a\\b", "don't"):
        assert escape_terminal(text) == text


def test_controls_ansi_bidi_and_surrogates_are_written_out() -> None:
    assert escape_terminal("\x1b[31mred\x07") == "\\x1b[31mred\\x07"
    assert escape_terminal("a\u202eb\u2066c\u200bd\ufeff") == "a\\u202eb\\u2066c\\u200bd\\ufeff"
    assert escape_terminal("x\ud800y\n") == "x\\ud800y\\x0a"
    assert escape_terminal("\U000e0001") == "\\U000e0001"  # a tag character: invisible
