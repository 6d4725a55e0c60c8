"""Load a checkpoint: find → verify → build, and nothing before it is verified."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from warmstart.checkpoints import (
    Exported,
    Verified,
    cache_folder,
    find,
    is_export,
    load_config,
    load_model,
    load_tokenizer,
    source_needed,
    verify,
    verify_export,
)
from warmstart.checkpoints.exported import record_mismatch
from warmstart.engine import graph_runtime, prepare, resolve_device, torch_runtime
from warmstart.errors import CheckpointError, UsageError, did_you_mean
from warmstart.pipeline import Pipeline
from warmstart.tasks import TASKS, Task, find_task
from warmstart.tasks.generation_options import with_cache_sizes
from warmstart.tokenization import Tokenizer

log = logging.getLogger("warmstart")

RECORD = "warmstart.json"  # what a run tells about its checkpoint
EXPORT_RECORD = "export.json"  # and an export


def load(
    name: str | Path = "starter",
    *,
    task: str | None = None,
    labels: Sequence[str] | None = None,
    options: Mapping[str, Any] | None = None,
    device: str = "auto",
    dtype: str = "float32",
) -> Pipeline:
    """A pipeline over a pretrained checkpoint.

    `name`: a folder, a run directory, a hub id (`org/name` or `org/name@revision`), `pkg:NAME` for an installed
    package that carries a checkpoint, or a starter name ("starter", "starter-encoder"). `task`: None takes the one the
    checkpoint was made for. `labels`: start a fresh, untrained head for these labels; without it a checkpoint that has
    no trained head for the task is refused. `options` are the task's own, e.g. {"long_text": "windows"}, and
    {"max_length": 128} for any task. `device`: "auto", "cpu", "cuda", "cuda:1" or "mps". A folder that `ws.export`
    wrote predicts with its graph, on the CPU, and imports neither torch nor transformers.

        pipe = ws.load("starter")
        pipe("I love LangChain!").label      # 'POSITIVE'

    Raises UsageError for a wrong name of task or device, and of an option where `task` is given, before any file or
    network is touched; CheckpointError for a checkpoint that is missing, damaged, hostile or has no trained head.
    """
    kind = None if task is None else find_task(task)
    if kind is not None:
        check_option_names(kind, options or {})
    if labels is not None:
        _check_labels(labels)
    if device not in ("auto", "cpu"):
        resolve_device(device)
    found = find(name)
    if is_export(found.folder):
        exported = verify_export(found.folder)
        _check_fixed(exported, kind, labels=labels, device=device, dtype=dtype)
        return exported_pipeline(exported, options=options or {}, name=str(name), cache=cache_folder())
    verified = verify(found.folder)
    kind = kind or task_of(verified)
    tokenizer = load_tokenizer(verified)
    made = make_task(kind, tokenizer, verified, options or {})
    fresh_head = None
    if labels is not None:
        made = made.with_labels(tuple(labels))
        fresh_head = made.head()
    # What `made` is may depend on the checkpoint: zero-shot classification is done with a head or without.
    model = load_model(verified, auto_class=made.auto_class, dtype=dtype, fresh_head=fresh_head)
    runtime = torch_runtime(model, made, device=device)
    return Pipeline(
        model=model,
        tokenizer=tokenizer,
        task=prepare(made, runtime),
        runtime=runtime,
        name=str(name),
        notes=verified.findings,
    )


def exported_pipeline(
    exported: Exported, *, options: Mapping[str, Any], name: str, cache: Path | None = None
) -> Pipeline:
    """The pipeline of an exported checkpoint; `cache` is where compiled graphs are kept, None for nowhere."""
    record = exported.record
    task = _exported_task(exported, options)
    if unknown := set(record.inputs) - task.pads.keys():
        raise record_mismatch(exported.folder, "inputs", f"{record.task} has no {sorted(unknown)[0]}", record.inputs)
    runtime = graph_runtime(
        record.format,
        exported.graph,
        precision=record.precision,
        inputs=record.inputs,
        outputs=[(output.name, output.shape) for output in record.outputs],
        limit=record.tokenizer.limit,
        packed=record.packed,
        digest=exported.digest,
        cache=cache,
    )
    return Pipeline(
        model=source_needed(exported.folder),
        tokenizer=task.tokenizer,
        task=prepare(task, runtime),
        runtime=runtime,
        name=name,
        notes=exported.findings,
    )


def _exported_task(exported: Exported, options: Mapping[str, Any]) -> Task:
    """The task as it was exported, with the options of then where none are given now."""
    record = exported.record
    if record.task not in TASKS:
        raise _task_unsupported(record.task, exported.folder)
    kind = TASKS[record.task]
    check_option_names(kind, options)
    chosen = {**_known_options(record.options, kind, exported.folder / EXPORT_RECORD), **options}
    facts = record.tokenizer
    try:
        max_length = _take_max_length(chosen)
        tokenizer = Tokenizer.from_json(
            (exported.folder / "tokenizer.json").read_text(encoding="utf-8"),
            limit=facts.limit if max_length is None else min(facts.limit, max_length),
            pad_id=facts.pad_id,
            type_ids=facts.type_ids,
            unknown=facts.unknown,
            mask=facts.mask,
        )
        _say_limit(max_length, tokenizer)
        tokenizer = dataclasses.replace(tokenizer, truncation_side=facts.truncation_side)
        return kind.from_checkpoint(tokenizer, exported.config, exported.folder, chosen)
    except UsageError as error:
        if options:
            raise
        raise _options_unusable(exported.folder / EXPORT_RECORD, error) from None


def _check_fixed(
    exported: Exported, kind: type[Task] | None, *, labels: Sequence[str] | None, device: str, dtype: str
) -> None:
    """A graph was made for one task, one head, one device and one precision."""
    record = exported.record
    asked = [
        ("task", kind is not None and kind.name != record.task, record.task, kind and kind.name),
        ("labels", labels is not None, record.labels, labels),
        ("device", device not in ("auto", "cpu"), "cpu", device),
        ("dtype", dtype != "float32", record.precision, dtype),
    ]
    for name, differs, fixed, value in asked:
        if differs:
            raise UsageError(
                "export-is-fixed",
                f"this checkpoint was exported for {name} {fixed!r}, which a graph cannot change",
                where=str(exported.folder),
                value=value,
                fix=f"leave {name} out, or load the checkpoint it was exported from: {record.source.get('name')}",
            )


def task_of(verified: Verified) -> type[Task]:
    """The task a checkpoint was made for.

    Raises UsageError "task-unclear" for a bare model, "task-unsupported" for a task this version does not have.
    """
    if verified.task is None:
        raise UsageError(
            "task-unclear",
            "the checkpoint does not say which task it was made for",
            where=str(verified.folder),
            fix=f"give task=, one of: {', '.join(TASKS)}",
        )
    if verified.task not in TASKS:
        raise _task_unsupported(verified.task, verified.folder)
    return TASKS[verified.task]


def _task_unsupported(task: str, folder: Path) -> UsageError:
    return UsageError(
        "task-unsupported",
        f"the checkpoint is for {task}, which this version cannot run",
        where=str(folder),
        value=task,
        fix=f"give task= to use it for one of: {', '.join(TASKS)}",
    )


def check_option_names(kind: type[Task], options: Mapping[str, Any]) -> None:
    """Raises UsageError "option-unknown", with the nearest name."""
    known = (*kind.option_names, "max_length")
    for name in options:
        if name not in known:
            raise UsageError(
                "option-unknown", f"{kind.name} has no option {name!r}", value=name, fix=did_you_mean(name, known)
            )


def make_task(kind: type[Task], tokenizer: Any, verified: Verified, options: Mapping[str, Any]) -> Task:
    """The task over our own copy of the tokenizer. A run's own options stand where none are given.

    Raises UsageError "option-unknown", "option-value" or "limit-too-small"; CheckpointError "record-invalid" where it
    is the checkpoint's own `warmstart.json` that asks for such a thing.
    """
    check_option_names(kind, options)
    saved = _saved_options(verified.folder, kind)
    try:
        return _make_task(kind, tokenizer, verified, {**saved, **options})
    except UsageError as error:
        if options or not saved:
            raise
        raise _options_unusable(verified.folder / RECORD, error) from None


def _options_unusable(record: Path, error: UsageError) -> CheckpointError:
    return CheckpointError(
        "record-invalid",
        f"the options saved with the checkpoint cannot be used: {error.what}",
        where=str(record),
        value=error.value,
        fix="correct the file, or remove it and give the options with the call",
    )


def _make_task(kind: type[Task], tokenizer: Any, verified: Verified, options: Mapping[str, Any]) -> Task:
    chosen = dict(options)
    max_length = _take_max_length(chosen)
    limits = [limit for limit in (verified.max_positions, max_length) if limit is not None]
    ours = Tokenizer.from_transformers(
        tokenizer,
        limit=min(limits, default=tokenizer.model_max_length),
        # BERT-like models tell the texts of a pair apart by token types; their configs say how many there are.
        type_ids=(verified.config.get("type_vocab_size") or 0) > 1,
    )
    _say_limit(max_length, ours)
    config = verified.config
    if "cache_megabytes" in kind.option_names:  # a cache has its size whether the file says it or leaves it to a class
        config = with_cache_sizes(config, load_config(verified).to_dict())
    return kind.from_checkpoint(ours, config, verified.folder, chosen)


def _take_max_length(options: dict[str, Any]) -> int | None:
    """Take `max_length` out of a person's options. Raises UsageError "option-value"."""
    max_length = options.pop("max_length", None)
    if max_length is not None and (not isinstance(max_length, int) or isinstance(max_length, bool) or max_length <= 0):
        raise UsageError(
            "option-value", "max_length must be a positive whole number", value=max_length, fix="e.g. max_length=128"
        )
    return max_length


