"""K85: a kill at any file operation of a report, an evaluation, a cache's fill or an export leaves old or new, whole.

What it leaves beside that goes with the next run of the same, which succeeds. Snapshots: test_k_snapshots.py.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import warmstart as ws
from support.exports import rows, tiny_export
from support.file_faults import Operations, killed_at, operations_of, unwatched, watched
from support.hub import serve_hub
from warmstart.checkpoints import carriers, find, hub
from warmstart.checkpoints.cache import fill_once
from warmstart.checkpoints.manifest import check_manifest
from warmstart.evaluation import Evaluation
from warmstart.report import render_run, write_report
from warmstart.training.run import RunDirectory
from warmstart.verbs.choice import Choice, write_choice
from warmstart.verbs.export_graph import Export, GraphExport

# In `make nightly` a process is killed at every operation, in `make test` at some where there are many.
EVERY_KILL = "WARMSTART_KILLS" in os.environ

pytestmark = pytest.mark.skipif(os.name != "posix", reason="forks")


def _names(folder: Path) -> list[str]:
    """All below a folder, hidden names too."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@dataclass(frozen=True)
class Prediction:
    label: str


# --- single files ---------------------------------------------------------------------------------------------------


def _report(folder: Path) -> tuple[Path, Callable[[], Any]]:
    (folder / "config.toml").write_text('model = "starter"\n')
    (folder / "metrics.jsonl").write_text(json.dumps({"step": 1, "epoch": 1.0, "loss": 0.5}) + "\n")
    return folder / "report.html", partial(write_report, folder)


def _choice(folder: Path) -> tuple[Path, Callable[[], Any]]:
    choice = Choice("torch fp32", "why", None, (), "digest", "task", {}, "cpu", {}, {}, {}, own_rows=False)
    return folder / "a.json", partial(write_choice, folder / "a.json", choice)


def _provenance(folder: Path) -> tuple[Path, Callable[[], Any]]:
    return folder / "provenance.json", partial(RunDirectory(folder).write_provenance, {"a": 1})


def _evaluation(name: str, losses: list[float]) -> Evaluation:
    answers = tuple(Prediction("a") for _ in losses)
    return Evaluation(name, len(losses), {}, per_example={"loss": np.array(losses)}, predictions=answers)


def _predictions(folder: Path) -> tuple[Path, Callable[[], Any]]:
    path = folder / "predictions.parquet"
    return path, partial(_evaluation("new", [0.5, 1.5]).write_predictions, path)


@pytest.mark.parametrize("of", [_report, _choice, _provenance, _predictions], ids=lambda of: of.__name__.strip("_"))
def test_k85_a_kill_while_a_file_is_written_leaves_the_old_one_or_the_new(
    tmp_path: Path, of: Callable[[Path], tuple[Path, Callable[[], Any]]]
) -> None:
    target, write = of(tmp_path)
    write()
    new, names = target.read_bytes(), _names(tmp_path)
    count = len(operations_of(write))
    assert count >= 5
    found = []
    for number in range(1, count + 1):
        target.write_bytes(b"old")
        assert killed_at(number, write)
        assert target.read_bytes() in (b"old", new)
        found.append(target.read_bytes() == new)
        write()
        assert target.read_bytes() == new and _names(tmp_path) == names
    assert found == sorted(found) and set(found) == {False, True}


def test_k85_a_kill_while_an_evaluation_is_written_leaves_no_metrics_of_other_predictions(tmp_path: Path) -> None:
    old, new = _evaluation("old", [0.5]), _evaluation("new", [0.5, 1.5])
    write = partial(new.write, tmp_path)
    write()
    names = _names(tmp_path)
    for number in range(1, len(operations_of(write)) + 1):
        old.write(tmp_path)
        assert killed_at(number, write)
        rows = pq.read_table(tmp_path / "predictions.parquet").num_rows
        metrics = tmp_path / "metrics.json"
        assert rows in (1, 2) and (not metrics.exists() or json.loads(metrics.read_text())["rows"] == rows)
        write()
        assert json.loads(metrics.read_text())["rows"] == 2 and _names(tmp_path) == names


