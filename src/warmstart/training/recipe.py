"""A recipe: all that a run is made from, in one TOML file. The `config.toml` of every run is one.

model = "starter-encoder"
data = "train.jsonl"            # absent where the rows did not come from a file
validation = "dev.jsonl"        # or a share of the data, such as 0.1
task = "text-classification"

[columns]                       # row field = column
text = "body"

[options]                       # of the task
max_length = 128

[train]                         # the settings of `TrainConfig`
epochs = 3
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomli_w

from warmstart.errors import UsageError, Where
from warmstart.training.config import TrainConfig, config_of, plain, read_document
from warmstart.training.settings import without_none


@dataclass(frozen=True)
class Recipe:
    """The arguments of `ws.train` that a file can hold. Paths are as given: relative to where a run starts."""

    model: str | None = None
    data: str | None = None
    validation: str | float | None = None
    task: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    config: TrainConfig = field(default_factory=TrainConfig)

    def text(self) -> str:
        """The recipe as TOML; `read_recipe` reads it back."""
        named = {"model": self.model, "data": self.data, "validation": self.validation, "task": self.task}
        document = {
            **{key: _text(value) for key, value in named.items() if value is not None},
            **({"columns": dict(self.columns)} if self.columns else {}),
            "options": {key: value for key, value in self.options.items() if value is not None},
            "train": without_none(plain(self.config)),
        }
        return tomli_w.dumps(document)


def read_recipe(path: Path, settings: Iterable[str] = ()) -> Recipe:
    """The recipe of a TOML file, with `key=value` settings laid over its `[train]`.

    Raises UsageError "config-not-toml", "config-setting", "config-unknown-key" and "config-value", which name the key.
    """
    document = read_document(path)
    config = config_of(document, settings, where=str(path))
    for key in ("model", "data", "task"):
        _check(path, key, document.get(key), "a text", document.get(key) is None or isinstance(document[key], str))
    share = document.get("validation")
    fits = share is None or (isinstance(share, str | float) and not isinstance(share, bool))
    _check(path, "validation", share, "a file or a share such as 0.1", fits)
    for key in ("columns", "options"):
        _check(path, key, document.get(key), "a table", isinstance(document.get(key, {}), dict))
    columns = document.get("columns", {})
    fits = all(isinstance(column, str) for column in columns.values())
    _check(path, "columns", columns, "a table of texts", fits)
    return Recipe(
        model=document.get("model"),
        data=document.get("data"),
        validation=share,
        task=document.get("task"),
        columns=columns,
        options=document.get("options", {}),
        config=config,
    )


def _check(path: Path, key: str, value: Any, wanted: str, fits: bool) -> None:
    if not fits:
        raise UsageError(
            "config-value",
            f"{key!r} must be {wanted}",
            where=Where(source=str(path), field=key),
            value=value,
            fix=f"write {key} as {wanted}",
        )


def _text(value: str | float) -> str | float:
    """A path may hold bytes that are no UTF-8."""
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value
