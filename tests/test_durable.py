"""Files that appear whole; and what a kill left is told from what is being written."""

from __future__ import annotations

import errno
import os
import signal
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.file_faults import Operations, operations_of, watched
from warmstart import durable
from warmstart.durable import held, hidden_name, make_held, remove_left, temporary_folder, write_file

pytestmark = pytest.mark.skipif(os.name != "posix", reason="locks of POSIX")


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_written_and_replaced(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    write_file(target, b"one")
    assert target.read_bytes() == b"one"
    write_file(target, b"")
    assert target.read_bytes() == b"" and _names(tmp_path) == ["a.json"]
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(target.stat().st_mode) == 0o666 & ~umask


def test_content_is_on_the_disk_before_the_name_and_the_name_at_the_end(tmp_path: Path) -> None:
    made = operations_of(lambda: write_file(tmp_path / "a", b"x"))
    kinds = [name for name, _, _ in made if name != "unlink"]
    assert kinds == ["open", "write", "fsync", "replace", "fsync"]
    assert made[2][1] == made[0][1] == made[3][1] and made[3][2] == str(tmp_path / "a") and made[4][1] == str(tmp_path)


@pytest.mark.parametrize("number", range(1, 6))
def test_any_failing_operation_leaves_one_whole_file(tmp_path: Path, number: int) -> None:
    target = tmp_path / "a"
    write_file(target, b"old")

    def fail(count: int, name: str) -> None:
        if count == number:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    with pytest.raises(OSError, match="Input/output"), watched(Operations(fail)):
        write_file(target, b"new")
    assert target.read_bytes() == (b"old" if number < 5 else b"new") and _names(tmp_path) == ["a"]


@contextmanager
def _writer(target: Path) -> Iterator[int]:
    """Another process that is just writing `target`; it is killed at the end of the block."""
    ready, told = os.pipe()
    child = os.fork()
    if child == 0:
        make_held(target, Path.mkdir)
        os.write(told, b"x")
        signal.pause()
    os.read(ready, 1)
    os.close(ready)
    os.close(told)
    try:
        yield child
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_what_is_being_written_stays_and_what_a_kill_left_goes(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with _writer(target):
        [working] = _names(tmp_path)
        remove_left(target)
        assert _names(tmp_path) == [working]
    assert _names(tmp_path) == [working]
    remove_left(tmp_path / "other")
    remove_left(tmp_path / "ou")
    assert _names(tmp_path) == [working]
    remove_left(target)
    assert _names(tmp_path) == []


def test_what_only_looks_alike_stays(tmp_path: Path) -> None:
    kept = [".out.tmp-0123", "out.tmp-0123456789ab", ".out.tmp-0123456789ag", ".out.html.tmp-0123456789ab"]
    for name in kept:
        (tmp_path / name).write_text("mine")
    (tmp_path / ".out.tmp-000000000000").symlink_to(tmp_path / kept[0])
    os.mkfifo(tmp_path / ".out.tmp-111111111111")  # to open it would wait for a writer
    remove_left(tmp_path / "out")
    assert _names(tmp_path) == sorted([*kept, ".out.tmp-000000000000"])
    assert (tmp_path / kept[0]).read_text() == "mine"


def test_a_folder_that_cannot_be_listed_is_no_trouble(tmp_path: Path) -> None:
    remove_left(tmp_path / "absent" / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_another_process_took_for_left_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, seen = durable._locked, []

    def late(path: Path, *, wait: bool) -> int | None:
        seen.append(path)
        if len(seen) == 1:
            path.rmdir()
        return real(path, wait=wait)

    monkeypatch.setattr(durable, "_locked", late)
    with held(tmp_path / "out", Path.mkdir) as folder:
        assert folder.is_dir() and folder == seen[1] != seen[0]
    assert _names(tmp_path) == []


def test_a_block_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), held(tmp_path / "out", Path.mkdir) as folder:
        (folder / "half").write_text("x")
        raise KeyboardInterrupt
    assert _names(tmp_path) == []


@pytest.mark.parametrize("name", ["a" * 255, "é" * 127, "語" * 85])
def test_a_name_of_255_bytes_has_room_for_its_hidden_one(tmp_path: Path, name: str) -> None:
    target = tmp_path / name
    assert len(os.fsencode(hidden_name(target).name)) <= 255
    write_file(target, b"x")
    hidden_name(target).touch()
    write_file(target, b"y")
    assert target.read_bytes() == b"y" and _names(tmp_path) == [name]


def test_a_temporary_folder_is_this_users_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / ".mine.tmp-0123456789ab").mkdir()
    with temporary_folder("mine") as folder:
        assert _names(tmp_path) == [folder.name] != [".mine.tmp-0123456789ab"]
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert _names(tmp_path) == []
