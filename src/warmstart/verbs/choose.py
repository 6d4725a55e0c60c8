"""Load a checkpoint in a precision; or in what runs it fastest here, by measuring, and remember that."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from warmstart.checkpoints import cache_folder, find, is_export, verify_export
from warmstart.errors import UsageError, WarmstartError, did_you_mean
from warmstart.pipeline import Pipeline
from warmstart.provenance import folder_digest, json_digest, rows_digest
from warmstart.rows import Row, read
from warmstart.verbs.choice import (
    REFERENCE,
    Candidate,
    Choice,
    Trial,
    decide,
    machine,
    place_of,
    race,
    read_choice,
    versions,
    write_choice,
)
from warmstart.verbs.export import default_tolerance, export
from warmstart.verbs.export_rows import ExportRows
from warmstart.verbs.load import load, options_of
from warmstart.verbs.parity import Gate, Tolerance

log = logging.getLogger("warmstart")

PRECISIONS = ("fp32", "bf16", "int8", "auto")
_RUNTIMES = {"openvino": "openvino", "onnx": "onnxruntime"}  # format → package, the quicker one first
_DTYPES = {"fp32": "float32", "bf16": "bfloat16"}
_ROWS = 1536  # of a person's rows, as many are looked at
_TIMED_ROWS = 256


def load_for(
    name: str | Path,
    *,
    precision: str = "auto",
    data: Any = None,
    columns: Mapping[str, str] | None = None,
    task: str | None = None,
    options: Mapping[str, Any] | None = None,
    device: str = "auto",
) -> tuple[Pipeline, Choice | None]:
    """A pipeline in a precision; "auto": whatever was measured to be the fastest that answers the same.

    "fp32" and "bf16" run in torch, "int8" as an OpenVINO export, made in the cache the first time. "auto" tries all
    forms of the checkpoint on this machine, once: each is compared with torch in fp32 and timed beside it, alternating,
    on rows of `data` (by default the reviews that `ws.export` judges by), and the fastest that passes the parity gate
    is chosen. On a GPU only torch is tried. The choice is remembered for this checkpoint, task, options, machine and
    versions; `warmstart inspect` shows it. It is None where nothing was to be chosen.

        pipe, choice = ws.load_for("starter", precision="auto")
        choice.chosen, choice.why

    Raises UsageError "precision-unknown", "export-is-fixed" for a folder that is an export of another precision, and
    what `ws.load` and `ws.export` raise.
    """
    if precision not in PRECISIONS:
        raise UsageError(
            "precision-unknown",
            f"there is no precision {precision!r}",
            value=precision,
            fix=did_you_mean(precision, PRECISIONS),
        )
    source = _Source(name, task, options, device)
    folder = find(name).folder
    if is_export(folder):
        _check_export(folder, precision)
        return source.load(), None
    if precision in _DTYPES:
        return source.load(precision), None
    digest = folder_digest(folder)
    if precision == "int8":
        place = _export(
            source.load(device="cpu"), digest, Candidate("openvino", "int8"), data, columns, Tolerance().rows
        )
        return load(place), None
    record = place_of(digest, task=task, options=options or {}, device=device)
    choice = read_choice(record)
    if choice is None:
        choice = _choose(source, digest, data, columns)
        write_choice(record, choice)
        log.info("%s: %s", choice.chosen, choice.why)
    return _open(source, choice), choice


@dataclasses.dataclass(frozen=True)
class _Source:
    """The call's checkpoint, to be loaded in one type of number or another."""

    name: str | Path
    task: str | None
    options: Mapping[str, Any] | None
    device: str

    def load(self, precision: str = "fp32", *, device: str | None = None) -> Pipeline:
        return load(
            self.name, task=self.task, options=self.options, device=device or self.device, dtype=_DTYPES[precision]
        )


def _check_export(folder: Path, precision: str) -> None:
    own = verify_export(folder).record.precision
    if precision not in ("auto", own):
        raise UsageError(
            "export-is-fixed",
            f"this checkpoint was exported in {own}, which a graph cannot change",
            where=str(folder),
            value=precision,
            fix=f"leave the precision out, or export its source again in {precision}",
        )


