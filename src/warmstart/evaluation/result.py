"""The result of an evaluation: judged predictions, and the files they are kept in."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from warmstart.durable import write_file
from warmstart.errors import WarmstartError
from warmstart.features import Array
from warmstart.metrics import Measure, Metric
from warmstart.rows import Row
from warmstart.tasks import as_dict

METRICS, PREDICTIONS = "metrics.json", "predictions.parquet"
ABOUT = b"warmstart"  # the key of what a table says about itself


@dataclass(frozen=True)
class Evaluation:
    """Judged predictions. `metrics`: value, lo, hi of each; `per_example`: arrays whose first axis is the row, always
    `loss`; `measures`, `labels` and `by_label` say how metrics are computed from them: see `tasks.contract.Scores`."""

    task: str
    rows: int
    metrics: Mapping[str, Metric]
    primary: str | None = None  # the metric that ranks evaluations, if the predictions define it
    per_example: Mapping[str, Array] = field(repr=False, default_factory=dict)
    examples: tuple[Row, ...] = field(repr=False, default=())
    predictions: tuple[Any, ...] = field(repr=False, default=())
    measures: Mapping[str, Measure] = field(repr=False, default_factory=dict)
    labels: tuple[str, ...] = field(repr=False, default=())
    by_label: tuple[str, ...] = field(repr=False, default=())

    @property
    def loss(self) -> float:
        """Mean loss a row; does not depend on how rows were batched."""
        return float(self.per_example["loss"].mean())

    @property
    def rank(self) -> tuple[float, float]:
        """What evaluations of the same rows are compared by, larger is better: the primary metric, then the loss."""
        primary = None if self.primary is None else self.metrics.get(self.primary)
        undefined = 0.0 if self.primary is None else -math.inf
        return undefined if primary is None else primary.value, -self.loss

    def as_dict(self) -> dict[str, Any]:
        """The JSON shape of `warmstart evaluate --json`."""
        return {
            "task": self.task,
            "rows": self.rows,
            "metrics": {name: metric.as_dict() for name, metric in self.metrics.items()},
        }

    def scoring(self) -> dict[str, Any]:
        """How the metrics are computed from `per_example`, JSON-able: the arguments of the same names."""
        return {
            "primary": self.primary,
            "measures": {name: measure.as_dict() for name, measure in self.measures.items()},
            "labels": list(self.labels),
            "by_label": list(self.by_label),
        }

    def write(self, folder: Path) -> None:
        """`metrics.json` (the shape of `as_dict`) and `predictions.parquet` in a folder, which is made if need be.

        Each is whole or not there, and a `metrics.json` is always that of the predictions beside it, whenever a kill
        comes. Raises WarmstartError "output-failed".
        """
        make_folder(folder)
        metrics = folder / METRICS
        with reported(metrics):
            metrics.unlink(missing_ok=True)
        self.write_predictions(folder / PREDICTIONS)
        with reported(metrics):
            write_file(metrics, (json.dumps(self.as_dict(), indent=2) + "\n").encode())

    def write_predictions(self, path: Path) -> None:
        """One Parquet line an example: `row`, the row's fields, `prediction` as JSON, and the per-example arrays.

        A field that has the name of one of our columns is kept as `input_<name>`. What the columns are, and how metrics
        are computed from them, stands as JSON in the schema's metadata, so that `ws.compare` needs this file only.
        A file of before stays until this one is on the disk. Raises WarmstartError "output-failed".
        """
        row = {"row": list(range(self.rows))}
        ours: dict[str, Any] = {
            "prediction": [json.dumps(as_dict(prediction)) for prediction in self.predictions],
            **{name: values.tolist() for name, values in self.per_example.items()},
        }
        fields: dict[str, Any] = {}
        names: dict[str, str] = {}
        for name in sorted({name for example in self.examples for name in example}):
            key = name
            while key in row or key in ours or key in fields:
                key = f"input_{key}"
            fields[key], names[key] = [cell(example.get(name)) for example in self.examples], name
        about = {
            **self.as_dict(),
            **self.scoring(),
            "fields": names,  # column -> field of the row
            "arrays": {name: str(values.dtype) for name, values in self.per_example.items()},
        }
        table = pa.table({**row, **fields, **ours}).replace_schema_metadata({ABOUT: json.dumps(about)})
        content = pa.BufferOutputStream()
        pq.write_table(table, content)
        with reported(path):
            write_file(path, content.getvalue().to_pybytes())


def scoring_of(document: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `Evaluation.scoring`, from its JSON."""
    return {
        "primary": document["primary"],
        "measures": {
            name: Measure(each["kind"], tuple(each["reads"]), each["index"], each["unit"])
            for name, each in document.get("measures", {}).items()
        },
        "labels": tuple(document.get("labels", ())),
        "by_label": tuple(document.get("by_label", ())),
    }


def make_folder(folder: Path) -> None:
    """A folder to write a result into, its parents too. Raises WarmstartError "output-failed"."""
    with reported(folder):
        folder.mkdir(parents=True, exist_ok=True)


def cell(value: Any) -> str | None:
    """A field as a Parquet cell: one column holds one type, so anything but text becomes JSON."""
    if value is None:
        return None
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text.encode("utf-8", "replace").decode("utf-8")  # a lone surrogate has no place in Parquet


@contextmanager
def reported(path: Path) -> Iterator[None]:
    """An operating system's refusal to write becomes WarmstartError "output-failed"."""
    try:
        yield
    except OSError as error:
        raise WarmstartError(
            "output-failed",
            f"the result could not be written: {error.strerror or error}",
            where=str(path),  # what the error names may be the hidden file beside it
            fix="check the path, free space and permissions",
        ) from None
