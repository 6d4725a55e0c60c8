"""Every page and every example is executed, top to bottom, as a person would who follows it.

A ```python block runs in its page's one namespace; a line `$ warmstart …` of a ```console block runs through the
command line and must exit with 0. A block under `<!-- not executed: reason -->` is left out.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from warmstart.cli.main import run

ROOT = Path(__file__).parent.parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^(<!-- not executed: .+ -->\n)?```(python|console)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def blocks(page: Path) -> list[tuple[int, str, str]]:
    """(line, language, code) of each block that is to be executed."""
    text = page.read_text(encoding="utf-8")
    found = BLOCK.finditer(text)
    return [(text.count("\n", 0, m.start(3)) + 1, m.group(2), m.group(3)) for m in found if m.group(1) is None]


@pytest.mark.parametrize(
    "page", [page for page in PAGES if blocks(page)], ids=lambda page: page.relative_to(ROOT).as_posix()
)
def test_page_runs_as_written(page: Path, workplace: Path) -> None:
    namespace: dict[str, object] = {"__name__": "__page__"}
    for line, language, code in blocks(page):
        if language == "python":
            # Blank lines before it keep the page's own line numbers in a traceback.
            exec(compile("\n" * (line - 1) + code, str(page), "exec"), namespace)
        else:
            for command in re.findall(r"^\$ warmstart (.+)$", code, re.MULTILINE):
                assert run(shlex.split(command)) == 0, f"{page.name}:{line}: warmstart {command}"


def test_pages_of_verbs_and_tasks_have_something_to_run() -> None:
    for folder in ("tasks", "verbs"):
        for page in (ROOT / "docs" / folder).glob("*.md"):
            assert blocks(page), page


def test_links_between_pages_lead_somewhere() -> None:
    broken = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in PAGES
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8"))
        if not (page.parent / target).exists()
    ]
    assert broken == []


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_example_runs(example: Path, workplace: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:__main__", str(example)],
        cwd=workplace,
        env={**os.environ, "WARMSTART_EXAMPLE_ROWS": "64"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "NEGATIVE" in done.stdout
