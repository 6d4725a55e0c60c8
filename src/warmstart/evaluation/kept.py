"""Reading an evaluation back from its `predictions.parquet`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from warmstart.errors import DataError, UsageError
from warmstart.evaluation.result import ABOUT, PREDICTIONS, Evaluation, scoring_of
from warmstart.metrics import Metric
from warmstart.rows import Row
from warmstart.tasks import find_task, from_dict


def read_predictions(path: Path) -> Evaluation:
    """The evaluation that a run directory, the folder of `evaluate -o`, or a `predictions.parquet` holds.

    Its rows are as the file has them: what was neither text nor missing is its JSON. Fields of a prediction that only
    scoring reads are None. Raises UsageError "predictions-missing", DataError "predictions-unreadable".
    """
    file = path / PREDICTIONS if path.is_dir() else path
    if not file.is_file():
        raise UsageError(
            "predictions-missing",
            "there are no stored predictions here",
            where=str(path),
            fix="give a finished run that had validation rows, or the folder of: warmstart evaluate … -o FOLDER",
        )
    # Arrow reports damage by its own tree, and by OSError, ValueError or MemoryError where it notices late.
    try:
        table = pq.read_table(file)
        return _evaluation(table, json.loads((table.schema.metadata or {})[ABOUT]))
    except KeyError as error:
        why = f"it does not say {error.args[0]!r}: another program, or an older version, wrote it"
        raise _unreadable(file, why) from None
    except (pa.ArrowException, OSError, ValueError, TypeError, AttributeError, MemoryError, RecursionError) as error:
        raise _unreadable(file, str(error)) from None


def _evaluation(table: pa.Table, about: dict[str, Any]) -> Evaluation:
    kind = find_task(about["task"]).prediction
    columns = {column: table.column(column).to_pylist() for column in about["fields"]}
    return Evaluation(
        task=about["task"],
        rows=table.num_rows,
        metrics={name: Metric(**values) for name, values in about["metrics"].items()},
        per_example={
            name: np.array(table.column(name).to_pylist(), dtype=dtype) for name, dtype in about["arrays"].items()
        },
        examples=tuple(
            Row(
                {
                    name: values[i]
                    for column, name in about["fields"].items()
                    if (values := columns[column])[i] is not None
                }
            )
            for i in range(table.num_rows)
        ),
        predictions=tuple(from_dict(kind, json.loads(text)) for text in table.column("prediction").to_pylist()),
        **scoring_of(about),
    )


def _unreadable(file: Path, why: str) -> DataError:
    return DataError(
        "predictions-unreadable",
        f"the stored predictions cannot be read: {why}",
        where=str(file),
        fix="evaluate again: warmstart evaluate -m … -d … -o FOLDER",
    )
