"""K82, K85, K87, F88 to F90: faults and kills at every file operation of a save leave a verified snapshot.

K83 and K84 are in tests/verbs: test_kills.py, test_resume.py.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import warmstart as ws
from support.file_faults import Operations, killed_at, operations_of, unwatched, watched
from support.power_cut import Disk
from warmstart.checkpoints import load_weights
from warmstart.checkpoints.commit import sweep
from warmstart.errors import CheckpointError
from warmstart.training.loop import Step
from warmstart.training.memory import Cut
from warmstart.training.run import RunDirectory
from warmstart.training.selection import Selection
from warmstart.training.snapshots import State, newest_verified, save_snapshot

# In `make nightly` a process is killed at every operation, in `make test` at some.
EVERY_KILL = "WARMSTART_KILLS" in os.environ

pytestmark = pytest.mark.skipif(os.name != "posix", reason="forks")


class Work:
    """A run directory with a snapshot of step 1, and the save of step 2, which then prunes the older one."""

    def __init__(self, checkpoint: Path, folder: Path) -> None:
        self.pipe = ws.load(checkpoint)
        self.directory = RunDirectory(folder / "run")
        self.directory.create()
        self.optimizer = torch.optim.AdamW(self.pipe.model.parameters(), fused=True)
        self._step(1)
        self.save(1)
        self.first = shutil.copytree(self.directory.checkpoints, folder / "first")
        self._step(2)
        self.expected = dict.fromkeys((1, 2))

    def _step(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.pipe.model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        self.optimizer.step()

    def save(self, step: int) -> None:
        made = Step(step, step / 10, 0.5, 1e-3, 1.0, 10, 2, 0.1)
        state = State(made, 0, Selection(None), 0, self.optimizer.state_dict(), {"last_epoch": step})
        target = self.directory.step_checkpoint(step)
        save_snapshot(target, self.pipe.model, self.pipe.tokenizer, state)

    def save_and_prune(self) -> None:
        self.save(2)
        self.directory.prune(1)

    def reset(self) -> None:
        shutil.rmtree(self.directory.checkpoints)
        shutil.copytree(self.first, self.directory.checkpoints)

    def left(self) -> list[str]:
        """All that stands among the snapshots, hidden names too."""
        return sorted(path.name for path in self.directory.checkpoints.iterdir())

    def check(self) -> int:
        """A verified snapshot is there, whose weights and optimizer are those of its step; returns the step."""
        sweep(self.directory.checkpoints)
        found, rejected = newest_verified(self.directory.checkpoints)
        assert found is not None and rejected == []
        left = {path.name for path in self.directory.checkpoints.iterdir()}
        assert left <= {"step-000001", "step-000002"} and found.path.name in left
        step = found.state.step.step
        assert found.state.optimizer["state"][0]["step"].item() == step
        return step


@pytest.fixture(scope="module")
def work(tiny: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Work:
    return Work(tiny("bert"), tmp_path_factory.mktemp("work"))


def _operations(work: Work) -> list[tuple[str, str, str]]:
    work.reset()
    return operations_of(work.save_and_prune)


# What a disk or the system may answer.
FAILURES = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EIO,
    errno.EROFS,
    errno.EACCES,
    errno.EINTR,
    errno.ETXTBSY,
)


@pytest.mark.parametrize("part", range(4))
@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: errno.errorcode[failure])
def test_f88_f89_a_failure_at_any_file_operation_leaves_the_snapshot_before(
    work: Work, failure: int, part: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error says what, where, and what to do; nothing half done is left. A part: every fourth operation."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # no power goes here: what is not faulty need not wait
    made = _operations(work)
    assert work.check() == 2 and len(made) > 50  # the healthy twin
    outcomes = set()
    for number in range(1 + part, len(made) + 1, 4):
        work.reset()

        def fail(count: int, name: str, at: int = number) -> None:
            if count == at:
                raise OSError(failure, os.strerror(failure))

        started = time.perf_counter()
        error: ws.WarmstartError | None = None
        try:
            with watched(Operations(fail)):
                work.save_and_prune()
        except ws.WarmstartError as caught:
            error = caught
        assert time.perf_counter() - started < 2
        left = work.left()
        if error is not None:
            assert error.code in ("save-failed", "run-unwritable"), error
            assert os.strerror(failure) in error.what and len(error.fix) > 10
            assert str(error.where).startswith(str(work.directory.path)), error
            assert ("MB are free" in error.what) == (
                error.code == "save-failed" and failure in (errno.ENOSPC, errno.EDQUOT)
            )
            outcomes.add(error.code)
            if error.code == "save-failed":
                assert left == ["step-000001"], (made[number - 1], left)  # before anything sweeps
        # What failed to remove the old snapshot has saved the new one.
        assert work.check() == (1 if error is not None and error.code == "save-failed" else 2)
    assert outcomes == {"save-failed", "run-unwritable"}


def test_f90_a_flush_that_fails_is_no_commit(work: Work) -> None:
    made = _operations(work)
    flushes = [number for number, (name, _, _) in enumerate(made, start=1) if name == "fsync"]
    assert len(flushes) > 8
    for number in flushes:
        work.reset()

        def fail(count: int, name: str, at: int = number) -> None:
            if count == at:
                raise OSError(errno.EIO, "Input/output error")

        with pytest.raises(CheckpointError) as caught, watched(Operations(fail)):
            work.save_and_prune()
        assert caught.value.code == "save-failed" and work.left() == ["step-000001"]  # before anything sweeps
        assert str(caught.value.where) == str(work.directory.step_checkpoint(2)) and work.check() == 1


def test_k82_k85_what_stands_at_any_file_operation_has_a_verified_snapshot(work: Work, tmp_path: Path) -> None:
    """A copy of the folder before each operation: what a kill there leaves."""
    work.reset()
    folder = work.directory.checkpoints

    def copy(count: int, name: str) -> None:
        with unwatched():
            _copy_of_what_changes(folder, tmp_path / str(count))

    with watched(Operations(copy)):
        work.save_and_prune()
    found = []
    for number in range(1, len(list(tmp_path.iterdir())) + 1):
        shutil.rmtree(folder)
        (tmp_path / str(number)).rename(folder)
        found.append(work.check())
    assert len(found) > 50
    assert found == sorted(found) and set(found) == {1, 2}  # the old one up to the rename, the new one from there


def _copy_of_what_changes(folder: Path, copy: Path) -> None:
    """Beside it a thread writes the weights: a file listed may have its final name before it is copied. Then again."""
    for _ in range(100):
        try:
            shutil.copytree(folder, copy)
            return
        except (shutil.Error, FileNotFoundError):
            shutil.rmtree(copy)
    raise AssertionError("the folder never stood still")


@pytest.mark.parametrize("part", range(4 if EVERY_KILL else 1))
def test_k82_a_real_kill_leaves_a_verified_snapshot(work: Work, part: int) -> None:
    count = len(_operations(work))
    found = []
    for number in range(1 + part, count + 1, 4 if EVERY_KILL else max(1, count // 12)):
        work.reset()
        assert killed_at(number, work.save_and_prune)
        found.append(work.check())
    assert found == sorted(found) and set(found) <= {1, 2} and found[0] == 1


def test_k87_nothing_is_relied_on_before_it_is_on_the_disk(work: Work) -> None:
    """Power may go at any moment, and take with it what was not flushed: so content before names, new before old."""
    made = _operations(work)
    names = [name for name, _, _ in made]
    commit = next(
        i for i, (name, _, target) in enumerate(made) if name == "rename" and target.endswith("checkpoints/step-000002")
    )
    temporary = made[commit][1]
    written = {path for name, path, _ in made if name in ("write", "open", "mkdir") and path.startswith(temporary)}
    for path in written:
        touched = max(i for i, (name, at, _) in enumerate(made[:commit]) if at == path and name != "fsync")
        assert any(name == "fsync" and at == path for name, at, _ in made[touched + 1 : commit]), (
            f"{path} is renamed into place before it is flushed"
        )
    manifest = f"{temporary}/MANIFEST.json"
    others = [i for i, (name, at, _) in enumerate(made) if name == "fsync" and at in written - {manifest, temporary}]
    assert manifest in written
    files = [i for i in others if not any(path.startswith(f"{made[i][1]}/") for path in written)]
    assert max(files) < next(i for i, (name, at, _) in enumerate(made) if name == "open" and at == manifest)
    parent = str(work.directory.checkpoints)
    after = [i for i, (name, at, _) in enumerate(made) if name == "fsync" and at == parent and i > commit]
    removal = next(i for i, (name, at, _) in enumerate(made) if name == "rename" and at.endswith("/step-000001"))
    assert after and after[0] < removal, "the old snapshot goes before the new one is sure to stay"
    assert "unlink" in names[removal:]


def test_k87_a_power_cut_anywhere_in_a_run_loses_no_snapshot_and_no_record(work: Work, tmp_path: Path) -> None:
    """From the making of its folder on: what was not flushed is lost, all of it or any one name without the others."""
    root = tmp_path / "new"
    directory = RunDirectory(root / "runs" / "run")
    seen: set[Any] = set()
    cuts: list[tuple[int, int | None]] = []
    done = 0  # the last step whose snapshot was said to be saved

    def each(disk: Disk) -> None:
        for state in map(disk.state, disk.left()):
            # How much of a folder is there that has no name yet makes no difference: it is swept.
            key = (done, frozenset(entry for entry in state if "/.step-" not in str(Path(entry[0]).parent)))
            if key in seen:
                continue
            seen.add(key)
            disk.write(state, place := tmp_path / "cut")
            cuts.append((done, _resumed_at(RunDirectory(place / "runs" / "run"))))
            shutil.rmtree(place)

    root.mkdir()
    disk = Disk(str(root), each)
    with watched(disk.watch()):
        directory.create()
        directory.write_config("[train]\n")
        directory.write_provenance({"a": 1})
        attempt = directory.note_start(0)
        for step in (1, 2):
            made = Step(step, step / 10, 0.5, 1e-3, 1.0, 10, 2, 0.1)
            directory.log_step(made)
            state = State(
                made, 0, Selection(None), directory.metrics_size(), work.optimizer.state_dict(), {"last_epoch": step}
            )
            save_snapshot(directory.step_checkpoint(step), work.pipe.model, work.pipe.tokenizer, state)
            done = step
            directory.prune(1)
            if step == 1:
                directory.note_cut(attempt, Cut(2, 2))
    assert len(cuts) > 20 and {done for done, _ in cuts} == {0, 1, 2}
    for least, found in cuts:
        assert found is None if least == 0 and found is None else found is not None and found >= least, (least, found)


def _resumed_at(directory: RunDirectory) -> int | None:
    """The step from which the same call of train would go on; None if the run begins anew, with nothing lost."""
    if not directory.path.exists() or not directory.check_usable():
        return None
    directory.sweep()
    assert directory.read_provenance()["a"] == 1 and (directory.path / "config.toml").read_text() == "[train]\n"
    found, rejected = newest_verified(directory.checkpoints)
    assert rejected == []
    if found is None:
        return 0
    assert len(directory.attempts.starts()) == 1
    assert directory.metrics.stat().st_size >= found.state.metrics_bytes > 0
    assert directory.read_cuts() == [Cut(2, 2)] or found.state.step.step < 2
    return found.state.step.step


@pytest.mark.parametrize("lost", ["provenance.json", "config.toml", "both"])
def test_k87_a_run_whose_record_is_lost_is_never_said_to_be_removed(work: Work, tmp_path: Path, lost: str) -> None:
    directory = RunDirectory(tmp_path / "run")
    directory.create()
    assert not directory.check_usable()  # the healthy twins: a folder just made, and a run with its record
    directory.write_config("[train]\n")
    directory.write_provenance({})
    shutil.copytree(work.first / "step-000001", directory.step_checkpoint(1))
    assert directory.check_usable()
    for name in ("provenance.json", "config.toml") if lost == "both" else (lost,):
        (directory.path / name).unlink()
    with pytest.raises(ws.UsageError) as caught:
        directory.check_usable()
    assert caught.value.code == "run-damaged" and str(directory.path) == caught.value.where.source
    assert "remove" not in str(caught.value) and "back" in caught.value.fix
    assert (lost if lost != "both" else "provenance.json and config.toml") in caught.value.what


def test_f88_a_real_file_system_that_refuses_is_an_error_of_ours(work: Work) -> None:
    """A limit on the size of files, which the system enforces beneath Python: safetensors' own writer meets it."""
    import resource

    work.reset()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
            try:
                work.save(2)
            except CheckpointError as error:
                code = 7 if error.code == "save-failed" and "arge" in error.what else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert work.check() == 1
    work.save(2)  # the healthy twin
    assert work.check() == 2


