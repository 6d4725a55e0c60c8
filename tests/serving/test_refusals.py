"""Every code with which a server refuses stands in docs/verbs/serve.md, under its status; and no other."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from warmstart.errors import CheckpointError, DataError, UsageError, WarmstartError, Where
from warmstart.serving.refusal import as_refusal

ROOT = Path(__file__).parent.parent.parent
SERVING = ROOT / "src" / "warmstart" / "serving"
PAGE = ROOT / "docs" / "verbs" / "serve.md"


def raised() -> set[str]:
    """The literal codes of refusals in the source: their second argument, or `code=` of the helpers."""
    found: set[str] = set()
    for file in SERVING.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func)
            given = [keyword.value for keyword in node.keywords if keyword.arg == "code"]
            given += node.args[1:2] if name == "Refusal" else node.args[:1] if name == "_unauthorized" else []
            found |= {one.value for one in given if isinstance(one, ast.Constant) and isinstance(one.value, str)}
    return found


def listed() -> dict[str, str]:
    """code -> the statuses of its line in the page's table."""
    lines = re.findall(r"^\| ([\d, ]+) \| (.+) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    return {code: statuses for statuses, codes in lines for code in re.findall(r"`([a-z-]+)`", codes)}


def test_the_page_lists_the_codes_that_there_are() -> None:
    from_the_library = {"out-of-memory", "output-not-a-number"}
    assert len(raised()) > 25
    assert set(listed()) == raised() | from_the_library


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (DataError("row-bad", "a row is bad", where=Where(row=3), value="secret", fix="mend it"), 422, "row-bad"),
        (UsageError("option-bad", "an option", fix="mend it"), 422, "option-bad"),
        (WarmstartError("out-of-memory", "too long", fix="shorten it"), 413, "out-of-memory"),
        (WarmstartError("output-not-a-number", "NaN", fix="look"), 422, "output-not-a-number"),
        (CheckpointError("weights-secret", "weights at a path", fix="none"), 500, "internal-error"),
        (RuntimeError("secret at 0xdeadbeef"), 500, "internal-error"),
        (OSError(2, "secret", "a/path"), 500, "internal-error"),
    ],
)
def test_an_error_tells_of_the_clients_rows_and_of_nothing_else(error: Exception, status: int, code: str) -> None:
    refusal = as_refusal(error)
    assert (refusal.status, refusal.code) == (status, code)
    body = str(refusal.body("an-id"))
    assert "an-id" in body and "secret" not in body and "path" not in body
    if status == 422 and code == "row-bad":
        assert refusal.body("an-id")["error"]["where"] == "row 3"
