"""An exported checkpoint: a graph in the place of the weights, and `export.json`, the record of how it was made.

The folder holds the graph, `config.json`, the tokenizer, what the task reads beside them, the record, and
MANIFEST.json, without which it is not used: a graph cannot be looked through as tensors can. Everything here works
without torch, transformers and the runtimes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from warmstart.checkpoints import config as config_file
from warmstart.checkpoints import tokenizer_file
from warmstart.checkpoints.files import find_file, read_json
from warmstart.checkpoints.graph_file import check_onnx, check_openvino
from warmstart.checkpoints.labels import read_labels
from warmstart.checkpoints.manifest import NAME as MANIFEST
from warmstart.checkpoints.manifest import check_manifest
from warmstart.errors import CheckpointError, Where

NAME = "export.json"
PARITY = "parity.json"  # beside exported weights, which have no record: the report of the gate they passed
# The files that hold a graph, the one that is opened first.
GRAPH_FILES: Mapping[str, tuple[str, ...]] = {"openvino": ("model.xml", "model.bin"), "onnx": ("model.onnx",)}
PRECISIONS = ("fp32", "int8")

_NAME = re.compile(r"[A-Za-z_][\w.-]{0,127}")
FORMAT, READ = 2, (1, 2)  # of the record; in 1 no graph was packed
_LIMIT = 1 << 24  # tokens a text may have


@dataclass(frozen=True, slots=True)
class GraphOutput:
    """One output of a graph. `shape`: its axes, None where it depends on the batch."""

    name: str
    shape: tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class TokenizerFacts:
    """What `tokenizer.json` does not say and `warmstart.tokenization.Tokenizer` needs."""

    limit: int  # tokens a text may have, special tokens included
    pad_id: int
    type_ids: bool
    unknown: str | None
    mask: str | None
    truncation_side: str


@dataclass(frozen=True, slots=True)
class ExportRecord:
    """What `export.json` says. `source`, `versions`, `calibration` and `parity` are for people; the rest is obeyed."""

    format: str  # "openvino" or "onnx"
    precision: str  # "fp32" or "int8"
    task: str
    inputs: tuple[str, ...]  # of the task's that the graph reads; each is (B, T), or (B, …) of a fixed shape
    packed: bool  # it drops padding itself, and reads where the tokens are, too (`graph_runtime.PACK_INPUTS`)
    outputs: tuple[GraphOutput, ...]  # what the task's `infer` returned
    labels: tuple[str, ...] | None
    options: Mapping[str, Any]  # the task's, as `warmstart.json` of a run has them
    tokenizer: TokenizerFacts
    embedding_rows: int | None  # tokens the model has a vector for
    source: Mapping[str, Any]  # name, weights_sha256
    versions: Mapping[str, Any]
    calibration: Mapping[str, Any] | None  # of int8: what ranges are of, what the rows decide, which they are
    parity: Mapping[str, Any]  # the report of the gate it passed

    def as_json(self) -> str:
        """The content of `export.json`."""
        return json.dumps({"record": FORMAT, **asdict(self)}, indent=1, ensure_ascii=False) + "\n"


@dataclass(frozen=True, slots=True)
class Exported:
    """An exported folder that passed `verify_export`."""

    folder: Path  # resolved
    record: ExportRecord
    config: Mapping[str, Any]  # config.json without the keys that are never obeyed
    digest: str  # SHA-256 of the graph's files, by the manifest
    findings: tuple[str, ...]

    @property
    def graph(self) -> Path:
        return self.folder / GRAPH_FILES[self.record.format][0]

    @property
    def files(self) -> tuple[Path, ...]:
        """The graph's files."""
        return tuple(self.folder / name for name in GRAPH_FILES[self.record.format])


def is_export(folder: Path) -> bool:
    """Whether a folder says that it holds a graph instead of weights."""
    return (folder / NAME).is_symlink() or (folder / NAME).exists()


