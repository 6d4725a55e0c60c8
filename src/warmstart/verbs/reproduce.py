"""Reproduce: a run's directory in, the same run again, and whether it came out the same."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.parquet as pq

from warmstart.errors import UsageError
from warmstart.metrics import mcnemar
from warmstart.tasks import find_task
from warmstart.training.config import TrainConfig, plain
from warmstart.training.lineage import Difference, differences, identity, numerics_of
from warmstart.training.memory import Cut
from warmstart.training.precision import recorded
from warmstart.training.recipe import Recipe, read_recipe
from warmstart.training.run import CONFIG, RunDirectory
from warmstart.training.threads import threads
from warmstart.verbs.fitting import Progress
from warmstart.verbs.preparing import prepare_run
from warmstart.verbs.train import train
from warmstart.verbs.weights import differing_tensors, weights_digest

Answer = Literal["bit-identical", "statistically equal", "different"]

# Two runs are called different if a paired test says so at this level, and the losses are further apart than rounding.
LEVEL = 0.05
ROUNDING = 1e-3  # of the mean loss


@dataclass(frozen=True)
class Reproduction:
    """`differences`: between what the run was made from and what is here now. `reasons`: what the answer rests on."""

    answer: Answer
    reasons: tuple[str, ...]
    differences: tuple[Difference, ...]


def reproduce(
    run: str | Path,
    *,
    data: Any = None,
    validation: Any = None,
    output: str | Path | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Reproduction:
    """Train again what `run` was made from, and compare the weights, else the predictions on the validation rows.

    Compared first are data, checkpoint, task, versions, threads and processor. Other data or another checkpoint is an
    answer already; then nothing is trained. The recorded number of threads is used. "statistically equal": the weights
    differ, and neither the paired losses (normal test) nor the paired hits (exact McNemar test) do at 5 %. `data` and
    `validation`: where they are now; needed for a run whose rows came from no file. `output`: where the new run is
    kept; None keeps none.

        warmstart reproduce runs/a

    Raises UsageError "run-not-found", "run-unfinished", "recipe-without-data", and what `ws.train` raises.
    """
    directory = RunDirectory(Path(run))
    recipe, provenance = _of(directory, data, validation)
    found = _differences(recipe, provenance, data, validation)
    made_of = [each for each in found if each.name.startswith(("checkpoint", "data.", "task.", "train."))]
    if provenance.get("lineage"):
        forced = tuple(f"after step {e['after_step']} it went on with something else" for e in provenance["lineage"])
        return Reproduction(
            "different", ("the run was forced on, and its recipe is not all of it", *forced), tuple(found)
        )
    if made_of:
        return Reproduction("different", tuple(map(str, made_of)), tuple(found))
    used = _precision(provenance, recipe.config)
    # What was measured to be slower then is not measured again; what was faster is, and may not be so here.
    config = recipe.config if used != "fp32" else recipe.config.model_copy(update={"precision": used})
    place = tempfile.TemporaryDirectory(prefix="warmstart-reproduce-") if output is None else nullcontext(str(output))
    with place as folder, threads(provenance.get("numerics", {}).get("threads")):
        again = Path(folder) / "run" if output is None else Path(folder)
        train(
            recipe.model or "",
            recipe.data if data is None else data,
            output=again,
            task=recipe.task,
            validation=recipe.validation if validation is None else validation,
            config=config,
            columns=recipe.columns,
            options=recipe.options,
            progress=progress,
        )
        now = _precision(RunDirectory(again).read_provenance(), config)
        if now != used:
            found.append(Difference("the precision that was faster", used, now))
        answer = compared(directory, RunDirectory(again), tuple(found))
        cuts = () if answer.answer == "bit-identical" else directory.read_cuts()
        return replace(answer, reasons=(*answer.reasons, *map(_of_cut, cuts)))


def compared(one: RunDirectory, other: RunDirectory, found: tuple[Difference, ...]) -> Reproduction:
    """The answer for two finished runs; `found`: how what they were made from differs."""
    if weights_digest(one.model) == weights_digest(other.model):
        return Reproduction("bit-identical", (f"all weights: sha256 {weights_digest(one.model)}",), found)
    environment = [str(difference) for difference in found] or [
        "data, checkpoint, versions, threads and processor are the same, so far as they are recorded"
    ]
    weights = [f"weights: {difference}" for difference in differing_tensors(one.model, other.model)]
    if not (one.predictions.exists() and other.predictions.exists()):
        return Reproduction("different", (*environment, *weights, "no validation rows tell how much it matters"), found)
    judged, equal = _paired(_columns(one.predictions), _columns(other.predictions))
    return Reproduction("statistically equal" if equal else "different", (*judged, *environment, *weights), found)


def _precision(provenance: Mapping[str, Any], config: TrainConfig) -> str:
    """What a run computed in: on a CPU not always what was asked for."""
    measured = recorded(provenance, config)
    return config.precision if measured is None else measured.used


def _of_cut(cut: Cut) -> str:
    return f"memory ran out in step {cut.from_step} of the run: from there on micro-batches were cut into {cut.parts}"


def _of(directory: RunDirectory, data: Any, validation: Any) -> tuple[Recipe, Mapping[str, Any]]:
    if not (directory.path / CONFIG).is_file():
        raise UsageError(
            "run-not-found",
            "there is no run here",
            where=str(directory.path),
            fix="give the folder that train -o wrote",
        )
    provenance = directory.read_provenance()
    if directory.attempts.finished is None:
        raise UsageError(
            "run-unfinished",
            "the run is not finished, so there is no result to reproduce",
            where=str(directory.path),
            fix="finish it first: the same train command goes on where it was interrupted",
        )
    recipe = read_recipe(directory.path / CONFIG)
    if "optimizer" in provenance:
        raise UsageError(
            "recipe-without-optimizer",
            "the run had an optimizer of its own, a function that no file holds",
            where=str(directory.path),
            value=provenance["optimizer"].get("class"),
            fix="call ws.train again with the same optimizer= and another output, and compare the two",
        )
    validated = provenance.get("data", {}).get("validation", {}).get("rows", 0) > 0
    for name, known, given in (("data", recipe.data, data), ("validation", recipe.validation, validation)):
        if known is None and given is None and (name == "data" or validated):
            raise UsageError(
                "recipe-without-data",
                f"the run's {name} rows came from no file that could be read again",
                where=str(directory.path / CONFIG),
                value=name,
                fix=f"give them: --{name} FILE, or {name}= in Python",
            )
    return recipe, provenance


def _differences(recipe: Recipe, provenance: Mapping[str, Any], data: Any, validation: Any) -> list[Difference]:
    prepared = prepare_run(
        recipe.model or "",
        recipe.data if data is None else data,
        kind=None if recipe.task is None else find_task(recipe.task),
        validation=recipe.validation if validation is None else validation,
        config=recipe.config,
        columns=recipe.columns,
        options=recipe.options,
        name="reproduce",
    )
    settings = plain(recipe.config)
    before = {**identity(settings, provenance), **numerics_of(provenance)}
    now = {**identity(plain(prepared.config), prepared.provenance), **numerics_of(prepared.provenance)}
    # Threads are set to what they were.
    return [each for each in differences(before, now) if each.name != "numerics.threads"]


def _columns(path: Path) -> dict[str, Any]:
    table = pq.read_table(path, columns=[n for n in ("loss", "correct") if n in pq.read_schema(path).names])
    return {name: np.asarray(table.column(name).to_pylist()) for name in table.column_names}


def _paired(one: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[list[str], bool]:
    """What paired tests say of two runs' predictions for the same rows, and whether they call them equal."""
    change = other["loss"] - one["loss"]
    mean, spread = float(change.mean()), float(change.std(ddof=1)) if len(change) > 1 else 0.0
    z = abs(mean) / (spread / math.sqrt(len(change))) if spread else math.inf if mean else 0.0
    p = math.erfc(z / math.sqrt(2))
    near = abs(mean) <= ROUNDING * float(np.abs(one["loss"]).mean())
    said = [f"mean loss on {len(change):,} validation rows: {mean:+.3g}, p = {p:.3f}"]
    equal = p >= LEVEL or near
    if "correct" in one and "correct" in other:
        lost = int(np.sum(one["correct"] & ~other["correct"]))
        won = int(np.sum(~one["correct"] & other["correct"]))
        p = mcnemar(lost, won)
        said.append(f"{lost} rows right before and wrong now, {won} the other way, p = {p:.3f}")
        equal = equal and p >= LEVEL
    return said, equal
