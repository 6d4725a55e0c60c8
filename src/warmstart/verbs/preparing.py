"""What a run needs before its first step: rows, task, batches and the model at its start."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from warmstart.checkpoints import Found, Verified, find, load_model, load_tokenizer, verify
from warmstart.engine import torch_runtime
from warmstart.errors import DataError, UsageError, Where
from warmstart.features import Batch
from warmstart.pipeline import Pipeline
from warmstart.provenance import environment, folder_digest, rows_digest
from warmstart.rows import Row, hold_out, read
from warmstart.tasks import TASKS, Task
from warmstart.tasks.contract import NeedsExam
from warmstart.training.batches import Batches, make_batches
from warmstart.training.class_weights import weigh_classes
from warmstart.training.config import TrainConfig
from warmstart.training.depth import layers_of
from warmstart.training.lineage import numerics
from warmstart.training.lora import add_lora
from warmstart.training.optimizers import default_learning_rate
from warmstart.training.recomputing import check_recomputable
from warmstart.training.top_layers import freeze_below
from warmstart.verbs.load import make_task, options_of

if TYPE_CHECKING:
    from warmstart.checkpoints.adapters import Adapter

log = logging.getLogger("warmstart")

# A learning rate of so many times the default is no choice any more, but most likely a slip.
_FAR_ABOVE = 100


@dataclass(frozen=True)
class Prepared:
    """A run before its first step. `provenance`: what it is made from, as its directory records it."""

    pipeline: Pipeline
    batches: Batches[Batch]
    held_out: list[Row]
    config: TrainConfig  # with the learning rate it has
    base: str  # the checkpoint's name
    rows: int
    places: Sequence[Where]  # of the training rows
    provenance: Mapping[str, Any]
    optimizer: Any = None  # a person's own; None: AdamW by the settings
    scheduler: Any = None
    adapter: Adapter | None = None


def prepare_run(
    model: str | Path,
    data: Any,
    *,
    kind: type[Task] | None,
    validation: Any,
    config: TrainConfig,
    columns: Mapping[str, str] | None,
    options: Mapping[str, Any],
    name: str,
) -> Prepared:
    """Find, verify and load everything. Raises UsageError, DataError and CheckpointError for what is wrong with it."""
    found = find(model)
    verified = verify(found.folder)
    kind = kind or _task_for_training(verified)
    rows, held_out = _read_rows(kind, data, validation, columns)
    tokenizer = load_tokenizer(verified)
    loaded = make_task(kind, tokenizer, verified, options)
    learned = loaded.learn(rows)
    _check_coupled(learned, config)
    for _ in learned.encode(held_out, train=True):
        pass  # a validation row that cannot be used is an error now, not after the first epoch
    if isinstance(learned, NeedsExam):
        for _ in learned.exam(held_out):
            pass  # nor one that can be learned, and not judged
    batches = make_batches(learned, rows, seed=config.seed, batch_size=config.batch_size, max_tokens=config.max_tokens)
    _warn_of_batch_size(config, batches)
    label_weights = weigh_classes(batches, config.loss)
    fresh = learned.head() != loaded.head()
    network = _untrained(verified, learned, fresh=fresh, config=config)
    freeze_below(network, config, batches)
    adapter = None if config.lora is None else add_lora(network, config.lora, seed=config.seed)
    pipeline = Pipeline(
        model=network,
        tokenizer=tokenizer,
        task=learned,
        runtime=torch_runtime(network, learned, device=config.device),
        name=name,
        notes=verified.findings,
    )
    if config.gradient_checkpointing:
        check_recomputable(pipeline.model)
    if config.layer_decay is not None:
        layers_of(pipeline.model, asked_by="layer_decay")
    return Prepared(
        pipeline=pipeline,
        batches=batches,
        held_out=held_out,
        config=_with_learning_rate(config, pipeline.model),
        base=found.name,
        rows=len(rows),
        places=[row.where for row in rows],
        provenance={
            **_provenance(found, rows, held_out, batches.left_out),
            "task": {"name": kind.name, "options": options_of(learned), "head": learned.head()},
            "numerics": numerics(pipeline.device),
            **({"label_weights": label_weights} if label_weights else {}),
            "lineage": [],
        },
        adapter=adapter,
    )


def _untrained(verified: Verified, task: Task, *, fresh: bool, config: TrainConfig) -> Any:
    """The model at its start; with a fresh head if asked to, or if the checkpoint has none of this kind."""
    head_of = TASKS.get(verified.purpose or "")
    fits = verified.has_head and head_of is not None and head_of.auto_class == task.auto_class
    fresh_head = None if fits and not fresh else task.head()
    if fresh_head is not None:
        log.info("starting a fresh head for %s", task.name)
    return load_model(verified, auto_class=task.auto_class, fresh_head=fresh_head, seed=config.seed)


def _check_coupled(task: Task, config: TrainConfig) -> None:
    """Where rows learn from each other, what splits a batch changes the loss: it is refused rather than done."""
    if not task.couples_rows:
        return
    for name, value, plain in (("accumulate", config.accumulate, 1), ("max_tokens", config.max_tokens, None)):
        if value != plain:
            raise UsageError(
                "rows-coupled",
                f"{task.name} learns from all rows of a batch together, so {name} would change what is learned",
                where=Where(field=name),
                value=value,
                fix=f"leave {name} out and set batch_size to the rows that learn from each other; "
                "less memory: a shorter max_length",
            )


def _warn_of_batch_size(config: TrainConfig, batches: Batches[Batch]) -> None:
    rows = len(batches.features)
    if config.batch_size > rows:
        log.warning(
            "batch_size %d is more than the %d rows to learn from; a smaller one makes more steps of an epoch",
            config.batch_size,
            rows,
        )


def _task_for_training(verified: Verified) -> type[Task]:
    """The checkpoint's own task if it learns from labels; else text classification, which is said (decision 0006)."""
    own = None if verified.task is None else TASKS.get(verified.task)
    if own is not None and own.trainable and any(field.target and not field.optional for field in own.fields):
        return own
    log.info("task text-classification, for a checkpoint that is made for %s", verified.task or "none")
    return TASKS["text-classification"]


