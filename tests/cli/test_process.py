"""What only a process of its own shows: imports, signals, broken and closed pipes, a real terminal, a locale."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from warmstart.cli.main import COMMANDS

HEAVY = {"torch", "transformers", "tokenizers", "pyarrow", "pydantic", "numpy", "rich", "datasets", "pandas", "sklearn"}
ENVIRONMENT = {"PYTHONWARNINGS": "error::DeprecationWarning:warmstart", "OMP_NUM_THREADS": "1"}


def _environment(**more: str) -> dict[str, str]:
    return {**os.environ, **ENVIRONMENT, **more}


def _command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "warmstart", *(str(argument) for argument in arguments)]


def _run(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    options = {"capture_output": True, "text": True, "timeout": 120, "env": _environment(), **options}
    done = subprocess.run(_command(*arguments), check=False, **options)
    assert "Traceback" not in (done.stderr or ""), done.stderr
    return done


# --- quick ----------------------------------------------------------------------------------------------------------


def _modules(code: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; before = set(sys.modules)\n{code}\nprint(*set(sys.modules) - before)"],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    return set(done.stdout.splitlines()[-1].split())


def test_help_imports_little() -> None:
    loaded = _modules("from warmstart.cli.main import run\nassert run(['--help']) == 0")
    assert not HEAVY & loaded
    assert len(loaded) <= 150, sorted(loaded)  # mostly click


@pytest.mark.parametrize("name", sorted(set(COMMANDS) - {"demo"}))
def test_a_commands_help_imports_neither_torch_nor_what_reads_data(name: str) -> None:
    loaded = _modules(f"from warmstart.cli.main import run\nassert run(['{name}', '--help']) == 0")
    assert not (HEAVY - {"rich"}) & loaded


def test_importing_the_package_imports_little() -> None:
    loaded = _modules("import warmstart")
    assert not (HEAVY | {"click"}) & loaded and len(loaded) <= 40


# --- streams --------------------------------------------------------------------------------------------------------


def _shell(line: str, **more: str) -> subprocess.CompletedProcess[str]:
    """A line of shell in which `warmstart` is the command."""
    script = f'warmstart() {{ {sys.executable} -m warmstart "$@"; }}\n{line}'
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, timeout=120, check=False, env=_environment(**more)
    )
    for words in ("Traceback", "Exception ignored", "BrokenPipeError"):
        assert words not in done.stderr, done.stderr
    return done


@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        ("warmstart tasks > /dev/full", 1, "No space left"),
        ("warmstart --help > /dev/full", 1, "No space left"),
        ("warmstart tasks --json >&-", 1, "Bad file descriptor"),
        ("warmstart tasks --json > /dev/null 2>&-", 0, ""),
        ("warmstart predct > /dev/null 2>&-", 2, ""),
        ("warmstart tasks --json <&- > /dev/null", 0, ""),
        ("warmstart predct 2> /dev/full", 2, ""),
        ("cd $(mktemp -d) && rmdir $PWD && warmstart tasks --json > /dev/null", 0, ""),
        ("unset HOME; warmstart --version", 0, ""),
        ("LC_ALL=C warmstart tasks", 0, ""),
    ],
)
def test_g104_streams_and_surroundings_that_are_odd(line: str, code: int, said: str) -> None:
    done = _shell(line)
    assert done.returncode == code, done.stderr
    assert said in done.stderr


def test_g104_a_locale_without_unicode_is_no_trouble(tiny: Callable[..., Path], tmp_path: Path) -> None:
    """One process with everything that a person reads: messages, table, bars."""
    rows = ['{"review": "gut 🙂 schön", "label": "NEGATIVE"}', '{"review": "gut 🙂 schön", "label": "POSITIVE"}']
    (tmp_path / "ünï.jsonl").write_text("\n".join(rows), encoding="utf-8")
    arguments = ("evaluate", "-m", tiny("bert"), "-d", tmp_path / "ünï.jsonl")
    ascii_only = _environment(LC_ALL="C", PYTHONUTF8="0", PYTHONIOENCODING="ascii")
    done = _run(*arguments, env=ascii_only, encoding="ascii")
    assert done.returncode == 0, done.stderr
    assert "accuracy" in done.stdout and "#####" in done.stdout and "\\" not in done.stdout
    assert "n\\udcc3\\udcaf.jsonl" in done.stderr  # the name's bytes, as Python has them here


def test_g104_a_reader_that_leaves_ends_the_command_quietly(tiny: Callable[..., Path], tmp_path: Path) -> None:
    """`warmstart predict … | head -1`: exit code 141, as of a process that SIGPIPE ended."""
    (tmp_path / "many.txt").write_text("good film\n" * 4000)
    line = f"warmstart predict -m {tiny('bert')} -i {tmp_path}/many.txt | head -1; echo ${{PIPESTATUS[0]}}"
    done = _shell(line)
    first, code = done.stdout.splitlines()
    assert json.loads(first)["text"] == "good film" and code == "141", done.stderr


def test_f88_a_full_pipe_end_is_an_error_with_a_next_step(tiny: Callable[..., Path]) -> None:
    done = _shell(f"warmstart predict -m {tiny('bert')} good > /dev/full")
    assert done.returncode == 1 and "output-failed" in done.stderr and "next: " in done.stderr


# --- a terminal -----------------------------------------------------------------------------------------------------


def _on_a_terminal(*arguments: object) -> tuple[int, str]:
    """The exit code, and what a terminal of 80 columns was sent."""
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        _command(*arguments), stdin=follower, stdout=follower, stderr=follower, close_fds=True,
        env=_environment(TERM="xterm", COLUMNS="80"),
    )  # fmt: skip
    os.close(follower)
    shown = b""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if not select.select([leader], [], [], 1)[0]:
            continue
        try:
            part = os.read(leader, 65536)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        shown += part
    os.close(leader)
    return process.wait(timeout=30), shown.decode()


def test_a_real_terminal_gets_the_table_in_color(tiny: Callable[..., Path]) -> None:
    code, shown = _on_a_terminal("predict", "-m", tiny("bert"), "a great film")
    assert code == 0, shown
    assert "a great film" in shown and "█" in shown and "\x1b[32m" in shown and '{"' not in shown


def test_a_terminal_and_no_text_is_a_usage_error_not_a_wait() -> None:
    code, shown = _on_a_terminal("predict")
    assert code == 2 and "input-missing" in shown


# --- signals --------------------------------------------------------------------------------------------------------


def test_r84_an_interrupt_while_training_gives_130_and_leaves_no_model(
    tiny: Callable[..., Path], tmp_path: Path
) -> None:
    rows = [json.dumps({"text": f"{word} film {n}", "label": word}) for n in range(200) for word in ("good", "bad")]
    (tmp_path / "train.jsonl").write_text("\n".join(rows))
    arguments = ("train", "-m", tiny("bert"), "-d", "train.jsonl", "-o", "r", "--set", "epochs=10000")
    process = subprocess.Popen(
        _command(*arguments),
        cwd=tmp_path,
        env=_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    metrics = tmp_path / "r" / "metrics.jsonl"
    deadline = time.monotonic() + 90
    while not (metrics.exists() and metrics.stat().st_size > 2000) and time.monotonic() < deadline:
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130 and out == ""
    assert "interrupted" in err and "Traceback" not in err
    assert not (tmp_path / "r" / "model").exists()
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    assert steps == list(range(1, len(steps) + 1))


def test_python_m_and_the_script_are_the_same(tmp_path: Path) -> None:
    script = Path(sys.executable).with_name("warmstart")
    if not script.exists():
        pytest.skip("the package is not installed as a script beside this Python")
    by_script = subprocess.run([script, "--version"], capture_output=True, text=True, timeout=60, check=True)
    assert by_script.stdout == _run("--version").stdout