def verify_export(folder: Path) -> Exported:
    """Check an exported folder before its graph is opened.

    Raises CheckpointError: `export-record-invalid`, `export-record-mismatch`, `export-manifest-missing`,
    `export-file-missing`, `tokenizer-missing`, `graph-unsafe`, `graph-invalid`, and those of `manifest.check_manifest`,
    `config.read_config`, `labels.read_labels`, `tokenizer_file.check_tokenizer` and `files.read_json`.

    >>> verify_export(Path("exported")).record.precision  # doctest: +SKIP
    'int8'
    """
    try:
        folder = folder.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise CheckpointError(
            "folder-missing",
            f"the checkpoint folder cannot be opened: {error}",
            where=str(folder),
            fix=f"give the folder that holds {NAME}, and check that you may read it",
        ) from None
    record = _read_record(folder)
    for name in (*GRAPH_FILES[record.format], config_file.NAME, tokenizer_file.NAME):
        if find_file(folder, name) is None:
            raise CheckpointError(
                "export-file-missing",
                f"the exported folder has no {name}",
                where=str(folder),
                value=name,
                fix="copy the whole folder again, or export the checkpoint again",
            )
    listed = _listed(folder, record)
    findings = list(check_manifest(folder))
    config, dropped = config_file.read_config(folder)
    findings += dropped
    _check_labels(record, config, folder)
    findings += tokenizer_file.check_tokenizer(folder, record.embedding_rows)
    (check_openvino if record.format == "openvino" else check_onnx)(folder / GRAPH_FILES[record.format][0])
    digest = "-".join(listed[name]["sha256"] for name in GRAPH_FILES[record.format])
    return Exported(folder, record, config, digest, tuple(findings))


def source_needed(folder: Path) -> CheckpointError:
    """The error for an exported folder where a model with weights is asked for."""
    source = "its source"
    with suppress(CheckpointError):  # a damaged record is no reason to say something else
        source = str(_read_record(folder.resolve()).source.get("name"))
    return CheckpointError(
        "exported-has-no-model",
        "this is an exported checkpoint: it holds a graph to predict with, and no model to train, change or look into",
        where=str(folder),
        value=source,
        fix=f"use the checkpoint it was exported from: {source}",
    )


def _listed(folder: Path, record: ExportRecord) -> Mapping[str, Any]:
    """The manifest's entries; every file that is used must be among them."""
    path = find_file(folder, MANIFEST)
    entries = read_json(path).get("files") if path is not None else None
    used = (*GRAPH_FILES[record.format], NAME, config_file.NAME, tokenizer_file.NAME)
    absent = [name for name in used if not isinstance(entries, dict) or name not in entries]
    if absent or not isinstance(entries, dict):
        raise CheckpointError(
            "export-manifest-missing",
            f"{MANIFEST} does not vouch for {absent[0]}" if path is not None else f"the folder has no {MANIFEST}",
            where=str(folder / MANIFEST),
            value=absent,
            fix="copy the whole folder again, or export the checkpoint again; a graph is not used without its manifest",
        )
    return entries


def _check_labels(record: ExportRecord, config: Mapping[str, Any], folder: Path) -> None:
    """The record, the config and the graph's shape must tell of the same labels."""
    path = folder / config_file.NAME
    labels = read_labels(config, path, None if record.labels is None else len(record.labels))
    if record.labels is not None and labels != record.labels:
        raise record_mismatch(folder, "labels", "the record and config.json name different labels", record.labels)
    logits = next((output.shape for output in record.outputs if output.name == "logits"), None)
    if record.labels is not None and logits is not None and logits[-1] not in (None, len(record.labels)):
        what = f"the graph gives {logits[-1]} scores for {len(record.labels)} labels"
        raise record_mismatch(folder, "labels", what, record.labels)


def record_mismatch(folder: Path, field: str, what: str, value: object) -> CheckpointError:
    """The error for a record that does not tell of the files beside it: `export-record-mismatch`."""
    return CheckpointError(
        "export-record-mismatch",
        what,
        where=Where(source=str(folder / NAME), field=field),
        value=value,
        fix="the folder's files are of different exports: export the checkpoint again",
    )


