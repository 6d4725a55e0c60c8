"""F92: a cache that cannot be written, or is full, is run without; each beside a healthy twin."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from support.file_faults import Operations, watched
from warmstart.checkpoints import found
from warmstart.checkpoints.cache import fill_once
from warmstart.cli.main import run
from warmstart.errors import CheckpointError
from warmstart.verbs.choice import Choice, read_choice, write_choice

# What a disk says, and the operation at which it says it: a folder nobody may write to, a disk that is full.
FAULTS = [(errno.EACCES, "mkdir"), (errno.EROFS, "mkdir"), (errno.ENOSPC, "write"), (errno.EDQUOT, "open")]


def _refusing(folder: Path, number: int, at: str) -> Operations:
    """Every operation `at` below `folder` fails."""

    def refuse(count: int, name: str) -> None:
        path = operations.made[-1][1]
        if name == at and path.startswith(str(folder)):
            raise OSError(number, os.strerror(number), path)

    operations = Operations(refuse)
    return operations


def _fill(folder: Path) -> None:
    with (folder / "a.txt").open("w") as file:
        file.write("a")


def _said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


@pytest.mark.parametrize(("number", "at"), FAULTS)
def test_f92_an_entry_is_made_in_a_temporary_folder(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, number: int, at: str
) -> None:
    target = tmp_path / "cache" / "checkpoints" / f"entry-{number}"
    with watched(_refusing(tmp_path, number, at)):
        made = fill_once(target, _fill)
        again = fill_once(target, _fill)
    assert made == again and not made.is_relative_to(tmp_path) and (made / "a.txt").read_text() == "a"
    assert [os.strerror(number) in line and target.name in line for line in _said(caplog)] == [True]  # once
    assert not target.exists() and not list(target.parent.glob(".*.tmp-*"))
    healthy = fill_once(target, _fill)
    assert healthy == target and (healthy / "a.txt").read_text() == "a" and len(_said(caplog)) == 1


def test_f92_where_no_disk_takes_an_entry_it_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught, watched(_refusing(Path("/"), errno.ENOSPC, "write")):
        fill_once(tmp_path / "cache" / "entry-full", _fill)
    assert caught.value.code == "cache-unwritable" and os.strerror(errno.ENOSPC) in caught.value.what
    assert str(caught.value.where) == str(tmp_path / "cache") and "WARMSTART_CACHE" in caught.value.fix


def test_f92_what_cannot_be_made_at_all_is_not_tried_twice(tmp_path: Path) -> None:
    calls: list[Path] = []

    def fail(folder: Path) -> None:
        calls.append(folder)
        raise CheckpointError("carrier-unavailable", "no network", fix="connect")

    with pytest.raises(CheckpointError) as caught:
        fill_once(tmp_path / "cache" / "entry-none", fail)
    assert caught.value.code == "carrier-unavailable" and len(calls) == 1


@pytest.mark.parametrize(("number", "at"), FAULTS)
def test_f92_a_choice_that_cannot_be_remembered_holds(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, number: int, at: str
) -> None:
    choice = Choice("torch fp32", "why", None, (), "digest", "task", {}, "cpu", {}, {}, {}, own_rows=False)
    path = tmp_path / "cache" / "choices" / "a.json"
    with watched(_refusing(tmp_path, number, at)):
        write_choice(path, choice)
    assert [os.strerror(number) in line and "not remembered" in line for line in _said(caplog)] == [True]
    assert read_choice(path) is None and not list(tmp_path.rglob(".a.json*"))
    write_choice(path, choice)
    assert read_choice(path) == choice and len(_said(caplog)) == 1


def test_f92_get_keeps_what_it_fetches_or_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tiny: Callable[..., Path]
) -> None:
    monkeypatch.setenv("WARMSTART_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(found, "starter", lambda cache: tiny("bert"))
    assert run(["get", "starter"]) == 4
    assert "cache-unwritable" in capsys.readouterr().err
    monkeypatch.setenv("WARMSTART_CACHE", str(tiny("bert").parent))
    assert run(["get", "starter"]) == 0
    assert capsys.readouterr().out.strip() == str(tiny("bert"))
