"""Bench: how fast a checkpoint answers a person's rows on their machine, beside what they would use without us."""

from __future__ import annotations

import dataclasses
import importlib.util
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from warmstart.checkpoints import find, is_export, verify, verify_export
from warmstart.engine import resolve_device
from warmstart.errors import DataError, UsageError, WarmstartError
from warmstart.rows import Row, read
from warmstart.tasks import Task, find_task
from warmstart.tasks.contract import text_of
from warmstart.verbs.bench_figures import undisturbed
from warmstart.verbs.bench_process import Contestant, Place, Worker, spare_cores, usable_cores, working
from warmstart.verbs.bench_race import Entry, find_setting, race
from warmstart.verbs.bench_result import OURS, TEXTBOOK, Bench, standing
from warmstart.verbs.bench_worker import Fields
from warmstart.verbs.choose import load_for
from warmstart.verbs.load import task_of

log = logging.getLogger("warmstart")

PIPELINE, SENTENCE, CROSS_ENCODER = "transformers.pipeline", "sentence-transformers", "CrossEncoder"
TEXTBOOK_BATCH, BATCH_SIZES = 32, (1, 4, 8, 16, 32, 64)  # and those among which a peer's best is found
SEARCH_ROWS = 256  # rows on which a peer's best batch size is looked for
QUIET = 0.9  # share of the wall time with the core, below which the machine was busy with something else
OWN = "warmstart.verbs.bench_own"
_WORKLOAD = "rows"


def bench(
    model: str | Path,
    data: Any,
    *,
    task: str | None = None,
    rows: int | None = 1000,
    repeats: int = 5,
    threads: int | None = None,
    device: str = "auto",
    precision: str | None = None,
    columns: Mapping[str, str] | None = None,
    progress: Callable[[str], None] | None = None,
) -> Bench:
    """Measure `ws.load(model)` against `transformers.pipeline` at its best batch size and, for classes and vectors, the
    textbook loop; embeddings and rerankers against sentence-transformers, if it is installed.

        from warmstart.verbs.bench import bench
        found = bench("starter", "reviews.csv", rows=8, repeats=1)
        print("\\n".join(found.table()))

    `data` is anything `ws.train` takes; its first `rows` rows are measured (None: all). `repeats` is how often each
    contestant runs over them. `threads`: for everybody; None takes OMP_NUM_THREADS, else every core. Each contestant
    lives in a process of its own on the same cores; they run in turn, from text to answer, warm, in inference mode; a
    ratio is the median of the ratios inside each repeat. `precision` is that of `ws.load_for`, for us alone: peers stay
    in float32. Graphs it makes are calibrated on these rows. `progress` is called with a line on what runs.

    A task that has no peer here, or a peer that fails, is left out with a warning and in `Bench.failed`. Raises
    UsageError "bench-count" for counts below 1, DataError "no-rows", what `ws.load_for` and reading raise, and
    WarmstartError "contestant-failed" if our own process ends.
    """
    for name, count in (("rows", rows), ("repeats", repeats), ("threads", threads)):
        if count is not None and count < 1:
            raise UsageError("bench-count", f"{name} must be at least 1", value=count, fix=f"give {name}=1 or more")
    subject = _subject(model, task, device)
    texts = _texts(read(data, fields=subject.task.fields, columns=columns), subject.task, rows)
    if precision is not None:
        subject = _in_precision(subject, model, precision, texts, task, device)
    place = Place(threads or default_threads(), spare_cores(threads or default_threads()))
    say = progress or (lambda line: None)
    failed: dict[str, str] = {}
    with ExitStack() as stack:
        ready = [_ready(stack, subject.own, place, texts, repeats, say)]
        facts = ready[0].worker.facts
        for peer in () if subject.source is None else _peers(facts, str(subject.source)):
            try:
                ready.append(_ready(stack, peer, place, texts, repeats, say))
            except WarmstartError as error:
                failed[peer.name] = error.what
                log.warning("%s is left out: %s", peer.name, error.what)
        if len(ready) == 1:
            log.warning("%s: there is nothing here to compare with", subject.task.name)
        workers = {each.entry.name: each.worker for each in ready}
        trials, surveys = race([each.entry for each in ready], workers, {_WORKLOAD: len(texts)}, progress=say)
    quiet = undisturbed(trials) if place.threads == 1 and subject.device == "cpu" else None
    if quiet is not None and quiet < QUIET:
        log.warning("the machine was busy: the contestants had their core for %.0f %% of the time", 100 * quiet)
    return Bench(
        model=str(model),
        task=subject.task.name,
        rows=len(texts),
        tokens=surveys[_WORKLOAD, OURS].tokens or 0,
        threads=place.threads,
        device=subject.device,
        precision=subject.precision,
        standings=tuple(standing(_WORKLOAD, each.entry, trials, surveys) for each in ready),
        trials=tuple(trials),
        searched={each.entry.name: each.searched for each in ready if each.searched},
        failed=failed,
        undisturbed=quiet,
    )


@dataclass(frozen=True)
class _Subject:
    """What is measured. `source`: the folder that peers load; of an export the one it was made from, None if it is not
    here."""

    task: type[Task]
    device: str
    own: Contestant
    source: Path | None
    precision: str = "torch fp32"


