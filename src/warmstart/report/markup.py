"""Turning values into HTML. Every text of a run passes `esc`: nothing in a label or a row is ever markup."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence

from warmstart.display import escape_terminal
from warmstart.provenance import redact


def esc(value: object, limit: int = 2000) -> str:
    """The value as inert text: secrets hidden, control and bidi characters written out, HTML escaped, then cut."""
    text = redact(str(value)[: 4 * limit])  # before the cut: half a secret has no known shape
    safe = html.escape(escape_terminal(text[:limit]), quote=True)
    return f"{safe}…" if len(text) > limit else safe


def number(value: float, digits: int = 4) -> str:
    """A number to so many significant digits, short: 0.8612, 12,500, 3.2e-05."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else str(value)
    if abs(value) >= 1e6 or abs(value) < 1e-4:
        return f"{value:.{digits - 1}g}"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    text = f"{value:,.{decimals}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def fixed(value: float) -> str:
    """A score to three decimals, so that a column of them lines up; large numbers as `number` writes them."""
    if 0.999 < value < 1:  # no score that is not perfect reads 1.000
        return "0.999"
    return f"{value:.3f}" if abs(value) < 100 else number(value)


def table(head: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "") -> str:
    """A table of cells that are HTML already. A head that starts with `#` marks a column of numbers."""
    numeric = [name.startswith("#") for name in head]
    classes = [' class="n"' if flag else "" for flag in numeric]
    ths = "".join(f'<th scope="col"{c}>{esc(name.lstrip("#"))}</th>' for name, c in zip(head, classes, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{c}>{cell}</td>" for cell, c in zip(row, classes, strict=True)) + "</tr>" for row in rows
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="table"><table class="{kind}"><thead><tr>{ths}</tr>'
        f"</thead><tbody>{body}</tbody></table></div>"
    )


def section(title: str, body: str, lead: str = "") -> str:
    """A titled part of the page; empty if there is nothing to show."""
    if not body:
        return ""
    intro = f'<p class="lead">{lead}</p>' if lead else ""
    return f"<section><h2>{esc(title)}</h2>{intro}{body}</section>"


def plural(count: int, noun: str) -> str:
    """1 row, 2 rows, 1,000 rows."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
