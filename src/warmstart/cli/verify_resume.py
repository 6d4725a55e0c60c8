"""`warmstart verify-resume`: proves on a person's own recipe that a killed run loses nothing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from warmstart.cli import console

if TYPE_CHECKING:
    from warmstart.verbs.verify_resume import Kill


@click.command("verify-resume")
@click.option("--config", "config_path", required=True, type=click.Path(path_type=Path), help="The recipe, as in TOML.")
@click.option("--kills", default=3, show_default=True, help="How many runs are killed and resumed.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="A training setting, e.g. max_steps=50.")
@click.option("--seed", type=int, help="Chooses the moments; drawn otherwise, and told.")
@click.option("--json", "as_json", is_flag=True, help="One JSON line at the end, on stdout.")
@click.pass_context
def command(
    context: click.Context, config_path: Path, kills: int, settings: tuple[str, ...], seed: int | None, as_json: bool
) -> None:
    """Kill a run at random moments after its first snapshot, resume it, and compare with the run in peace.

    \b
    warmstart verify-resume --config run.toml --kills 5

    Exit code 0 if all are identical to the last bit and one at least was resumed, else 1.
    """
    from warmstart.verbs.verify_resume import verify_resume

    def begin(steps: int, seconds: float, every: int) -> None:
        console.say(f"in peace: {steps} steps, {seconds:.1f} s; snapshots every {every} steps")

    def report(kill: Kill) -> None:
        outcome = "identical" if kill.identical else "; ".join(kill.problems)
        console.say(f"killed after step {kill.step} ({kill.phase}), resumed after step {kill.resumed_at}: {outcome}")

    found = verify_resume(config_path, kills=kills, settings=settings, seed=seed, report=report, begin=begin)
    if as_json:
        console.emit(
            {
                "identical": found.identical,
                "resumed": found.resumed,
                "kills": [
                    {"step": k.step, "phase": k.phase, "resumed_at": k.resumed_at, "problems": list(k.problems)}
                    for k in found.kills
                ],
                "steps": found.steps,
                "save_every": found.save_every,
                "seed": found.seed,
            }
        )
    else:
        console.show(f"identical: {found.identical}/{len(found.kills)}")
    if not found.passed:
        if not found.resumed:
            console.say("no run went on from a snapshot, so nothing is proved: ask for more --kills")
        console.say(f"the same moments again: --seed {found.seed}")
        context.exit(1)
