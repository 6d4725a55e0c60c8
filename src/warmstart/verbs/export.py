"""Export: a checkpoint as a graph that predicts without torch, or as weights; kept only if it answers the same."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from warmstart.checkpoints import check_free, commit_folder, save_model
from warmstart.checkpoints.exported import GRAPH_FILES, PARITY, PRECISIONS
from warmstart.engine import graph_writer
from warmstart.errors import UsageError, did_you_mean
from warmstart.pipeline import Pipeline
from warmstart.tasks.contract import Generates
from warmstart.verbs.export_graph import Export, GraphExport, own_files
from warmstart.verbs.export_rows import ExportRows
from warmstart.verbs.load import load
from warmstart.verbs.parity import FP32, INT8, Gate, Tolerance, require

__all__ = ["FORMATS", "Export", "default_tolerance", "export"]

FORMATS = (*GRAPH_FILES, "safetensors")


def export(
    model: str | Path | Pipeline,
    output: str | Path,
    *,
    format: str = "openvino",
    precision: str = "fp32",
    data: Any = None,
    columns: Mapping[str, str] | None = None,
    task: str | None = None,
    options: Mapping[str, Any] | None = None,
    tolerance: Tolerance | None = None,
) -> Export:
    """Write a checkpoint in another form, into a new folder that `ws.load` and every command take.

    `model`: a pipeline, or a name that `ws.load` takes (`task` and `options` are for the latter). `format`: "openvino"
    or "onnx" is a graph that predicts on a CPU and imports neither torch nor transformers; "safetensors" is a standard
    Hugging Face folder. `precision` "int8" quantizes the matrix products of a graph. `data`: rows of any kind that
    `ws.evaluate` takes, labelled or not; some calibrate int8 (an ONNX graph takes the ranges of each batch: there they
    only say which products stay in float first), the others judge. Without it, the movie reviews that the starter was
    made with are used: to judge fp32 of any task that reads one text, and for int8 of a starter.

        result = ws.export(pipe, "exported", format="openvino")
        result.parity.agreement; ws.load("exported")("a text")

    The export is compared with its source (see `Parity`) and kept only within `tolerance`: by default fp32 decides all
    rows the same and no output differs by more than 1e-4, and int8 decides 99 % the same. The report is kept in the
    folder: in `export.json` of a graph, in `parity.json` beside weights. An int8 graph that fails is
    tried again with more of its products in float32, those first whose inputs eight bits hurt most.

    Raises UsageError `format-unknown`, `precision-unknown`, `precision-unsupported`, `extra-missing`, `target-exists`,
    `export-rows-needed`, `export-unsupported`; DataError `parity-rows-too-few`; WarmstartError `parity-failed`, and
    then nothing stays on the disk.
    """
    _check_names(format, precision)
    target = Path(output)
    check_free(target)
    if format != "safetensors":
        graph_writer(format)  # what is not installed is said before anything is loaded
    pipe = model if isinstance(model, Pipeline) else load(model, task=task, options=options, device="cpu")
    network = pipe.model
    if format != "safetensors" and isinstance(pipe.task, Generates):
        raise UsageError(
            "export-unsupported",
            f"{pipe.task.name} goes on token by token, and a graph is one forward pass",
            value=format,
            fix='use format="safetensors"',
        )
    allowed = tolerance or default_tolerance(precision)
    rows = ExportRows.choose(pipe, data, columns, precision, allowed)
    gate = Gate.of(pipe, rows.gate, allowed)
    if format == "safetensors":
        return _export_weights(pipe, network, target, gate)
    graph = GraphExport(pipe, network, format, precision, rows, gate)
    made: list[Export] = []
    commit_folder(target, lambda folder: made.append(graph.write(folder)))
    return dataclasses.replace(made[0], path=target)


def _export_weights(pipe: Pipeline, network: Any, target: Path, gate: Gate) -> Export:
    """A standard folder, read back and compared before it gets its name."""
    facts = own_files(pipe, network)
    made: list[Export] = []

    def write(folder: Path) -> None:
        save_model(network, pipe.tokenizer, folder / "model", extra=facts)
        parity = require(gate.measure(load(folder / "model", device="cpu")), "saved checkpoint")
        for path in sorted((folder / "model").iterdir()):
            path.rename(folder / path.name)
        (folder / "model").rmdir()
        (folder / PARITY).write_text(
            json.dumps(parity.as_dict(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        made.append(Export(target, "safetensors", "fp32", parity, size))

    commit_folder(target, write)
    return made[0]


def default_tolerance(precision: str) -> Tolerance:
    """What an export may differ by if nothing else is said."""
    return INT8 if precision == "int8" else FP32


def _check_names(format: str, precision: str) -> None:
    if format not in FORMATS:
        raise UsageError(
            "format-unknown", f"there is no format {format!r}", value=format, fix=did_you_mean(format, FORMATS)
        )
    if precision not in PRECISIONS:
        raise UsageError(
            "precision-unknown",
            f"there is no precision {precision!r} to export to",
            value=precision,
            fix=did_you_mean(precision, PRECISIONS),
        )
    if format == "safetensors" and precision != "fp32":
        raise UsageError(
            "precision-unsupported",
            "int8 is a matter of the runtime: weights in safetensors have none",
            value=precision,
            fix='use format="openvino" or format="onnx"',
        )
