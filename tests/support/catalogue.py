"""The fault catalogue: a test has its numbers at the head of its name (`test_f88_f89_…`), and a bound of time."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parent.parent

# Of training: what a run, a save and a disk may meet.
TRAINING = frozenset(
    {
        *(f"r{n}" for n in (*range(73, 79), 80)),
        *(f"k{n}" for n in (82, 83, 84, 85, 87)),
        *(f"f{n}" for n in range(88, 93)),
    }
    | {"x93"}
)
# One fault and its twin; a refusal itself takes at most 2 s, which the tests that time it assert. Where a test needs
# more it says so: `@pytest.mark.bounded(120)`. K83 is hundreds of runs at night, bounded by pytest's timeout.
SECONDS = 20.0


def numbers_of(name: str) -> tuple[str, ...]:
    """The catalogue's numbers in a test's name.

    >>> numbers_of("test_f88_f89_a_failure_at_any_file_operation")
    ('f88', 'f89')
    """
    found = re.match(r"test((?:_[a-z]\d{1,3})+)_", name)
    return tuple(found[1].strip("_").split("_")) if found else ()


def seconds_for(test: pytest.Item) -> float | None:
    """How long a test of the catalogue may take; None for any other test."""
    if mark := test.get_closest_marker("bounded"):
        return float(mark.args[0])
    name: str = getattr(test, "originalname", None) or test.name
    numbers = set(numbers_of(name))
    if test.path.parent.name != "faults" and (not numbers & TRAINING or "k83" in numbers):
        return None
    return SECONDS


def all_tests() -> Iterator[tuple[Path, str]]:
    """File and name of every test function."""
    for file in sorted(TESTS.rglob("test_*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                yield file, node.name
