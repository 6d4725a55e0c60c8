"""Load a checkpoint: find → verify → build, and nothing before it is verified."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from warmstart.checkpoints import Verified, find, load_model, load_tokenizer, verify
from warmstart.engine import torch_runtime
from warmstart.errors import UsageError
from warmstart.pipeline import Pipeline
from warmstart.tasks import TASKS, Task, find_task
from warmstart.tokenization import Tokenizer


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
    {"max_length": 128} for any task. `device`: "auto", "cpu", "cuda", "cuda:1" or "mps".

        pipe = ws.load("starter")
        pipe("I love LangChain!").label      # 'POSITIVE'

    Raises UsageError for a wrong name of task, option or device, before any file or network is touched;
    CheckpointError for a checkpoint that is missing, damaged, hostile or has no trained head.
    """
    kind = None if task is None else find_task(task)
    found = find(str(name))
    verified = verify(found.folder)
    kind = kind or task_of(verified)
    tokenizer = load_tokenizer(verified)
    made = make_task(kind, tokenizer, verified, options or {})
    fresh_head = None
    if labels is not None:
        made = made.with_labels(tuple(labels))
        fresh_head = made.head()
    model = load_model(verified, auto_class=kind.auto_class, dtype=dtype, fresh_head=fresh_head)
    return Pipeline(
        model=model,
        tokenizer=tokenizer,
        task=made,
        runtime=torch_runtime(model, made, device=device),
        name=str(name),
        notes=verified.findings,
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
        raise UsageError(
            "task-unsupported",
            f"the checkpoint is for {verified.task}, which this version cannot run",
            where=str(verified.folder),
            value=verified.task,
            fix=f"give task= to use it for one of: {', '.join(TASKS)}",
        )
    return TASKS[verified.task]


def make_task(kind: type[Task], tokenizer: Any, verified: Verified, options: Mapping[str, Any]) -> Task:
    """The task over our own copy of the tokenizer. A run's own options stand where none are given.

    Raises UsageError "option-unknown", "option-value" or "limit-too-small".
    """
    chosen = {**_saved_options(verified.folder, kind), **options}
    max_length = chosen.pop("max_length", None)
    if max_length is not None and (not isinstance(max_length, int) or isinstance(max_length, bool) or max_length <= 0):
        raise UsageError(
            "option-value", "max_length must be a positive whole number", value=max_length, fix="e.g. max_length=128"
        )
    limits = [limit for limit in (verified.max_positions, max_length) if limit is not None]
    ours = Tokenizer.from_transformers(
        tokenizer,
        limit=min(limits, default=tokenizer.model_max_length),
        # BERT-like models tell the texts of a pair apart by token types; their configs say how many there are.
        type_ids=(verified.config.get("type_vocab_size") or 0) > 1,
    )
    return kind.from_checkpoint(ours, verified.config, verified.folder, chosen)


def options_of(task: Task) -> dict[str, Any]:
    """The task's options as a run keeps them in `warmstart.json`."""
    fields = {item.name: getattr(task, item.name) for item in dataclasses.fields(task)}  # type: ignore[arg-type]
    return {name: fields[name] for name in task.option_names} | {"max_length": task.tokenizer.limit}


def _saved_options(folder: Path, kind: type[Task]) -> dict[str, Any]:
    path = folder / "warmstart.json"
    saved = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    options = saved.get("options") if saved.get("task") == kind.name else None
    return dict(options) if isinstance(options, dict) else {}