def _read_record(folder: Path) -> ExportRecord:
    path = find_file(folder, NAME)
    if path is None:
        raise CheckpointError(
            "export-record-invalid", f"the folder has no {NAME}", where=str(folder), fix="give an exported folder"
        )
    raw = read_json(path)
    read = _Fields(path, raw)
    kind, precision = read.text("format"), read.text("precision")
    if raw.get("record") not in READ or kind not in GRAPH_FILES or precision not in PRECISIONS:
        raise read.invalid("format", f"this version reads {' and '.join(GRAPH_FILES)}, {' and '.join(PRECISIONS)}")
    facts = _Fields(path, read.mapping("tokenizer"), "tokenizer.")
    if facts.text("truncation_side") not in ("left", "right"):
        raise facts.invalid("truncation_side", "must be left or right")
    calibration = raw.get("calibration")
    return ExportRecord(
        format=kind,
        precision=precision,
        task=read.text("task"),
        inputs=tuple(read.names("inputs")),
        packed=raw["record"] > 1 and read.flag("packed"),
        outputs=tuple(_output(read, item) for item in read.items("outputs")),
        labels=None if raw.get("labels") is None else tuple(read.texts("labels")),
        options=read.mapping("options"),
        tokenizer=TokenizerFacts(
            limit=facts.count("limit", least=1),
            pad_id=facts.count("pad_id"),
            type_ids=facts.flag("type_ids"),
            unknown=facts.optional_text("unknown"),
            mask=facts.optional_text("mask"),
            truncation_side=facts.text("truncation_side"),
        ),
        embedding_rows=None if raw.get("embedding_rows") is None else read.count("embedding_rows", least=1),
        source=read.mapping("source"),
        versions=read.mapping("versions"),
        calibration=None if calibration is None else read.mapping("calibration"),
        parity=read.mapping("parity"),
    )


def _output(read: _Fields, item: Any) -> GraphOutput:
    name, shape = (item.get("name"), item.get("shape")) if isinstance(item, dict) else (None, None)
    fits = isinstance(shape, list) and shape and all(axis is None or (type(axis) is int and axis > 0) for axis in shape)
    if not isinstance(name, str) or not _NAME.fullmatch(name) or not fits:
        raise read.invalid("outputs", "an output needs a name and a shape", item)
    return GraphOutput(name, tuple(shape))  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class _Fields:
    """Typed access to a JSON object; what is missing or of another type is an error that names the field."""

    path: Path
    values: Mapping[str, Any]
    prefix: str = ""

    def text(self, name: str) -> str:
        value = self.values.get(name)
        if not isinstance(value, str) or not 0 < len(value) <= 200:
            raise self.invalid(name, "must be a short text")
        return value

    def optional_text(self, name: str) -> str | None:
        return None if self.values.get(name) is None else self.text(name)

    def count(self, name: str, *, least: int = 0) -> int:
        value = self.values.get(name)
        if type(value) is not int or not least <= value <= _LIMIT:
            raise self.invalid(name, f"must be a whole number from {least} to {_LIMIT}")
        return value

    def flag(self, name: str) -> bool:
        value = self.values.get(name)
        if not isinstance(value, bool):
            raise self.invalid(name, "must be true or false")
        return value

    def mapping(self, name: str) -> Mapping[str, Any]:
        value = self.values.get(name)
        if not isinstance(value, dict):
            raise self.invalid(name, "must be an object")
        return value

    def items(self, name: str) -> list[Any]:
        value = self.values.get(name)
        if not isinstance(value, list) or not value:
            raise self.invalid(name, "must be a list, and not empty")
        return value

    def texts(self, name: str) -> list[str]:
        values = self.items(name)
        if not all(isinstance(value, str) for value in values):
            raise self.invalid(name, "must be a list of texts")
        return values

    def names(self, name: str) -> list[str]:
        values = self.texts(name)
        if len(set(values)) != len(values) or not all(map(_NAME.fullmatch, values)):
            raise self.invalid(name, "must be a list of different names")
        return values

    def invalid(self, name: str, what: str, value: object = None) -> CheckpointError:
        return CheckpointError(
            "export-record-invalid",
            f"{NAME}: {self.prefix}{name} {what}",
            where=Where(source=str(self.path), field=self.prefix + name),
            value=self.values.get(name) if value is None else value,
            fix="the record is damaged or of another version: export the checkpoint again",
        )
