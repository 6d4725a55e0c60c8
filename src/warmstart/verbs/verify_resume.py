"""Verify resume: kill a run at random moments, run the same again, and compare with one that was never interrupted."""

from __future__ import annotations

import dataclasses
import json
import logging
import random
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from warmstart.errors import TrainingError, UsageError
from warmstart.training.attempts import NAME as ATTEMPTS
from warmstart.training.attempts import Attempts
from warmstart.training.recipe import Recipe, read_recipe
from warmstart.training.run import CONFIG, PROVENANCE, RunDirectory
from warmstart.verbs.attempts import Attempter, KillIn, Outcome, opened
from warmstart.verbs.weights import differing_tensors

log = logging.getLogger("warmstart")

# Where a recipe does not say when to save: this many snapshots a run, so that most kills leave one.
SNAPSHOTS = 8
# A kill that comes after the end is tried again, earlier.
TRIES = 6


@dataclass(frozen=True)
class Kill:
    """One killed and resumed run. `problems`: what is not as in the uninterrupted run; empty if it is identical."""

    second: float  # of the process's life, at which it was killed
    step: int  # the last optimizer step that was recorded by then
    phase: str  # what it was doing: "step", "evaluation", "save", "prune", "finish", or "start" before the first step
    resumed_at: int  # the step after which the second attempt began
    resumed: bool  # whether that one went on from a snapshot; a run that had nothing but its tidying left does not
    problems: tuple[str, ...]

    @property
    def identical(self) -> bool:
        return not self.problems


@dataclass(frozen=True)
class Verification:
    """What came of all kills. `save_every`: the most steps that a resumed run may make again."""

    kills: tuple[Kill, ...]
    steps: int
    save_every: int
    seconds: float  # of the uninterrupted run
    seed: int

    @property
    def identical(self) -> int:
        return sum(kill.identical for kill in self.kills)

    @property
    def resumed(self) -> int:
        return sum(kill.resumed for kill in self.kills)

    @property
    def passed(self) -> bool:
        """All are identical, and one at least was a resume: a trainer that only starts over is identical too."""
        return self.identical == len(self.kills) and self.resumed > 0


