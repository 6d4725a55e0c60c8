"""The `warmstart` command: finds the command's file, and turns every outcome into an exit code.

0 ok · 1 failure · 2 usage · 3 data · 4 checkpoint · 5 partial · 130 interrupt · 141 the reader of our output left
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence

import click

import warmstart
from warmstart.cli import console
from warmstart.cli.streams import usable_streams
from warmstart.errors import UsageError, WarmstartError, did_you_mean, is_out_of_memory

# Each command's file is imported when it is asked for, so that --help stays quick.
COMMANDS: Mapping[str, str] = {
    "predict": "Predict for texts, a file or a pipe.",
    "chat": "Talk with a checkpoint in the terminal.",
    "train": "Fine-tune a checkpoint on labelled rows.",
    "evaluate": "Judge a checkpoint on labelled rows.",
    "compare": "Compare two results on the same rows, and say whether chance would do that.",
    "export": "Write a checkpoint as a graph that predicts without torch.",
    "serve": "Answer over HTTP, with several protocols on one port.",
    "bench": "Measure a checkpoint on your rows, beside what you would use without us.",
    "search": "Find the texts nearest to a query among embeddings.",
    "verify-resume": "Kill and resume a recipe's run, and prove that nothing is lost.",
    "replay": "Compute a step again that was not finite, and name its rows and parameters.",
    "reproduce": "Run a run again, and say whether it came out the same.",
    "inspect": "Show what a checkpoint is, without building it.",
    "get": "Fetch a checkpoint into the cache.",
    "tasks": "List the tasks, their row fields and predictions.",
    "doctor": "Check this machine and installation.",
    "demo": "Fine-tune, evaluate, save, reload and predict on real reviews.",
}


class _Commands(click.Group):
    """A group whose commands are files of this folder."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"warmstart.cli.{cmd_name.replace('-', '_')}")
        command: click.Command = module.command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in COMMANDS:
            raise UsageError(
                "command-unknown",
                f"there is no command {args[0]!r}",
                value=args[0],
                fix=did_you_mean(args[0], COMMANDS),
            )
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog='Begin with: warmstart predict "I love LangChain!"',
)
@click.version_option(warmstart.__version__, prog_name="warmstart")
def root() -> None:
    """From a pretrained Hugging Face checkpoint to predictions, fine-tuning and evaluation."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code. No traceback for a person's fault."""
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    with usable_streams(), console.listening():
        try:
            return _outcome(sys.argv[1:] if arguments is None else list(arguments))
        except BrokenPipeError:
            return 141


def _outcome(arguments: list[str]) -> int:
    # Not click's own `main`: it swallows the code of an `Exit`, and turns a reader that left into code 1.
    try:
        with root.make_context("warmstart", arguments) as context:
            root.invoke(context)
        sys.stdout.flush()
    except WarmstartError as error:
        console.error(str(error))
        return error.exit_code
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        console.say(error.format_message())
        return error.exit_code
    except click.ClickException as error:
        console.error(error.format_message())
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        console.error("interrupted")
        return 130
    except BrokenPipeError:
        raise
    except (MemoryError, RuntimeError, OSError) as error:
        if is_out_of_memory(error):
            told = f": {error}" if str(error) else ""
            console.error(f"not enough memory{told}\n  next: free some, or take a smaller checkpoint")
        elif isinstance(error, OSError):
            place = "" if error.filename is None else f"\n  at:   {error.filename}"
            console.error(f"{error.strerror or error}{place}\n  next: check free space, permissions and the path")
        else:
            raise
        return 1
    return 0
