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
    rouge,
    translation,
)

MODULES = [classification, entities, interval, measure, multilabel, paired, ranking, regression, retrieval]
MODULES += [rouge, translation]


@pytest.mark.parametrize("module", MODULES)
def test_examples(module: object) -> None:
    result = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
    assert result.attempted > 0
    assert result.failed == 0
