"""One training at a time in a directory, and no lock that outlives its owner."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from warmstart.errors import UsageError, WarmstartError
from warmstart.training.lock import LOCK, OWNER, locked

HOLD = """
import sys, time
from pathlib import Path
from warmstart.training.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_x93_a_second_training_is_refused_and_told_who_holds_the_directory(
    tmp_path: Path, holder: subprocess.Popen[str]
) -> None:
    started = time.monotonic()
    with pytest.raises(UsageError) as caught, locked(tmp_path):
        pass
    assert time.monotonic() - started < 2
    assert caught.value.code == "run-locked" and caught.value.value == holder.pid
    assert f"process {holder.pid} on {os.uname().nodename}, since 20" in caught.value.what
    assert caught.value.where.source == str(tmp_path)
    assert json.loads((tmp_path / OWNER).read_text())["pid"] == holder.pid  # the refusal left it alone


def test_x93_a_killed_owner_holds_nothing(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    holder.kill()
    holder.wait()
    assert (tmp_path / OWNER).exists()
    started = time.monotonic()
    with locked(tmp_path):
        assert json.loads((tmp_path / OWNER).read_text())["pid"] == os.getpid()
    assert time.monotonic() - started < 2
    assert not (tmp_path / OWNER).exists()


def test_workers_that_outlive_a_killed_owner_are_waited_for(tmp_path: Path) -> None:
    """They have the lock by inheritance, and go within seconds."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    code = HOLD.replace("sleep(60)", "sleep(0.7)")
    worker = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert worker.stdout is not None and worker.stdout.readline() == "held\n"
    owner = json.loads((tmp_path / OWNER).read_text())
    (tmp_path / OWNER).write_text(json.dumps({**owner, "pid": gone.pid}))
    with locked(tmp_path):
        assert worker.wait(1) == 0
    worker.stdout.close()


def test_threads_of_one_process_exclude_each_other_too(tmp_path: Path) -> None:
    refused: list[str] = []

    def second() -> None:
        try:
            with locked(tmp_path):
                pass
        except UsageError as error:
            refused.append(error.code)

    with locked(tmp_path):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    assert refused == ["run-locked"]
    second()
    assert refused == ["run-locked"] and (tmp_path / LOCK).exists()


def test_an_owner_of_another_host_is_never_taken_for_dead(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    owner = json.loads((tmp_path / OWNER).read_text())
    (tmp_path / OWNER).write_text(json.dumps({**owner, "host": "elsewhere", "pid": 2**22 + 1}))
    with pytest.raises(UsageError) as caught, locked(tmp_path):
        pass
    assert "on elsewhere" in caught.value.what


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP])
def test_f91_a_file_system_that_gives_no_lock_is_told_with_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(WarmstartError) as caught, locked(tmp_path):
        pytest.fail("it is not held")
    assert caught.value.code == "run-not-lockable" and os.strerror(number) in caught.value.what
    assert caught.value.where.source == str(tmp_path) and "local disk" in caught.value.fix
    monkeypatch.undo()
    with locked(tmp_path):
        pass


def test_f91_where_no_lock_is_known_a_file_stands_in_and_it_is_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unknown(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", unknown)
    with locked(tmp_path):
        assert "knows no locks" in caplog.text and json.loads((tmp_path / OWNER).read_text())["pid"] == os.getpid()
        with pytest.raises(UsageError) as caught, locked(tmp_path):
            pytest.fail("it is held")
        assert caught.value.code == "run-locked"
    with locked(tmp_path):
        pass


def test_f88_a_full_disk_that_takes_no_owner_is_told_and_holds_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, *_: object, **__: object) -> None:
        path.touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(WarmstartError) as caught, locked(tmp_path):
        pytest.fail("it is not held")
    assert caught.value.code == "run-not-lockable" and "No space left on device" in caught.value.what
    monkeypatch.undo()
    assert not (tmp_path / OWNER).exists()
    with locked(tmp_path):
        pass
