"""A person's mistakes: the right exit code, a message that names the place, a next step, and never a traceback."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers

from warmstart.cli.main import COMMANDS

Case = tuple[list[str], int, str]

# (arguments, exit code, what stderr says); M stands for a tiny checkpoint, B for a base model without a head.
MISTAKES: list[Case] = [
    # 2: the call
    (["predct", "x"], 2, "did you mean predict"),
    (["Train"], 2, "did you mean train"),
    (["predict", "--jsn", "x"], 2, "--json"),
    (["predict", "-m"], 2, "requires an argument"),
    (["predict", "-m", "M", "--max-tokens", "0", "x"], 2, "max-tokens"),
    (["predict", "-m", "M", "--max-tokens", "many", "x"], 2, "integer"),
    (["predict", "-m", "M", "-i", "dev.jsonl", "x"], 2, "input-twice"),
    (["predict", "-m", "M", "--column", "text", "x"], 2, "pair-malformed"),
    (["predict", "-m", "M", "--option", "=3", "x"], 2, "pair-malformed"),
    (["predict", "-m", "M", "--option", "strid=3", "x"], 2, "did you mean stride"),
    (["predict", "-m", "M", "--option", "stride=many", "x"], 2, "option-value"),
    (["predict", "-m", "M", "--option", "long_text=[", "x"], 2, "option-value"),
    (["predict", "-m", "M", "--task", "text-clasification", "x"], 2, "did you mean text-classification"),
    (["predict", "-m", "M", "--device", "gpu", "x"], 2, "device-unknown"),
    (["predict", "-m", "M", "-i", "dev.jsonl", "--column", "txt=body"], 2, "field-unknown"),
    (["predict", "-m", "M", "-i", "dev.jsonl", "-o", "dev.jsonl"], 2, "output-is-input"),
    (["predict", "-m", "M", "-i", "dev.jsonl", "-o", "absent/out.jsonl"], 2, "output-folder-missing"),
    (["predict", "-m", "M", "-i", "dev.jsonl", "-o", "folder"], 2, "format-unknown"),
    (["predict", "-m", "M", "-i", "dev.jsonl", "-o", "folder.jsonl"], 2, "output-is-folder"),
    (["predict", "-m", "M", "-i", "dev.jsonl", "-o", "out.xlsx"], 2, "format-unknown"),
    (["predict", "-m", "B", "x"], 2, "task-unclear"),
    (["train"], 2, "Missing option"),
    (["train", "-m", "M", "-d", "train.jsonl"], 2, "--output"),
    (["train", "-m", "M", "-d", "train.jsonl", "-o", "r", "--set", "epochs"], 2, "config-setting"),
    (["train", "-m", "M", "-d", "train.jsonl", "-o", "r", "--set", "lr=3"], 2, "learning_rate"),
    (["train", "-m", "M", "-d", "train.jsonl", "-o", "r", "--set", "epochs=-1"], 2, "config-value"),
    (["train", "-m", "M", "-d", "train.jsonl", "-o", "r", "--config", "absent.toml"], 2, "config-not-toml"),
    (["train", "-m", "M", "-d", "train.jsonl", "-o", "r", "--config", "folder"], 2, "config-not-toml"),
    (["train", "-m", "M", "-d", "train.jsonl", "-o", "r", "--config", "bad.toml"], 2, "bad.toml"),
    (["train", "-m", "M", "-d", "train.jsonl", "-o", "folder"], 2, "run-exists"),
    (["train", "-m", "M", "-d", "train.jsonl", "-o", "dev.jsonl"], 2, "run-exists"),
    (["train", "-m", "M", "-d", "train.jsonl", "-o", "r", "--validation", "2"], 2, "validation-share"),
    (["train", "-m", "M", "-d", "train.jsonl", "-o", "r", "--set", "patience=2"], 2, "validation-needed"),
    (["train", "-m", "M", "-d", "train.jsonl", "-o", "r", "--task", "sentence-embedding"], 3, "field-missing"),
    (["train", "-m", "M", "-d", "train.jsonl", "-o", "r", "--set", "device=tpu"], 2, "device-unknown"),
    (["train", "-m", "M", "-d", "train.jsonl", "-o", "r", "--device", "tpu"], 2, "device-unknown"),
    (["evaluate", "-m", "B", "-d", "dev.jsonl", "--task", "feature-extraction"], 3, "field-missing"),
    (["inspect"], 2, "Missing argument"),
    (["inspect", "M", "N"], 2, "unexpected"),
    (["tasks", "--jsno"], 2, "--json"),
    # 3: the data
    (["predict", "-m", "M", "-i", "absent.jsonl"], 3, "file-missing"),
    (["predict", "-m", "M", "-i", "folder"], 3, "folder"),
    (["predict", "-m", "M", "-i", "binary.jsonl"], 3, "binary.jsonl"),
    (["predict", "-m", "M", "-i", "nocolumn.csv"], 3, "column-missing"),
    (["predict", "-m", "M", "-i", "number.jsonl"], 3, "number.jsonl:1"),
    (["predict", "-m", "M", "-i", "loop.jsonl"], 3, "file-unreadable"),
    (["predict", "-m", "M", "-i", "pipe.jsonl"], 3, "file-not-regular"),
    (["predict", "-m", "M", "-i", "nul\x00name.jsonl"], 3, "file-"),
    (["predict", "-m", "M", "-i", "x" * 5000], 3, "file-"),
    (["evaluate", "-m", "M", "-d", "unseen.csv"], 3, "unseen.csv:3"),
    (["evaluate", "-m", "M", "-d", "empty.jsonl"], 3, "no-rows"),
    (["evaluate", "-m", "M", "-d", "texts.txt"], 3, "column-missing"),
    (["evaluate", "-m", "M", "-d", "folder"], 3, "folder"),
    (["train", "-m", "M", "-d", "empty.jsonl", "-o", "r"], 3, "split-empty"),
    (["train", "-m", "M", "-d", "folder", "-o", "r"], 3, "folder"),
    (["train", "-m", "M", "-d", "train.jsonl", "-o", "r", "--validation", "empty.jsonl"], 3, "validation-empty"),
    (["train", "-m", "M", "-d", "nocolumn.csv", "-o", "r"], 3, "column-missing"),
    # 4: the checkpoint
    (["predict", "-m", "absent/", "x"], 4, "checkpoint-not-found"),
    (["predict", "-m", "dev.jsonl", "x"], 4, "checkpoint-is-a-file"),
    (["predict", "-m", "folder", "x"], 4, "config"),
    (["predict", "-m", "", "x"], 4, "checkpoint-not-found"),
    (["predict", "-m", "no-such-org/no-such-model", "x"], 4, "hub-unreachable"),
    (["predict", "-m", "pkg:no-such-package", "x"], 4, "package"),
    (["predict", "-m", "B", "--task", "text-classification", "x"], 4, "head-missing"),
    (["evaluate", "-m", "folder", "-d", "dev.jsonl"], 4, "config"),
    (["train", "-m", "folder", "-d", "train.jsonl", "-o", "r"], 4, "config"),
    (["inspect", "folder"], 4, "config"),
    (["get", "dev.jsonl"], 4, "checkpoint-is-a-file"),
    # 1: the rest
    (["evaluate", "-m", "M", "-d", "dev.jsonl", "-o", "train.jsonl"], 1, "output-failed"),
    (["train", "-m", "M", "-d", "train.jsonl", "-o", "dev.jsonl/r"], 1, "run-unwritable"),
]


ONE_STEP = ("--set", "max_steps=1")


@pytest.fixture
def workplace(files: Path) -> Path:
    """`files`, and what a mistake needs."""
    (files / "folder").mkdir()
    (files / "folder" / "notes.md").write_text("mine")
    (files / "folder.jsonl").mkdir()
    (files / "bad.toml").write_text("epochs = ")
    (files / "empty.jsonl").write_text("")
    (files / "texts.txt").write_text("good\nbad\n")
    (files / "nocolumn.csv").write_text("a,b\n1,2\n")
    (files / "number.jsonl").write_text('{"text": 5}\n')
    (files / "unseen.csv").write_text("text,label\ngood,POSITIVE\nso,NEUTRAL\n")
    (files / "binary.jsonl").write_bytes(bytes(range(256)) * 50)
    os.mkfifo(files / "pipe.jsonl")
    (files / "loop.jsonl").symlink_to(files / "loop.jsonl")  # unreadable, to the superuser too
    return files


@pytest.mark.usefixtures("workplace")
@pytest.mark.parametrize("case", MISTAKES, ids=lambda case: " ".join(case[0])[:70].replace("\x00", "NUL"))
def test_a_mistake_has_its_code_and_its_words(warmstart: Any, tiny: Callable[..., Path], case: Case) -> None:
    arguments, code, words = case
    stand_in = {"M": str(tiny("bert")), "B": str(tiny("bert", "base"))}
    start = time.perf_counter()
    done = warmstart(*(stand_in.get(argument, argument) for argument in arguments))
    assert time.perf_counter() - start < 10
    assert done.code == code, done.err
    assert words in done.err, done.err
    assert done.out == "" and "error: " in done.err
    assert "next: " in done.err or code == 2  # click's own sentences have their hints in them
    assert not Path("r").exists() and not Path("out.jsonl").exists()


@pytest.mark.parametrize(
    ("stdin", "code", "words"),
    [
        (b"", 0, "there are no rows"),
        (b"\n\n\n", 0, ""),
        (bytes(range(256)) * 40, 3, "next: "),
        (b'{"text": "good"}\n{"text": ', 3, "stdin:2"),
        (b'{"body": "good"}\n', 3, "column-missing"),
        (b"\x1f\x8b\x08\x00broken", 3, "stdin"),
        (b"PAR1" + b"\x00" * 50, 3, "next: "),
        (b"\xff\xfeg\x00o\x00\n\x00", 0, ""),
    ],
    ids=["empty", "blank", "binary", "torn", "columns", "gzip", "parquet", "utf-16"],
)
def test_t51_odd_stdin_has_a_defined_end(
    warmstart: Any, tiny: Callable[..., Path], stdin: bytes, code: int, words: str
) -> None:
    done = warmstart("predict", "-m", tiny("bert"), stdin=stdin)
    assert done.code == code, done.err
    assert words in done.err
    if code == 0:
        assert all(line["label"] for line in done.lines)


def test_nothing_to_predict_for_is_said_at_once(warmstart: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("warmstart.cli.console.is_terminal", lambda stream: True)
    done = warmstart("predict", "-m", "not even looked at")
    assert done.code == 2 and "input-missing" in done.err and 'warmstart predict "a text"' in done.err


def test_g107_odd_file_names_are_read_and_written(warmstart: Any, tiny: Callable[..., Path], files: Path) -> None:
    for name in ("new\nline.jsonl", "-dash.jsonl", "ünï \u202e.jsonl", "a" * 248 + ".jsonl", "[*?].jsonl"):
        (files / name).write_text('{"text": "good"}\n')
        done = warmstart("predict", "-m", tiny("bert"), "-i", f"./{name}", "-o", f"./{name[:-6]}2.jsonl"[:250])
        if len(name) < 200:
            assert done.code == 0, done.err
        assert "\u202e" not in done.err
    done = warmstart("predict", "-m", tiny("bert"), "-i", "./absent\x1b[2J\n.jsonl")
    assert done.code == 3 and "\x1b" not in done.err


def test_g107_names_that_are_no_utf_8_are_read_or_refused_at_once(
    warmstart: Any, tiny: Callable[..., Path], files: Path
) -> None:
    name = os.fsdecode(b"./n\xffme")
    shutil.copytree(tiny("bert"), files / name)
    (files / "train.jsonl").rename(files / f"{name}.jsonl")
    refused = warmstart("train", "-m", tiny("bert"), "-d", f"{name}.jsonl", "-o", f"{name}-run")
    assert refused.code == 2 and "run-path" in refused.err and "\\udcff" in refused.err
    foreign = warmstart("predict", "-m", name, "good")  # the tokenizers library cannot open it
    assert foreign.code == 4 and "\\udcff" in foreign.err
    done = warmstart("train", "-m", tiny("bert"), "-d", f"{name}.jsonl", "-o", "r", "--validation", "0.3", *ONE_STEP)
    assert done.code == 0, done.err
    assert warmstart("predict", "-m", "r", "-i", f"{name}.jsonl", "-o", f"{name}-out.jsonl").code == 0
    assert len((files / f"{name}-out.jsonl").read_text().splitlines()) == 24


def test_f88_a_full_disk_leaves_no_half_file(
    warmstart: Any, tiny: Callable[..., Path], files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    before = sorted(path.name for path in files.iterdir())
    done = warmstart("predict", "-m", tiny("bert"), "-i", "dev.jsonl", "-o", "out.jsonl")
    assert done.code == 1 and "output-failed" in done.err and "No space left" in done.err
    assert sorted(path.name for path in files.iterdir()) == before
    trained = warmstart("train", "-m", tiny("bert"), "-d", "train.jsonl", "-o", "r", *ONE_STEP)
    assert trained.code == 1 and "run-unwritable" in trained.err and not (files / "r" / "model").exists()


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes.")])
def test_a_checkpoint_larger_than_memory_gives_1(
    warmstart: Any, tiny: Callable[..., Path], files: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*arguments: Any, **options: Any) -> Any:
        raise error

    monkeypatch.setattr(transformers.PreTrainedModel, "from_pretrained", fail)
    done = warmstart("predict", "-m", tiny("bert"), "good")
    assert done.code == 1 and done.err.splitlines()[-2:] == [
        f"error: not enough memory: {error}" if str(error) else "error: not enough memory",
        "  next: free some, or take a smaller checkpoint",
    ]


def test_a_run_that_cannot_go_on_gives_1(warmstart: Any, tiny: Callable[..., Path], files: Path) -> None:
    settings = ("--set", "learning_rate=1e38", "--set", "warmup=0")
    done = warmstart("train", "-m", tiny("bert"), "-d", "train.jsonl", "-o", "r", *settings)
    assert done.code == 1 and "-not-finite" in done.err and not (files / "r" / "model").exists()


# --- help -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example(warmstart: Any, name: str) -> None:
    done = warmstart(name, "--help")
    assert (
        done.code == 0
        and done.err == ""
        and f"warmstart {name}" in done.out.partition("Options:")[0].partition("\n")[2]
    )
    assert warmstart(name, "-h").out == done.out


def test_the_groups_own_help_lists_every_command(warmstart: Any) -> None:
    done = warmstart("--help")
    assert done.code == 0 and all(name in done.out for name in COMMANDS)
    assert 'warmstart predict "I love LangChain!"' in done.out
    alone = warmstart()
    assert alone.code == 2 and alone.out == "" and "Usage: warmstart" in alone.err and "error" not in alone.err
    assert warmstart("--version").out == "warmstart, version 0.1.0\n"
