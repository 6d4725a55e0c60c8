"""One export to a graph: traced, converted, quantized if asked to, opened again and judged."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from warmstart.batching import collate, plan
from warmstart.checkpoints import Exported, ExportRecord, GraphOutput, TokenizerFacts, save_settings
from warmstart.checkpoints.config import max_positions, read_config
from warmstart.checkpoints.exported import GRAPH_FILES
from warmstart.checkpoints.exported import NAME as RECORD
from warmstart.engine import graph_writer
from warmstart.engine.graph import Traced, embedding_rows, trace, unsupported, weights_digest
from warmstart.engine.graph_runtime import graph_inputs
from warmstart.errors import WarmstartError
from warmstart.features import Array
from warmstart.pipeline import Pipeline
from warmstart.provenance import environment, rows_digest
from warmstart.rows import Row
from warmstart.tasks import Task, WritesFiles
from warmstart.verbs.export_rows import ExportRows
from warmstart.verbs.load import RECORD as WARMSTART_RECORD
from warmstart.verbs.load import exported_pipeline, options_of
from warmstart.verbs.parity import Gate, Parity, require

log = logging.getLogger("warmstart")

_VERSIONS = ("warmstart", "torch", "transformers", "openvino", "nncf", "onnx", "onnxruntime")
_CALIBRATION_TOKENS = 512  # of a batch: little padding, whose activations count as a text's where a graph has them
# The share of matrix products that stays in float32, tried in turn until the gate is passed.
_IN_FLOAT = (0, 1 / 12, 1 / 6, 1 / 3, 1 / 2)


@dataclass(frozen=True)
class Export:
    """A finished export. `path`: a folder that `ws.load` takes; `parity`: how it compares with its source."""

    path: Path
    format: str
    precision: str
    parity: Parity
    bytes: int  # of the graph, or of the weights
    in_float: tuple[str, ...] = ()  # matrix products of an int8 graph that stayed in float32

    def as_dict(self) -> dict[str, Any]:
        """The JSON shape of `warmstart export --json`."""
        return dataclasses.asdict(self) | {"path": str(self.path), "parity": self.parity.as_dict()}


@dataclass(frozen=True)
class GraphExport:
    """One export to a graph, from tracing to the folder's last file but its manifest."""

    pipe: Pipeline
    network: Any
    format: str
    precision: str
    rows: ExportRows
    gate: Gate

    def write(self, folder: Path) -> Export:
        """Fill `folder`. Raises WarmstartError `parity-failed` where no attempt is good enough."""
        task = self.pipe.task
        sample = list(task.encode((self.rows.calibration or self.rows.gate)[:64]))
        log.info("tracing %s", task.name)
        writer = graph_writer(self.format)
        traced = trace(self.network, task, sample, packs=writer.PACKS)
        try:
            graph = writer.convert(traced)
        except MemoryError:
            raise
        except Exception as error:  # a converter's own kinds of errors, one for each thing it cannot do
            raise unsupported(self.network, task, error) from error
        save_settings(self.network, self.pipe.tokenizer, folder)
        for name, content in own_files(self.pipe, self.network).items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(content)
        record = self._record(traced, folder)
        if self.precision == "fp32":
            return self._finish(graph, folder, record, in_float=())
        return self._quantized(writer, graph, folder, record)

    def _quantized(self, writer: Any, graph: Any, folder: Path, record: ExportRecord) -> Export:
        """The first attempt that passes the gate: each has more in float32 than the one before."""
        batches = _batches(self.pipe.task, self.rows.calibration, record)
        quantizer = writer.Quantizer.of(graph, batches)
        hardest: tuple[str, ...] = quantizer.products
        # With every product in int8 only where the worst of their inputs was parted from them.
        shares = _IN_FLOAT if quantizer.outliers else _IN_FLOAT[1:]
        counts = list(dict.fromkeys(round(len(hardest) * share) for share in shares))
        for count in counts:
            in_float = hardest[:count]
            log.info("int8, with %d of %d matrix products in float32", len(in_float), len(hardest))
            quantized = quantizer.quantize(in_float)
            calibration = {
                "ranges": quantizer.ranges,
                "rows_decide": quantizer.rows_decide,
                **rows_digest(self.rows.calibration),
                "shared_with_gate": self.rows.shared,
                "products": len(hardest),
                "in_float": list(in_float),
                "outliers_apart": list(quantizer.outliers),
            }
            try:
                return self._finish(
                    quantized, folder, dataclasses.replace(record, calibration=calibration), in_float=in_float
                )
            except WarmstartError as error:
                if error.code != "parity-failed" or count == counts[-1]:
                    raise
                log.info("%s", error.what.splitlines()[0])
        raise AssertionError("the last attempt returns or raises")

    def _finish(self, graph: Any, folder: Path, record: ExportRecord, *, in_float: tuple[str, ...]) -> Export:
        """Write the graph, open the folder as a person would, compare, and write the record."""
        names = GRAPH_FILES[self.format]
        for name in names:
            (folder / name).unlink(missing_ok=True)  # the last attempt's runtime may still have it mapped
        graph.write(folder / names[0])
        config, _ = read_config(folder)
        exported = exported_pipeline(Exported(folder, record, config, "", ()), options={}, name=str(folder))
        parity = require(self.gate.measure(exported), f"{self.format} {self.precision} graph")
        log.info("%.2f %% of %d rows agree", 100 * parity.agreement, parity.rows)
        (folder / RECORD).write_text(dataclasses.replace(record, parity=parity.as_dict()).as_json(), encoding="utf-8")
        size = sum((folder / name).stat().st_size for name in names)
        return Export(folder, self.format, self.precision, parity, size, in_float)

    def _record(self, traced: Traced, folder: Path) -> ExportRecord:
        pipe, tokenizer = self.pipe, self.pipe.task.tokenizer
        config, _ = read_config(folder)
        limits = [limit for limit in (max_positions(config), pipe.tokenizer.model_max_length) if limit is not None]
        return ExportRecord(
            format=self.format,
            precision=self.precision,
            task=pipe.task.name,
            inputs=traced.inputs,
            packed=traced.packed,
            outputs=tuple(GraphOutput(name, axes) for name, axes in traced.outputs),
            labels=_labels(traced, config),
            options=chosen_options(pipe.task),
            tokenizer=TokenizerFacts(
                limit=min(limits),
                pad_id=tokenizer.pad_id,
                type_ids=tokenizer.type_ids,
                unknown=None if tokenizer.unknown_id is None else tokenizer.rust.id_to_token(tokenizer.unknown_id),
                mask=tokenizer.mask,
                truncation_side=tokenizer.truncation_side,
            ),
            embedding_rows=embedding_rows(self.network),
            source={"name": pipe.name, "weights_sha256": weights_digest(self.network)},
            versions=versions(),
            calibration=None,
            parity={},
        )


