"""Exported = torch: a graph of each task answers as the model it was made from, whatever the batches are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from cases import CASES, Case, Loaded
from test_predicting import close, dicts, inputs_of

import warmstart as ws
from warmstart.checkpoints import verify_export
from warmstart.tasks import TASKS

# The first case of each task, and those that taught something: padding further from a text than a window reaches,
# a decoder, windows; and the half of zero-shot that is another graph.
_TAUGHT = ("embedding-triplets", "text-gpt2-no-pad-token", "answer-windows", "zero-shot-embedding")
_FIRST = {case.task: case for case in reversed(CASES)}
_GENERATING = {name for name, kind in TASKS.items() if "rows_at_most" in vars(kind)}  # no graph is a loop over tokens
EXPORTED = [
    case for case in CASES if (case in _FIRST.values() or case.name in _TAUGHT) and case.task not in _GENERATING
]


@pytest.fixture(params=EXPORTED, ids=lambda case: case.name)
def case(request: pytest.FixtureRequest, load: Callable[[Case], Loaded]) -> Loaded:
    return load(request.param)


@pytest.mark.parametrize("format", ["openvino", "onnx"])
def test_exported_is_torch(case: Loaded, tmp_path: Path, format: str) -> None:
    rows = inputs_of(case)
    result = ws.export(case.pipe, tmp_path / "out", format=format, data=rows, tolerance=ws.Tolerance(rows=len(rows)))
    assert result.parity.agreement == 1 and result.parity.difference < 1e-5
    exported = ws.load(tmp_path / "out")
    record = verify_export(tmp_path / "out").record
    assert (record.task, record.format) == (case.pipe.task.name, format)
    expected = dicts(case.pipe(rows))
    for budget in (1, 64, 10**6):
        assert close(dicts(exported(rows, max_tokens=budget)), expected)


def test_every_task_is_exported_by_some_case() -> None:
    assert {case.task for case in EXPORTED} == set(TASKS) - _GENERATING
    assert {case.name for case in EXPORTED} >= set(_TAUGHT)
