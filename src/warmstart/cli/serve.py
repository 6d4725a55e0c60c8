"""`warmstart serve`: checkpoints over HTTP, until SIGTERM or Ctrl+C."""

from __future__ import annotations

import importlib.util
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from warmstart.cli.loading import open_pipeline
from warmstart.cli.options import device_option, option_option, precision_option, task_option
from warmstart.errors import UsageError

_NEEDS = ("starlette", "uvicorn", "orjson", "prometheus_client")


@click.command("serve")
@click.option(
    "-m",
    "--model",
    "models",
    multiple=True,
    metavar="[NAME=]MODEL",
    help="A folder, run, export, hub id or starter name; may be given several times.  [default: starter]",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0: any free one.")
@click.option("--allow-host", "allowed_hosts", multiple=True, metavar="NAME", help="A name clients use for the server.")
@click.option("--api-key-file", help="A file with one API key a line; without it everybody may ask.")
@click.option(
    "--access-log/--no-access-log", default=True, show_default=True, help="A line of JSON a request, on stderr."
)
@task_option
@option_option
@device_option
@precision_option
def command(
    models: tuple[str, ...],
    host: str,
    port: int,
    allowed_hosts: tuple[str, ...],
    api_key_file: str | None,
    access_log: bool,
    task: str | None,
    options: dict[str, Any],
    device: str,
    precision: str | None,
) -> None:
    """Serve one checkpoint or several over HTTP: our own protocol, Hugging Face's, OpenAI's embeddings and
    text-embeddings-inference's, and a page to try them at /.

    \b
    warmstart serve -m starter --precision int8
    warmstart serve -m reviews=runs/a -m starter-encoder --api-key-file keys.txt
    """
    absent = [name for name in _NEEDS if name not in sys.modules and importlib.util.find_spec(name) is None]
    if absent:
        raise UsageError(
            "extra-missing",
            f"serving needs {', '.join(absent)}",
            value=absent,
            fix="pip install warmstart[serve]",
        )
    from warmstart.serving.access import make_access, read_keys
    from warmstart.serving.server import serve

    keys = () if api_key_file is None else read_keys(api_key_file)
    make_access(host, allowed_hosts=allowed_hosts, keys=keys)  # what is wrong with it is said before anything is loaded
    named = _named(models or ("starter",))
    pipelines = {
        name: open_pipeline(checkpoint, precision=precision, task=task, options=options, device=device)
        for name, checkpoint in named.items()
    }
    with _access_log(access_log):
        serve(pipelines, host=host, port=port, api_keys=keys, allowed_hosts=allowed_hosts)


def _named(models: tuple[str, ...]) -> dict[str, str]:
    """Checkpoints by the names under which they are served. Raises UsageError "model-name", "model-name-twice"."""
    from warmstart.serving.models import check_name
    from warmstart.serving.server import served_name

    named: dict[str, str] = {}
    for given in models:
        name, equals, checkpoint = given.partition("=")
        if not equals or Path(given).exists():  # a folder's name, too, may hold a =
            name, checkpoint = served_name(given), given
        check_name(name)
        if name in named:
            raise UsageError(
                "model-name-twice",
                "two models would be served under one name",
                value=name,
                fix="name one of them: -m NAME=CHECKPOINT",
            )
        named[name] = checkpoint
    return named


@contextmanager
def _access_log(shown: bool) -> Iterator[None]:
    """The access log on stderr, a line of plain JSON a request; or nothing of it."""
    logger = logging.getLogger("warmstart.access")
    handler = logging.StreamHandler(sys.stderr) if shown else logging.NullHandler()
    before = logger.handlers, logger.level, logger.propagate
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.INFO if shown else logging.CRITICAL)
    try:
        yield
    finally:
        logger.handlers, logger.propagate = before[0], before[2]
        logger.setLevel(before[1])