def test_k87_a_report_is_on_the_disk_before_it_has_its_name(tmp_path: Path) -> None:
    target, write = _report(tmp_path)
    made = operations_of(write)
    renamed = next(i for i, (name, _, to) in enumerate(made) if name == "replace" and to == str(target))
    temporary = made[renamed][1]
    assert ("fsync", temporary, "") in made[:renamed] and ("fsync", str(tmp_path), "") in made[renamed:]
    assert target.read_text(encoding="utf-8") == render_run(tmp_path)


def test_k85_a_report_that_cannot_be_written_is_an_error_that_leaves_the_old_one(tmp_path: Path) -> None:
    target, write = _report(tmp_path)
    write()
    names = _names(tmp_path)
    target.write_text("old")

    def full(count: int, name: str) -> None:
        if name == "write":
            raise OSError(28, "No space left on device")

    with pytest.raises(ws.WarmstartError) as caught, watched(Operations(full)):
        write()
    assert caught.value.code == "run-unwritable" and "No space left" in caught.value.what
    assert str(caught.value.where) == str(target) and target.read_text() == "old" and _names(tmp_path) == names


# --- the cache ------------------------------------------------------------------------------------------------------


def _entry(folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "a.txt").write_text("a")
    (folder / "sub" / "b.txt").write_text("b")


def _check_entry(target: Path) -> None:
    assert _names(target) == ["MANIFEST.json", "a.txt", "sub", "sub/b.txt"] and check_manifest(target) == ()


def test_k85_a_kill_while_the_cache_is_filled_leaves_no_entry_or_a_whole_one(tmp_path: Path) -> None:
    cache = tmp_path / "cache" / "checkpoints"
    fill = partial(fill_once, cache / "entry", _entry)
    count = len(operations_of(fill))
    assert count > 15
    found = []
    for number in range(1, count + 1):
        shutil.rmtree(tmp_path / "cache")
        assert killed_at(number, fill)
        found.append((cache / "entry").exists())
        if found[-1]:
            _check_entry(cache / "entry")
        assert fill() == cache / "entry"
        _check_entry(cache / "entry")
        assert {path.name for path in cache.iterdir()} <= {"entry", ".entry.lock"}
    assert found == sorted(found) and set(found) == {False, True}


@pytest.mark.filterwarnings("ignore:Setuptools is replacing distutils")  # where a runtime was imported before
def test_k85_a_kill_while_an_archive_is_fetched_leaves_nothing_that_the_next_does_not_remove(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, temporary = tmp_path / "cache" / "data", tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))

    def download(carrier: carriers.Carrier, folder: Path) -> Path:
        (folder / "a.whl").write_bytes(b"archive")
        return folder / "a.whl"

    def unpack(folder: Path, archive: Path) -> None:
        assert archive.read_bytes() == b"archive"
        _entry(folder)

    monkeypatch.setattr(carriers, "_download", download)
    carrier = carriers.Carrier("a", "1", hashlib.sha256(b"archive").hexdigest(), 0.1, ())
    fill = partial(
        fill_once, cache / "entry", lambda folder: carriers.fetch(carrier, tmp_path, partial(unpack, folder))
    )
    count = len(operations_of(fill))
    shutil.rmtree(cache.parent)
    left = 0
    for number in range(1, count + 1):
        assert killed_at(number, fill)
        left += len(_names(temporary)) > 0
        assert fill() == cache / "entry"
        _check_entry(cache / "entry")
        assert _names(temporary) == [] and {path.name for path in cache.iterdir()} <= {"entry", ".entry.lock"}
        shutil.rmtree(cache.parent)
    assert left > 3


