"""The fields of one delimited line, in RFC 4180's quoting, resumed on the next line where a quote is still open."""

from __future__ import annotations

import re

# Why not the csv module: its field size limit is one setting for the whole process, a stray quote swallows the rest of
# the file, and it does not say on which line a record starts.

_QUOTED = re.compile(r'[^"]*+(?:""[^"]*+)*+')


def guess_delimiter(header: str) -> str:
    """The delimiter of a .csv file by its first line: a comma, or what stands there in its place."""
    return "," if "," in header else max(",;\t|", key=header.count)


def split_line(text: str, delimiter: str) -> list[str]:
    """The fields of one line that holds a whole record, such as a header."""
    fields: list[str] = []
    feed(text, delimiter, fields, None)
    return fields


def feed(text: str, delimiter: str, fields: list[str], parts: list[str] | None) -> list[str] | int | None:
    """Append the fields of one line. None: the record is whole; a list: the pieces of a field still open; an int: the
    position of a character that may not follow a closing quote."""
    end = len(text) - 1 if text.endswith("\n") else len(text)
    if text.endswith("\r", 0, end):
        end -= 1
    at = 0
    while True:
        if parts is not None:
            stop = closing(text, at)
            parts.append(text[at:stop].replace('""', '"'))
            if stop == len(text):
                return parts
            fields.append("".join(parts))
            parts, at = None, stop + 1
        elif text.startswith('"', at):
            parts, at = [], at + 1
            continue
        else:
            stop = text.find(delimiter, at)
            stop = end if stop < 0 else stop
            fields.append(text[at:stop])
            at = stop
        if at >= end:
            return None
        if not text.startswith(delimiter, at):
            return at
        at += 1


def closing(text: str, at: int = 0) -> int:
    """Where the quote that is open at `at` closes; the length of the text where it does not."""
    quoted = _QUOTED.match(text, at)
    assert quoted is not None  # it matches the empty string
    return quoted.end()