def _choose(source: _Source, digest: str, data: Any, columns: Mapping[str, str] | None) -> Choice:
    """Try every form of the checkpoint against torch in fp32."""
    reference = source.load()
    # Rows are read once: of a stream there is no second time.
    given = data and list(islice(read(data, fields=reference.task.fields, columns=columns), _ROWS))
    fewest = min(Tolerance().rows, len(given)) if given else Tolerance().rows
    rows = ExportRows.choose(reference, given, None, "fp32", Tolerance(rows=fewest)).gate
    ready, trials = {REFERENCE.name: reference}, [Trial(REFERENCE.name, None, None, 1.0, None)]
    for candidate in _candidates(reference.device):
        log.info("trying %s", candidate.name)
        try:
            if candidate.format == "torch":
                pipe = source.load(candidate.precision)
                tolerance = dataclasses.replace(default_tolerance("int8"), rows=fewest)  # both round
                parity = Gate.of(reference, rows, tolerance).measure(pipe)
                agreement, refused = parity.agreement, "; ".join(parity.failures) or None
            else:
                place = _export(reference, digest, candidate, given, None, fewest)
                agreement, refused = verify_export(place).record.parity["agreement"], None
                pipe = load(place)
        except WarmstartError as error:
            trials.append(Trial(candidate.name, None, None, None, error.what.splitlines()[0]))
            continue
        trials.append(Trial(candidate.name, None, None, agreement, refused))
        if refused is None:
            ready[candidate.name] = pipe
    timed = race({name: _predicting(pipe, rows[:_TIMED_ROWS]) for name, pipe in ready.items()})
    trials = [_timed(trial, timed.get(trial.name), len(rows[:_TIMED_ROWS])) for trial in trials]
    chosen, why = decide([trial for trial in trials if trial.refused is None])
    return Choice(
        chosen=chosen,
        why=why,
        trials=tuple(trials),
        checkpoint=digest,
        task=reference.task.name,
        options=options_of(reference.task),
        device=reference.device,
        machine=machine(),
        versions=versions(),
        rows=rows_digest(rows),
    )


def _candidates(device: str) -> list[Candidate]:
    """What is tried here beside the reference. One runtime of graphs is enough: OpenVINO's, if it is there."""
    found = [Candidate("torch", "bf16")]
    installed = [form for form, package in _RUNTIMES.items() if versions()[package]]
    if device == "cpu" and installed:
        found += [Candidate(installed[0], "fp32"), Candidate(installed[0], "int8")]
    return found


def _timed(trial: Trial, times: tuple[float, float] | None, rows: int) -> Trial:
    if times is None:
        return trial
    return dataclasses.replace(trial, rows_per_second=rows / times[0], speed=times[1])


def _predicting(pipe: Pipeline, rows: Sequence[Row]) -> Callable[[], object]:
    return lambda: list(pipe.predict_rows(rows))


def _export(
    source: Pipeline,
    digest: str,
    candidate: Candidate,
    data: Any,
    columns: Mapping[str, str] | None,
    fewest: int,
) -> Path:
    """The folder of an export in the cache, made if it is not there. Raises where there can be none."""
    if source.device != "cpu":
        raise UsageError(
            "runtime-for-cpu", "an exported graph runs on the CPU", fix='use device="cpu" to have it tried'
        )
    place = _place_of_export(digest, source.task.name, options_of(source.task), candidate.name)
    if place.is_dir():
        return place
    tolerance = dataclasses.replace(default_tolerance(candidate.precision), rows=fewest)
    try:
        export(
            source,
            place,
            format=candidate.format,
            precision=candidate.precision,
            data=data,
            columns=columns,
            tolerance=tolerance,
        )
    except UsageError as error:
        if error.code != "target-exists":  # another process made it meanwhile
            raise
    return place


def _place_of_export(digest: str, task: str, options: Mapping[str, Any], candidate: str) -> Path:
    key = json_digest([digest, task, dict(options), candidate, versions()])
    return cache_folder() / "exports" / key[:32]


def _open(source: _Source, choice: Choice) -> Pipeline:
    """The chosen pipeline; nothing of torch is built where an export was chosen."""
    form, precision = choice.chosen.split()
    if form == "torch":
        return source.load(precision)
    place = _place_of_export(choice.checkpoint, choice.task, choice.options, choice.chosen)
    if place.is_dir():
        return load(place)
    log.warning("%s was chosen, and is no longer in the cache: running %s", choice.chosen, REFERENCE.name)
    return source.load()
