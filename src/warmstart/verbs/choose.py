"""Load a checkpoint in a precision; or in what runs it fastest here, by measuring, and remember that."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from warmstart.checkpoints import cache_folder, find, is_export, verify_export
from warmstart.checkpoints.exported import FORMAT
from warmstart.errors import DataError, UsageError, WarmstartError, did_you_mean
from warmstart.pipeline import Pipeline
from warmstart.provenance import folder_digest, json_digest, rows_digest
from warmstart.rows import Field, Row, read
from warmstart.tasks import find_task
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
from warmstart.verbs.export_rows import ExportRows, reviews_fit
from warmstart.verbs.load import load, options_of
from warmstart.verbs.parity import FP32, Gate

log = logging.getLogger("warmstart")

PRECISIONS = ("fp32", "bf16", "int8", "auto")
_RUNTIMES = {"openvino": "openvino", "onnx": "onnxruntime"}  # format → package, the quicker one first
_DTYPES = {"fp32": "float32", "bf16": "bfloat16"}
_ROWS = 1536  # of a person's rows, as many are looked at
_FEWEST = FP32.rows  # fewer judge nothing
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
    versions; `warmstart inspect` shows it. It is None where nothing was to be chosen. Fewer than 256 rows judge
    nothing: it is then as if none were given, int8 of anything but a starter is not tried, and the choice says so and
    is made again when there are enough.

        pipe, choice = ws.load_for("starter", precision="auto")
        choice.chosen, choice.why

    Raises UsageError "precision-unknown", "export-is-fixed" for a folder that is an export of another precision,
    DataError "parity-rows-too-few" where the reviews say nothing about the task, and what `ws.load` and `ws.export`
    raise.
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
        pipe = source.load(device="cpu")
        given = _given(pipe.task.fields, data, columns)
        place = _export(pipe, digest, Candidate("openvino", "int8"), given)
        if _too_few(given):
            log.warning("fewer than %d rows judge nothing: movie reviews calibrated and judged int8", _FEWEST)
        return load(place), None
    record = place_of(digest, task=task, options=options or {}, device=device)
    choice, given = read_choice(record), None
    if choice is not None and data is not None and not choice.own_rows:
        given = data = _given(find_task(choice.task).fields, data, columns)
        if not _too_few(given):
            choice = None  # it was made without rows like these
    if choice is None:
        choice = _choose(source, digest, data, None if given is not None else columns)
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


def _given(fields: tuple[Field, ...], data: Any, columns: Mapping[str, str] | None) -> list[Row] | None:
    """The first rows of a person's. They are read once: of a stream there is no second time."""
    return None if data is None else list(islice(read(data, fields=fields, columns=columns), _ROWS))


def _too_few(given: Sequence[Row] | None) -> bool:
    return given is not None and 0 < len(given) < _FEWEST  # of none at all, `ExportRows.choose` says so


def _judging(pipe: Pipeline, precision: str, given: list[Row] | None) -> list[Row] | None:
    """The rows to judge by: those given; None, which are the reviews, in the place of too few."""
    if given is None or not _too_few(given):
        return given
    if not reviews_fit(pipe, precision):
        raise DataError(
            "parity-rows-too-few",
            f"{precision} is judged on {_FEWEST} rows at least, and there are {len(given)}",
            value=len(given),
            fix="give more rows; precision fp32 and bf16 run in torch and ask for none",
        )
    return None


def _choose(source: _Source, digest: str, data: Any, columns: Mapping[str, str] | None) -> Choice:
    """Try every form of the checkpoint against torch in fp32."""
    reference = source.load()
    given = _given(reference.task.fields, data, columns)
    judging = _judging(reference, "fp32", given)
    rows = ExportRows.choose(reference, judging, None, "fp32", FP32).gate
    ready, trials = {REFERENCE.name: reference}, [Trial(REFERENCE.name, None, None, 1.0, None)]
    place: dict[str, Path] = {}
    for candidate in _candidates(reference.device):
        log.info("trying %s", candidate.name)
        try:
            if candidate.format == "torch":
                pipe = source.load(candidate.precision)
                parity = Gate.of(reference, rows, default_tolerance("int8")).measure(pipe)  # both round
                agreement, refused = parity.agreement, "; ".join(parity.failures) or None
            else:
                place[candidate.name] = _export(reference, digest, candidate, given)
                agreement, refused = verify_export(place[candidate.name]).record.parity["agreement"], None
                pipe = load(place[candidate.name])
        except WarmstartError as error:
            trials.append(Trial(candidate.name, None, None, None, error.what.splitlines()[0]))
            continue
        trials.append(Trial(candidate.name, None, None, agreement, refused))
        if refused is None:
            ready[candidate.name] = pipe
    timed = race({name: _predicting(pipe, rows[:_TIMED_ROWS]) for name, pipe in ready.items()})
    trials = [_timed(trial, timed.get(trial.name), len(rows[:_TIMED_ROWS])) for trial in trials]
    chosen, why = decide([trial for trial in trials if trial.refused is None])
    if _too_few(given):
        why += f"; judged by movie reviews, because the rows given are fewer than {_FEWEST}"
    return Choice(
        chosen=chosen,
        why=why,
        export=place[chosen].name if chosen in place else None,
        trials=tuple(trials),
        checkpoint=digest,
        task=reference.task.name,
        options=options_of(reference.task),
        device=reference.device,
        machine=machine(),
        versions=versions(),
        rows=rows_digest(rows),
        own_rows=judging is not None,
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


def _export(source: Pipeline, digest: str, candidate: Candidate, given: list[Row] | None) -> Path:
    """The folder of an export in the cache, made if it is not there. Raises where there can be none."""
    if source.device != "cpu":
        raise UsageError(
            "runtime-for-cpu", "an exported graph runs on the CPU", fix='use device="cpu" to have it tried'
        )
    data, tolerance = _judging(source, candidate.precision, given), default_tolerance(candidate.precision)
    # A folder is found again only by who asks for the same rows and no other gate.
    key = json_digest(
        [
            digest,
            source.task.name,
            options_of(source.task),
            candidate.name,
            versions(),
            FORMAT,
            None if data is None else rows_digest(data),
            dataclasses.asdict(tolerance),
        ]
    )
    place = _exports() / key[:32]
    if place.is_dir():
        return place
    try:
        export(source, place, format=candidate.format, precision=candidate.precision, data=data, tolerance=tolerance)
    except UsageError as error:
        if error.code != "target-exists":  # another process made it meanwhile
            raise
    return place


def _exports() -> Path:
    return cache_folder() / "exports"


def _open(source: _Source, choice: Choice) -> Pipeline:
    """The chosen pipeline; nothing of torch is built where an export was chosen."""
    if choice.export is None:
        return source.load(choice.chosen.split()[1])
    if (_exports() / choice.export).is_dir():
        return load(_exports() / choice.export)
    log.warning("%s was chosen, and is no longer in the cache: running %s", choice.chosen, REFERENCE.name)
    return source.load()
