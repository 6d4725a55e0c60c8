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


# Windows are the same graph with other rows: for ONNX, which takes longer to write, once is enough.
TOGETHER = [(case, "openvino") for case in EXPORTED] + [
    (case, "onnx") for case in EXPORTED if "windows" not in case.name
]


@pytest.mark.parametrize(("given", "format"), TOGETHER, ids=[f"{case.name}-{format}" for case, format in TOGETHER])
def test_exported_is_torch(given: Case, format: str, load: Callable[[Case], Loaded], tmp_path: Path) -> None:
    case = load(given)
    rows = inputs_of(case)
    result = ws.export(case.pipe, tmp_path / "out", format=format, data=rows, tolerance=ws.Tolerance(rows=len(rows)))
    assert result.parity.agreement == 1 and result.parity.difference < 1e-5
    pipe = ws.load(tmp_path / "out")
    record = verify_export(tmp_path / "out").record
    assert (record.task, record.format) == (case.pipe.task.name, format)
    expected = dicts(case.pipe(rows))
    for budget in (1, 64, 10**6):
        assert close(dicts(pipe(rows, max_tokens=budget)), expected)


def test_every_task_is_exported_by_some_case() -> None:
    for format in ("openvino", "onnx"):
        assert {case.task for case, each in TOGETHER if each == format} == set(TASKS) - _GENERATING
    assert {case.name for case in EXPORTED} >= set(_TAUGHT)
