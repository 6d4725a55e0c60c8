"""An evaluation as a file beside the weights it judged, so that a resumed or finished run has it without predicting."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from warmstart.errors import CheckpointError
from warmstart.evaluation import Evaluation, scoring_of
from warmstart.metrics import Metric
from warmstart.rows import Row
from warmstart.tasks import Task, as_dict, from_dict

NAME = "evaluation.json"


def to_bytes(evaluation: Evaluation) -> bytes:
    """The file. Rows are not in it: they are the validation rows of the run. Floats keep every bit."""
    document = {
        **evaluation.as_dict(),
        **evaluation.scoring(),
        "per_example": {
            name: {"dtype": str(values.dtype), "values": values.tolist()}
            for name, values in evaluation.per_example.items()
        },
        "predictions": [as_dict(prediction) for prediction in evaluation.predictions],
    }
    return json.dumps(document, default=_array).encode()


def read_evaluation(folder: Path, task: Task, rows: list[Row]) -> Evaluation:
    """The evaluation of the weights in `folder` on these rows. Raises CheckpointError "evaluation-unreadable"."""
    try:
        document = json.loads((folder / NAME).read_text(encoding="utf-8"))
        if document["rows"] != len(rows):
            raise ValueError(f"it is of {document['rows']} rows, and there are {len(rows)}")
        return Evaluation(
            task=document["task"],
            rows=document["rows"],
            metrics={name: Metric(**values) for name, values in document["metrics"].items()},
            per_example={
                name: np.array(stored["values"], dtype=stored["dtype"])
                for name, stored in document["per_example"].items()
            },
            examples=tuple(rows),
            predictions=tuple(from_dict(task.prediction, values) for values in document["predictions"]),
            **scoring_of(document),
        )
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(
            "evaluation-unreadable",
            f"the evaluation kept with the best weights cannot be read: {error}",
            where=str(folder / NAME),
            fix="evaluate the weights again: warmstart evaluate -m …",
        ) from None


def _array(value: Any) -> Any:
    """A prediction may hold arrays."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} has no JSON form")