def test_k85_a_kill_while_a_hub_is_read_leaves_a_snapshot_that_is_whole_or_fetched_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: Callable[..., Path]
) -> None:
    with serve_hub() as served:
        served.models["org/tiny"] = tiny("bert")
        monkeypatch.setenv("HF_ENDPOINT", served.url)
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
        count = len(operations_of(lambda: find("org/tiny")))
        assert served.downloads[-1] == "model.safetensors"  # by which a snapshot is taken for whole
        expected = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
        killed = 0
        for number in range(1, count + 1, max(1, count // (18 if EVERY_KILL else 6))):
            shutil.rmtree(tmp_path / "hub", ignore_errors=True)
            killed += killed_at(number, lambda: find("org/tiny"))  # threads fetch: their count may be one less
            left = hub.cached_snapshot("org/tiny", None)
            assert left is None or {path.name for path in left.iterdir()} == expected
            assert {path.name for path in find("org/tiny").folder.iterdir()} == expected
        assert killed >= 2


# --- exports --------------------------------------------------------------------------------------------------------


PARTS = 12 if EVERY_KILL else 4


@pytest.fixture(scope="module")
def pipe(tiny: Callable[..., Path]) -> ws.Pipeline:
    return ws.load(tiny("bert"), device="cpu")


@pytest.fixture(params=["safetensors", "openvino", "onnx"])
def export(
    request: pytest.FixtureRequest, pipe: ws.Pipeline, tiny_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], Export]:
    """Exports to `out`. A runtime's threads do not survive a fork: there the files of a real export are written."""
    if request.param != "safetensors":
        made = tiny_export(tiny_root, request.param)

        def write(self: GraphExport, folder: Path) -> Export:
            for path in sorted(made.rglob("*")):
                if path.is_file() and path.name != "MANIFEST.json":
                    (folder / path.relative_to(made)).parent.mkdir(exist_ok=True)
                    (folder / path.relative_to(made)).write_bytes(path.read_bytes())
            return Export(folder, self.format, self.precision, parity, 1)

        parity = ws.export(
            pipe, tmp_path / "first", format="safetensors", data=rows(8), tolerance=ws.Tolerance(rows=8)
        ).parity
        shutil.rmtree(tmp_path / "first")
        monkeypatch.setattr(GraphExport, "write", write)
    return partial(
        ws.export, pipe, tmp_path / "out", format=request.param, data=rows(8), tolerance=ws.Tolerance(rows=8)
    )


@pytest.mark.parametrize("part", range(PARTS))
def test_k85_a_kill_while_exporting_leaves_no_folder_or_a_whole_one(
    tmp_path: Path, export: Callable[[], Export], part: int
) -> None:
    out = tmp_path / "out"
    count = len(operations_of(export))
    names = _names(tmp_path)
    assert count > 20 and names[0] == "out" and check_manifest(out) == ()
    numbers = range(1 + part, count + 1, PARTS)
    for number in numbers if EVERY_KILL else [numbers[part * (len(numbers) - 1) // (PARTS - 1)]]:
        shutil.rmtree(out)
        assert killed_at(number, export)
        if out.exists():
            assert _names(out) == [name.removeprefix("out/") for name in names[1:]] and check_manifest(out) == ()
            shutil.rmtree(out)
        assert export().path == out
        assert _names(tmp_path) == names and check_manifest(out) == ()


def test_k85_what_stands_at_any_file_operation_of_an_export_is_nothing_or_whole(
    tmp_path: Path, export: Callable[[], Export]
) -> None:
    seen: list[bool] = []
    out = tmp_path / "out"

    def look(count: int, name: str) -> None:
        with unwatched():
            seen.append(out.exists())
            if out.exists():
                assert check_manifest(out) == () and (out / "MANIFEST.json").is_file()

    with watched(Operations(look)):
        export()
    assert seen == sorted(seen) and set(seen) == {False, True}
    assert ws.load(out)("a good film").label in ("NEGATIVE", "POSITIVE")


KILLED = """
import os, signal, sys
import warmstart as ws
from support.exports import rows
from support.file_faults import Operations, watched

def kill(count, name):
    if name == "open" and operations.made[-1][1].endswith("MANIFEST.json"):
        os.kill(os.getpid(), signal.SIGKILL)

operations = Operations(kill)
with watched(operations):
    ws.export(sys.argv[1], sys.argv[2], data=rows(8), tolerance=ws.Tolerance(rows=8))
"""


@pytest.mark.bounded(60)  # a process starts
def test_k85_a_real_export_that_is_killed_before_its_manifest_is_made_again(
    tmp_path: Path, tiny: Callable[..., Path]
) -> None:
    tests = Path(__file__).parent.parent
    path = os.pathsep.join([str(tests), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tiny("bert")), str(tmp_path / "out")],
        env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr
    [left] = tmp_path.iterdir()
    assert left.name.startswith(".out.tmp-") and list(left.glob("*.xml")) and not (left / "MANIFEST.json").exists()
    ws.export(tiny("bert"), tmp_path / "out", data=rows(8), tolerance=ws.Tolerance(rows=8))
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"] and check_manifest(tmp_path / "out") == ()
