"""K83, K85: runs that are killed (SIGKILL) and resumed have the weights of a run in peace, to the last bit.

Each of the eight cases of a pairwise cover is killed once inside a phase, which the process's own record of phases
proves, and WARMSTART_KILLS times at a random moment of its life: once in `make test`, 20 times in `make nightly`, where
so is each of the four recipes.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import random
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest

from support.kills import COVER, RECIPES, SAVE_EVERY, Case
from warmstart.training.attempts import NAME as ATTEMPTS
from warmstart.training.attempts import Attempts
from warmstart.verbs.attempts import Attempter, KillIn
from warmstart.verbs.verify_resume import Kill, kill_and_resume
from warmstart.verbs.weights import weights_digest

RANDOM_KILLS = int(os.environ.get("WARMSTART_KILLS", "1"))  # of a case
NIGHTLY = "WARMSTART_KILLS" in os.environ
# Where the one kill of each case lands: begun for the n-th time, so many seconds ago.
PHASES = (
    KillIn("save", 2, 0.008),
    KillIn("save", 3, 0.002),
    KillIn("evaluation", 3, 0.002),
    KillIn("prune", 3, 0.0),
    KillIn("finish", 1, 0.01),
    KillIn("evaluation", 2, 0.0),
    KillIn("save", 3, 0.004),
    KillIn("save", 2, 0.004),
)
TRIES = 5  # a phase of milliseconds may be over before the kill comes


def test_kills_land_in_a_save_in_pruning_and_in_evaluation() -> None:
    """Each case below is killed until the record of its process says that it was in its phase."""
    assert {phase.phase for phase in PHASES} >= {"save", "prune", "evaluation", "finish"} and len(PHASES) == len(COVER)


def test_the_cover_has_every_pair() -> None:
    names = [field.name for field in fields(Case)]
    for one, other in itertools.combinations(names, 2):
        values = [{getattr(case, name) for case in COVER} for name in (one, other)]
        seen = {(getattr(case, one), getattr(case, other)) for case in COVER}
        assert seen == set(itertools.product(*values)), (one, other)


@pytest.mark.parametrize(("case", "phase"), [*zip(COVER, PHASES, strict=True)], ids=map(str, COVER))
def test_k83_k85_a_killed_run_ends_with_the_weights_of_a_run_in_peace(
    case: Case, phase: KillIn, attempter: Attempter, tiny: Callable[..., Path], tmp_path: Path
) -> None:
    recipe = case.recipe(tmp_path, tiny)
    peace = tmp_path / "peace"
    calm = attempter.attempt(recipe, peace)
    assert calm.code == 0, calm.log
    if case.validation == "stop":
        total = 8 * math.ceil(4 / case.accumulate)  # epochs of four batches
        assert json.loads((peace / "attempts.jsonl").read_text().splitlines()[-1])["step"] < total  # it stopped early

    def killed(name: str, moment: float | KillIn) -> Kill:
        kill = kill_and_resume(attempter, recipe, tmp_path / name, moment, peace=peace, save_every=SAVE_EVERY)
        assert kill.problems == (), kill
        assert kill.resumed_at > 0 or kill.step <= SAVE_EVERY  # a real resume
        _assert_counted(tmp_path / name, kill)
        assert weights_digest(tmp_path / name / "model") == weights_digest(peace / "model")
        return kill

    landed = [killed("in-phase-0", phase)]
    while landed[-1].phase != phase.phase and len(landed) < TRIES:
        landed.append(killed(f"in-phase-{len(landed)}", phase))
    assert landed[-1].phase == phase.phase, landed

    rng = random.Random(str(case))
    for number in range(RANDOM_KILLS):
        killed(f"random-{number}", rng.uniform(0, calm.seconds))


def _assert_counted(output: Path, kill: Kill) -> None:
    """The attempts log says how many steps were made again, which are at most those since the last snapshot."""
    starts = Attempts(output / ATTEMPTS).starts()
    assert [line["redone"] for line in starts] == [0, kill.step - kill.resumed_at][: len(starts)]
    assert 0 <= kill.step - kill.resumed_at <= SAVE_EVERY


@pytest.mark.parametrize("name", RECIPES)
def test_k83_a_killed_run_with_recipes_ends_with_the_weights_of_a_run_in_peace(
    name: str, attempter: Attempter, tiny: Callable[..., Path], tmp_path: Path
) -> None:
    recipe = Case("random", "plain", 1, 0, "on").recipe(tmp_path, tiny, RECIPES[name])
    calm = attempter.attempt(recipe, tmp_path / "peace")
    assert calm.code == 0, calm.log
    rng = random.Random(name)
    moments = [KillIn("save", 4, 0.002), *(rng.uniform(0, calm.seconds) for _ in range(RANDOM_KILLS * NIGHTLY))]
    for number, moment in enumerate(moments):
        output = tmp_path / f"killed-{number}"
        kill = kill_and_resume(attempter, recipe, output, moment, peace=tmp_path / "peace", save_every=SAVE_EVERY)
        assert kill.problems == (), kill
        assert number or kill.resumed_at > 0  # a real resume
        _assert_counted(output, kill)
        assert weights_digest(output / "model") == weights_digest(tmp_path / "peace" / "model")


def test_k83_a_run_that_is_killed_again_and_again_ends_with_the_weights_of_a_run_in_peace(
    attempter: Attempter, tiny: Callable[..., Path], tmp_path: Path
) -> None:
    recipe = COVER[0].recipe(tmp_path, tiny)
    assert attempter.attempt(recipe, tmp_path / "peace").code == 0
    for after in (0.0, 0.004, 0.008):  # in the second save of each attempt: the first one counts
        assert attempter.attempt(recipe, tmp_path / "killed", kill_in=KillIn("save", 2, after)).killed
    done = attempter.attempt(recipe, tmp_path / "killed")
    assert done.code == 0, done.log
    assert weights_digest(tmp_path / "killed" / "model") == weights_digest(tmp_path / "peace" / "model")
    lines = [json.loads(line) for line in (tmp_path / "killed" / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if "validation" not in line]
    assert steps == list(range(1, len(steps) + 1))
    starts = [json.loads(line) for line in (tmp_path / "killed" / "attempts.jsonl").read_text().splitlines()]
    assert [line["attempt"] for line in starts] == [1, 2, 3, 4, 4] and starts[-1]["ended"] == "finished"
    began = [line["began_at"] for line in starts[:-1]]
    assert began == sorted(began) and began[1] == 2 and began[-1] >= 6
    # Each was killed in the save after its fourth step, of which the snapshot was there already, or that of its second.
    assert [line["redone"] for line in starts[:-1]] == [
        0,
        *(before + 4 - now for before, now in itertools.pairwise(began)),
    ]
