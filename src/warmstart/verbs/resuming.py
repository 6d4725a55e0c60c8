"""Beginning in a run directory: anew, from the newest verified snapshot, or not at all because it is finished."""

from __future__ import annotations

import dataclasses
import logging
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from warmstart.errors import CheckpointError, UsageError, WarmstartError
from warmstart.training.config import plain
from warmstart.training.lineage import Difference, as_records, differences, identity, numerics_of, refused
from warmstart.training.recipe import Recipe, read_recipe
from warmstart.training.run import CONFIG, RunDirectory
from warmstart.training.selection import Selection
from warmstart.training.snapshot_folder import check_committed, proving_damage
from warmstart.training.snapshots import Snapshot, newest_verified

log = logging.getLogger("warmstart")


@dataclass
class Start:
    """How a run begins. `finished`: the last line of a finished one; `threads`: those it has to use, to keep its bits.

    `reached` is the last step that was made, for the record of how the attempt ends.
    """

    attempt: int
    snapshot: Snapshot | None = None
    threads: int | None = None
    finished: Mapping[str, Any] | None = None
    reached: int = field(default=0)


def begin(directory: RunDirectory, recipe: Recipe, provenance: Mapping[str, Any], *, force: bool) -> Start:
    """Write down what a new run is made from; or compare it with what a begun one was, and find its newest snapshot.

    Raises UsageError "resume-differs" where something else was asked for than the run was begun with, "run-finished"
    where that was forced upon a finished run, "run-damaged"; WarmstartError "run-unwritable"; CheckpointError
    "best-damaged"; TrainingError "snapshot-unread".
    """
    if not directory.check_usable():
        directory.write_config(recipe.text())
        directory.write_provenance(provenance)
        return Start(directory.note_start(0))
    directory.sweep()
    before = directory.read_provenance()
    stored = read_recipe(directory.path / CONFIG)
    settings = plain(recipe.config)
    found = differences(identity(plain(stored.config), before), identity(settings, provenance))
    if found and not force:
        raise refused(found, str(directory.path))
    finished = directory.attempts.finished
    if finished is not None:
        if found:
            raise _is_finished(directory, found)
        return Start(0, finished=finished)
    digits = differences(numerics_of(before), numerics_of(provenance))
    threads = before.get("numerics", {}).get("threads")
    _say(found, digits, threads)
    snapshot, aside = newest_verified(directory.checkpoints)
    # Other validation rows make what was chosen by the old ones worthless.
    rechosen = any(difference.name.startswith("data.validation") for difference in found)
    if snapshot is not None and snapshot.state.selection.best is not None:
        lost = [] if rechosen else _lost_best(directory, snapshot, force=force)
        digits += lost
        if lost or rechosen:
            log.warning("the best weights are chosen anew, among those that are evaluated from here on")
            snapshot = dataclasses.replace(
                snapshot, state=dataclasses.replace(snapshot.state, selection=Selection(None))
            )
    step = 0 if snapshot is None else snapshot.state.step.step
    digits = [difference for difference in digits if difference.name != "numerics.threads"]
    attempt = directory.note_start(step, set_aside=aside, differences=as_records([*found, *digits]))
    if not directory.cut_metrics(0 if snapshot is None else snapshot.state.metrics_bytes):
        log.warning("metrics.jsonl is shorter than it was: lines before step %d are lost; the training is not", step)
    if found or digits:
        _record(directory, before, provenance if found else before, step, [*found, *digits])
    if stored.config != recipe.config or found:
        directory.write_config(recipe.text())
    if snapshot is not None:
        log.info("resuming after step %d", step)
    else:
        log.info("an earlier attempt left no snapshot: starting at the first step")
    return Start(attempt, snapshot, threads if isinstance(threads, int) else None, reached=step)


@contextmanager
def recorded(directory: RunDirectory, start: Start) -> Iterator[None]:
    """Write down how the attempt ends, if it does so otherwise than by being finished or killed."""
    try:
        yield
    except BaseException as error:
        how, code = _ending(error)
        with suppress(WarmstartError, OSError):  # the error under way tells more than that it could not be noted
            if directory.attempts.finished is None:  # a run that is finished stays so
                directory.note_end(start.attempt, how, start.reached, code=code)
        raise


def _ending(error: BaseException) -> tuple[Any, str | None]:
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", None
    if isinstance(error, SystemExit) and error.code == 128 + signal.SIGTERM:
        return "terminated", None
    return "failed", error.code if isinstance(error, WarmstartError) else type(error).__name__


def _lost_best(directory: RunDirectory, snapshot: Snapshot, *, force: bool) -> list[Difference]:
    """The difference that the best weights make which a snapshot knows of, if they are damaged and that is forced.

    Raises CheckpointError "best-damaged"; TrainingError "snapshot-unread" if they cannot be read now, by force too.
    """
    step = snapshot.state.selection.best_step
    best = directory.best_checkpoint(step)
    try:
        with proving_damage(best):
            check_committed(best)
    except CheckpointError as error:
        if force:
            return [Difference("best_step", step, None)]
        raise CheckpointError(
            "best-damaged",
            f"{snapshot.path.name} is whole, and the best weights it knows of, those after step {step}, are "
            f"{f'damaged: {error.what}' if best.exists() else 'gone'}; without them the run may end with others",
            where=str(best),
            fix="put the folder back; or give --force (force=True), which is recorded: the best are then chosen among "
            f"those evaluated from here on; or move {best.parent.name}/step-… away, and the run starts over",
        ) from None
    return []


def _say(found: list[Difference], digits: list[Difference], threads: Any) -> None:
    for difference in found:
        log.warning("going on with something else than the run was begun with: %s", difference)
    for difference in digits:
        if difference.name == "numerics.threads" and isinstance(threads, int):
            log.info("using %d threads, as the run was begun with", threads)
        else:
            log.warning("the last digits may differ from those of a run that was not interrupted: %s", difference)


def _record(
    directory: RunDirectory,
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    step: int,
    found: list[Difference],
) -> None:
    """The lineage of a run names every step from which on it was made from something else."""
    time = datetime.now(UTC).isoformat(timespec="seconds")
    entry = {"after_step": step, "time": time, "differences": as_records(found)}
    noted = {name: before[name] for name in ("cuts", "precision") if name in before}
    directory.write_provenance({**after, **noted, "lineage": [*before.get("lineage", []), entry]})


def _is_finished(directory: RunDirectory, found: list[Difference]) -> UsageError:
    return UsageError(
        "run-finished",
        "the run is finished, and keeps no state from which it could go on with something else",
        where=str(directory.path),
        value=", ".join(difference.name for difference in found),
        fix=f"choose another -o; to train its result further, give it as the checkpoint: -m {directory.path}",
    )