def _say_limit(max_length: int | None, tokenizer: Tokenizer) -> None:
    if max_length is not None and tokenizer.limit < max_length:
        log.warning(
            "max_length=%d is more than the checkpoint reads: its limit is %d tokens", max_length, tokenizer.limit
        )


def options_of(task: Task) -> dict[str, Any]:
    """The task's options as a run keeps them in `warmstart.json`."""
    fields = {item.name: getattr(task, item.name) for item in dataclasses.fields(task)}  # type: ignore[arg-type]
    return {name: fields[name] for name in task.option_names} | {"max_length": task.tokenizer.limit}


def _saved_options(folder: Path, kind: type[Task]) -> dict[str, Any]:
    """What the run that made the checkpoint was told."""
    path = folder / RECORD
    saved = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}  # `verify` has read it already
    options = saved.get("options") if saved.get("task") == kind.name else None
    return _known_options(options, kind, path) if isinstance(options, dict) else {}


def _known_options(options: Mapping[str, Any], kind: type[Task], path: Path) -> dict[str, Any]:
    """Saved options without those of another version, which is said."""
    known = (*kind.option_names, "max_length")
    if unknown := sorted(options.keys() - set(known)):
        log.warning("%s: options of another version are left out: %s", path, ", ".join(unknown))
    return {name: value for name, value in options.items() if name in known}


def _check_labels(labels: Sequence[str]) -> None:
    if isinstance(labels, str) or not all(isinstance(label, str) and label.strip() for label in labels):
        raise UsageError(
            "labels-not-names",
            "labels must be a list of names",
            value=labels,
            fix='e.g. labels=["NEGATIVE", "POSITIVE"]',
        )
