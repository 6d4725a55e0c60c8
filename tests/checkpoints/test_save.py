"""Saving: an ordinary Hugging Face folder, committed whole or not at all."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from support.damage import refused
from support.models import FAMILIES
from warmstart.checkpoints import commit as module
from warmstart.checkpoints import commit_folder, load_model, load_tokenizer, save_model, verify
from warmstart.checkpoints.manifest import check_manifest
from warmstart.durable import held
from warmstart.errors import CheckpointError, UsageError


@pytest.mark.parametrize("family", FAMILIES)
def test_plain_transformers_loads_what_is_saved(tiny: Callable[..., Path], tmp_path: Path, family: str) -> None:
    verified = verify(tiny(family))
    model = load_model(verified, auto_class="AutoModelForSequenceClassification")
    tokenizer = load_tokenizer(verified)
    tokenizer(["a", "a b c"], padding=True, truncation=True, max_length=4)  # leaves its mark in the Rust object
    extra = {"README.md": b"# card", "warmstart.json": b'{"task": "text-classification"}'}
    folder = save_model(model, tokenizer, tmp_path / "saved", extra=extra)
    plain = AutoModelForSequenceClassification.from_pretrained(folder)
    assert type(plain) is type(model)
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in model.state_dict().items())
    text = "I love this film, it is wonderful and warm. " * 3
    again = AutoTokenizer.from_pretrained(folder)
    assert again(text)["input_ids"] == AutoTokenizer.from_pretrained(verified.folder)(text)["input_ids"]
    saved = json.loads((folder / "tokenizer.json").read_text())
    assert (saved["truncation"], saved["padding"]) == (None, None)
    assert again.pad_token is not None
    result = verify(folder)
    assert (result.task, result.labels, result.findings) == ("text-classification", ("NEGATIVE", "POSITIVE"), ())


def test_no_pickle_no_machine_path_and_ordinary_permissions(tiny: Callable[..., Path], tmp_path: Path) -> None:
    verified = verify(tiny("bert"))
    model = load_model(verified, auto_class="AutoModelForSequenceClassification")
    folder = save_model(model, load_tokenizer(verified), tmp_path / "saved", extra={})
    names = {path.name for path in folder.iterdir()}
    assert names == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "MANIFEST.json"}
    umask = os.umask(0)
    os.umask(umask)
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o666 & ~umask}
    for path in folder.glob("*.json"):
        assert str(verified.folder) not in path.read_text()


def test_extra_files_need_plain_names(tiny: Callable[..., Path], tmp_path: Path) -> None:
    verified = verify(tiny("bert"))
    model = load_model(verified, auto_class="AutoModelForSequenceClassification")
    with pytest.raises(UsageError) as caught:
        save_model(model, None, tmp_path / "saved", extra={"../evil": b""})
    assert caught.value.code == "extra-name"
    assert not (tmp_path / "saved").exists()


def _write(text: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "sub").mkdir()
        (folder / "a.txt").write_text(text)
        (folder / "sub" / "b.txt").write_text(text)

    return write


def test_commit_and_replace(tmp_path: Path) -> None:
    target = tmp_path / "new" / "out"
    assert commit_folder(target, _write("one")) == target
    assert check_manifest(target) == ()
    with pytest.raises(UsageError) as caught:
        commit_folder(target, _write("two"))
    assert caught.value.code == "target-exists"
    assert (target / "a.txt").read_text() == "one"
    commit_folder(target, _write("two"), replace=True)
    assert (target / "sub" / "b.txt").read_text() == "two"
    assert [path.name for path in target.parent.iterdir()] == ["out"]  # nothing temporary stays


def test_what_a_killed_commit_left_goes_with_the_next_of_that_name_and_no_other(tmp_path: Path) -> None:
    for name in (".out.tmp-0123456789ab", ".other.tmp-0123456789ab"):
        (tmp_path / name / "sub").mkdir(parents=True)
    with held(tmp_path / "out", Path.mkdir) as beside:  # another process is just at it
        commit_folder(tmp_path / "out", _write("one"))
        left = [".other.tmp-0123456789ab", beside.name, "out"]
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted(left)


def test_empty_folder_may_be_filled(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    commit_folder(tmp_path / "out", _write("one"))
    assert (tmp_path / "out" / "a.txt").exists()


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()])
def test_a_writer_that_fails_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    def write(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise error

    commit_folder(tmp_path / "out", _write("old"))
    with pytest.raises(type(error)):
        commit_folder(tmp_path / "out", write, replace=True)
    assert (tmp_path / "out" / "a.txt").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_any_failing_call_leaves_the_old_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """Fail the n-th fsync or rename, for every n: an error always means that the old folder stands, whole."""
    target = tmp_path / "out"
    commit_folder(target, _write("old"))
    real_fsync, real_rename = os.fsync, Path.rename
    outcomes: list[bool] = []
    previous = "old"
    for nth in range(12):
        left = [nth]

        def fail_nth(left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] == -1:
                raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            if call == "fsync":
                patch.setattr(module.os, "fsync", lambda fd, fail=fail_nth: (fail(), real_fsync(fd))[1])
            else:
                patch.setattr(Path, "rename", lambda self, to, fail=fail_nth: (fail(), real_rename(self, to))[1])
            try:
                commit_folder(target, _write(f"new {nth}"), replace=True)
                outcomes.append(True)
            except CheckpointError as error:
                assert error.code == "save-failed"
                assert "No space left" in error.what
                outcomes.append(False)
        assert check_manifest(target) == ()
        expected = f"new {nth}" if outcomes[-1] else previous
        assert (target / "a.txt").read_text() == (target / "sub" / "b.txt").read_text() == expected
        assert [path.name for path in tmp_path.iterdir()] == ["out"]
        previous = expected
    assert False in outcomes
    assert outcomes[-1]


def test_the_manifest_is_written_last_and_parent_is_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    real_manifest, real_flush = module.write_manifest, module.flush
    monkeypatch.setattr(module, "write_manifest", lambda *given: (events.append("manifest"), real_manifest(*given))[1])
    monkeypatch.setattr(module, "flush", lambda path: (events.append(path.name), real_flush(path))[1])
    commit_folder(tmp_path / "out", _write("x"))
    files = events[: events.index("manifest")]
    assert sorted(files) == ["a.txt", "b.txt"]
    assert events[-1] == tmp_path.name
    assert events[events.index("manifest") + 1] == "MANIFEST.json"


def test_saving_where_nothing_may_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with refused("save-failed", "out"):
        commit_folder(tmp_path / "file" / "out", _write("x"))


def test_permissions_follow_the_umask_without_touching_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To read the umask is to set it, for every thread: files made in that moment would be open to all."""
    before = os.umask(0o027)
    monkeypatch.setattr(os, "umask", lambda mask: pytest.fail("the umask was touched"))
    try:
        folder = commit_folder(tmp_path / "out", lambda folder: (folder / "a.txt").touch(mode=0o600))
    finally:
        monkeypatch.undo()
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o640}


def test_a_trailing_half_saved_folder_is_not_a_checkpoint(tmp_path: Path) -> None:
    commit_folder(tmp_path / "out", _write("x"))
    (tmp_path / "out" / "sub" / "b.txt").write_text("y")
    with refused("manifest-mismatch", "b.txt"):
        check_manifest(tmp_path / "out")
