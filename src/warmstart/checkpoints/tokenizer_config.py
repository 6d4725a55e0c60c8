"""tokenizer_config.json, whose keys become arguments of a tokenizer class: which of them are never passed on."""

from __future__ import annotations

import re
from pathlib import Path

from warmstart.checkpoints.files import find_file, read_json

NAME = "tokenizer_config.json"
# Code, positional arguments for the constructor, and paths of other files.
_UNSAFE = re.compile(r"auto_map|trust_remote_code|init_inputs|fast_tokenizer_files|.*_files?|custom_.*|_.*")
_BOOKKEEPING = frozenset({"_commit_hash", "_from_auto", "_name_or_path"})


def unsafe_tokenizer_keys(folder: Path) -> tuple[str, ...]:
    """Keys of tokenizer_config.json in a resolved folder that must not be obeyed, in their order.

    Null values ask for nothing and are left alone. Raises the file and JSON errors of `files.read_json`.
    """
    path = find_file(folder, NAME)
    if path is None:
        return ()
    settings = read_json(path)
    return tuple(
        key
        for key, value in settings.items()
        if value is not None and key not in _BOOKKEEPING and _UNSAFE.fullmatch(key)
    )
