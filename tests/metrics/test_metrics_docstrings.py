"""The examples in the docstrings of the metrics are run."""

from __future__ import annotations

import doctest

import pytest

from warmstart.metrics import (
    classification,
    entities,
    interval,
    measure,
    multilabel,
    paired,
    ranking,
    regression,
    retrieval,
)


@pytest.mark.parametrize(
    "module", [classification, entities, interval, measure, multilabel, paired, ranking, regression, retrieval]
)
def test_examples(module: object) -> None:
    result = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
    assert result.attempted > 0
    assert result.failed == 0