def test_weights_and_optimizer_of_a_snapshot_are_those_that_were_saved(work: Work) -> None:
    work.reset()
    work.save(2)
    found, _ = newest_verified(work.directory.checkpoints)
    assert found is not None
    fresh = ws.load(work.directory.step_checkpoint(1))
    load_weights(fresh.model, found.path)
    held = work.pipe.model.state_dict()
    assert all(torch.equal(tensor, held[name]) for name, tensor in fresh.model.state_dict().items())
    saved, state = found.state.optimizer["state"], work.optimizer.state_dict()["state"]
    assert saved.keys() == state.keys()
    assert all(torch.equal(saved[i][name], state[i][name]) for i in state for name in state[i])
    assert found.state.optimizer["param_groups"] == work.optimizer.state_dict()["param_groups"]


@pytest.mark.parametrize("missing", ["rename", "fsync of folders", "both"])
def test_f91_a_file_system_that_renames_no_folder_has_whole_snapshots_by_their_manifest(
    work: Work, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    real_rename, real_fsync = os.rename, os.fsync

    def rename(source: Any, target: Any) -> None:
        if Path(source).is_dir():
            raise OSError(errno.ENOTSUP, "Operation not supported", source)
        real_rename(source, target)

    def fsync(descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").is_dir():
            raise OSError(errno.EINVAL, "Invalid argument")
        real_fsync(descriptor)

    work.reset()
    if missing != "fsync of folders":
        monkeypatch.setattr(os, "rename", rename)
    if missing != "rename":
        monkeypatch.setattr(os, "fsync", fsync)
    work.save_and_prune()
    assert work.check() == 2 and [p.name for p in work.directory.checkpoints.iterdir()] == ["step-000002"]
    work.save(2)  # over one of the same name
    assert work.check() == 2
    work.reset()
    work.save(2)
    state = work.directory.step_checkpoint(2) / "training_state" / "state.json"
    state.write_text(state.read_text() + " ")
    never_whole = "no manifest, so it was never whole"  # set aside by renaming it, or, where that cannot be, for good
    for reason in ("is not the file that was saved", never_whole if missing != "fsync of folders" else None):
        found, rejected = newest_verified(work.directory.checkpoints)
        assert found is not None and found.state.step.step == 1
        assert [entry["name"] for entry in rejected] == ([] if reason is None else ["step-000002"])
        assert all(reason in entry["reason"] for entry in rejected if reason)


def test_f91_k85_a_kill_while_files_are_copied_to_their_place_leaves_the_snapshot_before(work: Work) -> None:
    def rename(source: Any, target: Any) -> None:
        raise OSError(errno.ENOTSUP, "Operation not supported", source)

    def save() -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "rename", rename)
            work.save(2)

    work.reset()
    copied = [n for n, (_, path, _) in enumerate(operations_of(save), 1) if "/step-000002/" in path]
    assert len(copied) > 8
    for number in copied if EVERY_KILL else copied[:: len(copied) // 4]:
        work.reset()
        assert killed_at(number, save)
        sweep(work.directory.checkpoints)
        found, rejected = newest_verified(work.directory.checkpoints)
        assert found is not None and found.state.step.step in (1, 2)
        assert found.state.step.step == 2 or [entry["name"] for entry in rejected] == ["step-000002"]
