"""The examples in the docstrings are run."""

from __future__ import annotations

import doctest

import pytest

from warmstart.rows import labels, reading, spans, split, targets, write


@pytest.mark.parametrize("module", [labels, reading, spans, split, targets, write])
def test_examples(module: object) -> None:
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0