def versions() -> dict[str, Any]:
    """The packages that took part, and their versions."""
    installed: dict[str, Any] = environment([])["packages"]
    return {name: installed[name] for name in _VERSIONS if installed.get(name)}


def chosen_options(task: Task) -> dict[str, Any]:
    """The task's options that are not what they are without being asked for."""
    usual = {item.name: item.default for item in dataclasses.fields(task)}  # type: ignore[arg-type]
    return {name: value for name, value in options_of(task).items() if name not in usual or value != usual[name]}


def own_files(pipe: Pipeline, network: Any) -> dict[str, bytes]:
    """What the task reads beside the model, and the options it was loaded with."""
    files = dict(pipe.task.files(width=network.config.hidden_size)) if isinstance(pipe.task, WritesFiles) else {}
    facts = {"task": pipe.task.name, "base": pipe.name, "options": chosen_options(pipe.task), "versions": versions()}
    return {**files, WARMSTART_RECORD: (json.dumps(facts, indent=2) + "\n").encode()}


def _labels(traced: Traced, config: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The label of each logit, where the graph gives as many as the config names."""
    table = config.get("id2label")
    width = dict(traced.outputs).get("logits", (None,))[-1]
    if not table or len(table) != width:
        return None
    return tuple(table[key] for key in sorted(table, key=int))


def _batches(task: Task, rows: Sequence[Row], record: ExportRecord) -> list[dict[str, Array]]:
    """The rows as the graph will see them: in batches of like length."""
    features = list(task.encode(list(rows)))
    planned = plan([feature.length for feature in features], max_tokens=_CALIBRATION_TOKENS)
    batches = [collate([features[i] for i in members], task.pads).inputs for members in planned]
    # Not rounded: what a pack is filled up with would count as a text's.
    return [graph_inputs(batch, record.inputs, packed=record.packed, rounded=False) for batch in batches]