def verify_resume(
    recipe: str | Path,
    *,
    kills: int = 3,
    settings: Iterable[str] = (),
    seed: int | None = None,
    report: Callable[[Kill], None] | None = None,
    begin: Callable[[int, float, int], None] | None = None,
) -> Verification:
    """Train a recipe once in peace, then `kills` times killed (SIGKILL) at a random moment after its first snapshot and
    resumed.

    All in a temporary place. Identical means: the same bytes of all weights; each optimizer step once in metrics.jsonl,
    with the same rows, loss, gradient norm and rate; the same evaluations; one more attempt, which made at most
    `save_every` steps again. So a trainer that merely starts over does not pass. `settings`: `key=value`, laid over the
    recipe's [train]. `seed` chooses the moments; None draws one. `report` is called after each kill, `begin` with
    (steps, seconds, save_every) after the run in peace.

        warmstart verify-resume --config run.toml --kills 3

    Raises UsageError for what is wrong with the recipe, "kills-number", "fork-needed", "nothing-to-resume" for a run
    that makes no snapshot; TrainingError "attempt-failed" if the run fails without being killed.
    """
    if kills < 1:
        raise UsageError("kills-number", "at least one kill is needed to prove anything", value=kills, fix="--kills 3")
    known = read_recipe(Path(recipe), settings)
    seed = random.SystemRandom().randrange(1 << 32) if seed is None else seed
    moments = random.Random(seed)
    done = []
    with tempfile.TemporaryDirectory(prefix="warmstart-verify-") as name, opened() as attempter:
        place = Path(name)
        seconds = _completed(attempter.attempt(_written(place / "peace.toml", known), place / "peace")).seconds
        steps = len(_steps(place / "peace"))
        every = known.config.save_every or max(1, steps // SNAPSHOTS)
        if every > steps:
            raise UsageError(
                "nothing-to-resume",
                f"the run makes no snapshot: it has {steps} steps, and save_every is {every}",
                value=every,
                fix=f"--set save_every={max(1, steps // SNAPSHOTS)}, or train for more steps",
            )
        if begin is not None:
            begin(steps, seconds, every)
        config = known.config.model_copy(update={"save_every": every})
        saving = _written(place / "killed.toml", dataclasses.replace(known, config=config))
        for number in range(kills):
            moment, output = _moment(moments, max(1, (steps - 1) // every), seconds), place / f"killed-{number}"
            kill = kill_and_resume(attempter, saving, output, moment, peace=place / "peace", save_every=every)
            shutil.rmtree(output, ignore_errors=True)
            done.append(kill)
            if report is not None:
                report(kill)
    return Verification(tuple(done), steps, every, seconds, seed)


def kill_and_resume(
    attempter: Attempter, recipe: Path, output: Path, moment: float | KillIn, *, peace: Path, save_every: int
) -> Kill:
    """Train into `output`, killed after so many seconds or in a phase, then again to the end; compare with `peace`."""
    for _ in range(TRIES):
        _hand_precision(peace, output)
        if isinstance(moment, KillIn):
            first = attempter.attempt(recipe, output, kill_in=moment)
        else:
            first = attempter.attempt(recipe, output, kill_after=moment)
        if first.killed:
            break
        _completed(first)  # the kill came too late
        shutil.rmtree(output)
        moment = _earlier(moment)
    else:
        return Kill(first.seconds, 0, "none", 0, False, ("the run always ended before it could be killed",))
    killed_at = len(_steps(output))
    finished = Attempts(output / ATTEMPTS).finished is not None
    second = attempter.attempt(recipe, output)
    problems = (
        judge(peace, output, killed_at=killed_at, save_every=save_every, finished=finished)
        if second.code == 0
        else [f"the resumed run failed: {_last_lines(second.log)}"]
    )
    starts = Attempts(output / ATTEMPTS).starts()
    resumed_at = starts[-1]["began_at"] if starts else 0
    return Kill(
        second=first.seconds,
        step=killed_at,
        phase=first.within[-1] if first.within else "step" if killed_at else "start",
        resumed_at=killed_at if finished else resumed_at,
        resumed=resumed_at > 0 and not finished,
        problems=tuple(problems),
    )


def _hand_precision(peace: Path, output: Path) -> None:
    """Whether bf16 or fp16 pays on a CPU is for the clock to say: a run that is to be killed takes it from the record
    of the run in peace, as a resumed one takes it from its own."""
    if "precision" in RunDirectory(peace).read_provenance():
        output.mkdir()
        for name in (CONFIG, PROVENANCE):
            shutil.copy(peace / name, output / name)


def _moment(moments: random.Random, snapshots: int, seconds: float) -> KillIn:
    """After one of so many snapshots in a run of so many seconds, and before the next: pruning follows on each."""
    return KillIn("prune", moments.randint(1, snapshots), moments.uniform(0, seconds / snapshots))


def _earlier(moment: float | KillIn) -> float | KillIn:
    if isinstance(moment, float):
        return moment * 0.8
    return dataclasses.replace(moment, count=max(1, moment.count - 1), after=moment.after / 2)


def judge(peace: Path, resumed: Path, *, killed_at: int, save_every: int, finished: bool = False) -> list[str]:
    """What in a resumed run directory is not as in one of the same run in peace; sentences, none if all is.

    `killed_at`: the steps that were recorded when it was killed; `finished`: whether it had noted its end by then.
    """
    return [
        *_judge_attempts(Attempts(resumed / ATTEMPTS), killed_at, save_every, finished),
        *_judge_steps(_steps(peace), _steps(resumed)),
        *_judge_evaluations(_evaluations(peace), _evaluations(resumed)),
        *(f"weights: {difference}" for difference in differing_tensors(peace / "model", resumed / "model")),
    ]


def _judge_attempts(attempts: Attempts, killed_at: int, save_every: int, finished: bool) -> list[str]:
    starts = attempts.starts()
    if finished:
        return [] if len(starts) == 1 else [f"the run was finished, and was attempted again: {len(starts)} starts"]
    if killed_at and len(starts) != 2:
        return [f"attempts.jsonl has {len(starts)} starts, 2 expected: the run started over"]
    redone = killed_at - (starts[-1]["began_at"] if starts else 0)
    if redone > save_every:
        return [f"{redone} steps were made again, at most {save_every} expected: the run started over"]
    return []


def _judge_steps(peace: list[Mapping[str, Any]], resumed: list[Mapping[str, Any]]) -> list[str]:
    if [line["step"] for line in resumed] != list(range(1, len(peace) + 1)):
        return [
            f"metrics.jsonl does not have each of the {len(peace)} steps once: it has {len(resumed)} lines of steps"
        ]
    for before, now in zip(peace, resumed, strict=True):
        if (before["rows"], before["tokens"]) != (now["rows"], now["tokens"]):
            return [f"order: step {before['step']} saw other rows"]
        for name in ("loss", "grad_norm", "learning_rate", "epoch"):
            if before[name] != now[name]:
                return [f"step {before['step']}: {name} is {now[name]!r}, {before[name]!r} without a kill"]
    return []


def _judge_evaluations(peace: list[Mapping[str, Any]], resumed: list[Mapping[str, Any]]) -> list[str]:
    if [line["step"] for line in peace] != [line["step"] for line in resumed]:
        return [f"evaluations: {len(resumed)} are recorded, {len(peace)} without a kill"]
    for before, now in zip(peace, resumed, strict=True):
        if before != now:
            return [f"evaluations: that after step {before['step']} differs"]
    return []


def _written(path: Path, recipe: Recipe) -> Path:
    path.write_text(recipe.text(), encoding="utf-8")
    return path


def _completed(outcome: Outcome) -> Outcome:
    if outcome.code != 0:
        raise TrainingError(
            "attempt-failed",
            f"the run fails without being killed: {_last_lines(outcome.log)}",
            value=f"exit code {outcome.code}",
            fix="run it by warmstart train --config first, until it trains",
        )
    return outcome


def _lines(run: Path) -> list[Mapping[str, Any]]:
    """The whole lines of metrics.jsonl."""
    path = run / "metrics.jsonl"
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    return [json.loads(line) for line in text.split("\n")[:-1]]


def _steps(run: Path) -> list[Mapping[str, Any]]:
    return [line for line in _lines(run) if "validation" not in line]


def _evaluations(run: Path) -> list[Mapping[str, Any]]:
    return [line for line in _lines(run) if "validation" in line]


def _last_lines(text: str) -> str:
    return " / ".join(text.strip().splitlines()[-4:]) or "it said nothing"