def _subject(model: str | Path, task: str | None, device: str) -> _Subject:
    """The checkpoint a person names, before anything of it is loaded."""
    known = None if task is None else find_task(task)
    where, precision = resolve_device(device), "torch fp32"
    folder = find(model).folder
    source: Path | None = folder
    if exported := is_export(folder):
        record = verify_export(folder).record
        known, source = known or find_task(record.task), _source(str(record.source["name"]))
        where, precision = "cpu" if device == "auto" else where, f"{record.format} {record.precision}"
    known = known or task_of(verify(folder))
    settings = {"model": str(model), "task": known.name, "device": where, "exported": exported}
    return _Subject(known, where, Contestant(OURS, OWN, settings), source, precision)


def _in_precision(
    subject: _Subject, model: str | Path, precision: str, texts: Sequence[Fields], task: str | None, device: str
) -> _Subject:
    """The subject as what `ws.load_for` gives: made or chosen here, so that our contestant only has to load it."""
    pipe, choice = load_for(model, precision=precision, data=list(texts), task=task, device=device)
    settings = {**subject.own.settings, "device": pipe.device}
    if is_export(folder := find(pipe.name).folder):
        record = verify_export(folder).record
        chosen = f"{record.format} {record.precision}"
        settings |= {"model": pipe.name, "exported": True}
    else:
        chosen = choice.chosen if choice is not None else f"torch {precision}"
        settings |= {"dtype": "bfloat16" if chosen == "torch bf16" else "float32"}
    own = dataclasses.replace(subject.own, settings=settings)
    return dataclasses.replace(subject, own=own, device=pipe.device, precision=chosen)


def _source(name: str) -> Path | None:
    """The checkpoint an export was made from, which is what peers can run."""
    try:
        return find(name).folder
    except WarmstartError as error:
        log.warning("the checkpoint it was exported from is not here, so no peer runs: %s", error.what)
        return None


@dataclass(frozen=True)
class _Ready:
    """A contestant that has loaded, with its best setting and the times by which it was found."""

    entry: Entry
    worker: Worker
    searched: Mapping[int, Sequence[float]]


def _ready(
    stack: ExitStack, contestant: Contestant, place: Place, texts: Sequence[Fields], repeats: int,
    say: Callable[[str], None],
) -> _Ready:  # fmt: skip
    say(
        f"{contestant.name}: looking for its best batch size"
        if len(contestant.choices) > 1
        else f"{contestant.name}: loading"
    )
    found = find_setting(contestant, place, {_WORKLOAD: texts[:SEARCH_ROWS]})
    setting, searched = found[_WORKLOAD]
    worker = stack.enter_context(working([contestant], place))[contestant.name]
    worker.load(_WORKLOAD, texts)
    return _Ready(Entry(contestant, _WORKLOAD, setting, repeats), worker, searched)


def default_threads() -> int:
    """OMP_NUM_THREADS, as torch reads it, else every core this process may use."""
    told = os.environ.get("OMP_NUM_THREADS", "")
    return int(told) if told.isdigit() and int(told) else usable_cores()


def _texts(rows: Iterable[Row], kind: type[Task], most: int | None) -> list[Fields]:
    """What predicting reads of the first `most` rows, by field. Raises DataError "no-rows", and "field-missing" and
    "field-not-text" as encoding them would."""
    texts: list[Fields] = [_inputs(row, kind) for row in islice(rows, most)]
    if not texts:
        raise DataError("no-rows", "there are no rows to measure on", fix="check the file, and the columns it has")
    return texts


def _inputs(row: Row, kind: type[Task]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for place, field in enumerate(field for field in kind.fields if not field.target):
        if field.text and not field.many:
            instead = bool(field.instead) and row.get(field.instead) is not None
            value: Any = text_of(row, field.name, optional=place > 0 or instead)
        else:
            value = row.get(field.name)
        if value is not None:
            found[field.name] = value.tolist() if isinstance(value, np.ndarray | np.generic) else value
    return found


def _peers(facts: Mapping[str, Any], folder: str) -> Iterator[Contestant]:
    """Whom a person would use instead, for this task."""
    settings = {**facts, "folder": folder}
    module, sentence = "warmstart.checkpoints.peer_transformers", "warmstart.checkpoints.peer_sentence_transformers"
    installed = importlib.util.find_spec("sentence_transformers") is not None
    if facts["task"] == "text-classification":
        yield Contestant(PIPELINE, module, {**settings, "peer": "pipeline"}, choices=BATCH_SIZES)
        yield Contestant(TEXTBOOK, module, {**settings, "peer": "textbook"}, (TEXTBOOK_BATCH,))
    if facts["task"] in ("token-classification", "fill-mask") or "entailment" in facts:
        yield Contestant(PIPELINE, "warmstart.checkpoints.peer_pipelines", settings, choices=BATCH_SIZES)
    if facts["task"] == "rerank" and installed:
        yield Contestant(CROSS_ENCODER, sentence, settings, choices=BATCH_SIZES)
    if facts["task"] == "sentence-embedding":
        if installed:
            yield Contestant(SENTENCE, sentence, settings, choices=BATCH_SIZES)
        if facts["pooling"] in ("mean", "cls"):  # what the loops on model cards do
            yield Contestant(TEXTBOOK, module, {**settings, "peer": "textbook"}, (TEXTBOOK_BATCH,))