def _with_learning_rate(config: TrainConfig, network: Any) -> TrainConfig:
    rate = default_learning_rate(network.config.hidden_size, adapters=config.lora is not None)
    if config.learning_rate is not None:
        if config.learning_rate > _FAR_ABOVE * rate:
            log.warning(
                "learning_rate %.3g is %.3g times the %.3g that a model of this width usually gets: the run may learn "
                "nothing, or end because its loss is not finite",
                config.learning_rate,
                config.learning_rate / rate,
                rate,
            )
        return config
    log.info("learning rate %.3g, by the width of the model", rate)
    return config.model_copy(update={"learning_rate": rate})


def _read_rows(
    kind: type[Task], data: Any, validation: Any, columns: Mapping[str, str] | None
) -> tuple[list[Row], list[Row]]:
    share = validation if isinstance(validation, int | float) else None
    if share is not None and (isinstance(share, bool) or not 0 < share < 1):
        raise UsageError(
            "validation-share",
            "a share of rows to hold out lies between 0 and 1",
            value=validation,
            fix="e.g. validation=0.1, or a file of rows",
        )
    rows = list(read(data, fields=kind.fields, columns=columns, targets=True))
    if validation is None:
        return rows, []
    if share is not None:
        fields = sorted(kind.fields, key=lambda field: not field.together)  # the sort keeps the order otherwise
        inputs = [field.name for field in fields if not field.target]
        rows, held_out = hold_out(rows, float(share), fields=inputs)
    else:
        held_out = list(read(validation, fields=kind.fields, columns=columns, targets=True))
    if rows and not held_out:
        raise DataError(
            "validation-empty",
            "there are no validation rows",
            value=validation if isinstance(validation, str | float) else None,
            fix="give rows with different texts to hold a share of them out, or another file, or no validation",
        )
    return rows, held_out


def _provenance(found: Found, rows: list[Row], held_out: list[Row], left_out: tuple[int, ...]) -> dict[str, Any]:
    return {
        "checkpoint": {
            "name": found.name,
            "revision": found.revision,
            "source": found.source,
            "digest": folder_digest(found.folder),
        },
        # The digest is of all rows; `left_out` are the positions of those that taught nothing.
        "data": {"train": rows_digest(rows), "validation": rows_digest(held_out), "left_out": list(left_out)},
        "environment": environment(),
    }
