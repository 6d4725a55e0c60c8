"""Small recipes to be killed: a pairwise cover of what could make a resumed run differ."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.runs import reviews

SAVE_EVERY = 2


@dataclass(frozen=True)
class Case:
    """One row of the cover. `validation`: "off", "on", or "stop" for early stopping."""

    order: str
    collator: str
    accumulate: int
    workers: int
    validation: str
    trained: str = "all"  # or "lora"

    def __str__(self) -> str:
        numbers = f"accumulate{self.accumulate}-workers{self.workers}"
        return f"{self.order}-{self.collator}-{numbers}-validation-{self.validation}-{self.trained}"

    def recipe(
        self, place: Path, tiny: Callable[..., Path], tables: Mapping[str, Mapping[str, Any]] | None = None
    ) -> Path:
        """The recipe and its rows as files in `place`: a run of about a second. `tables`: of `[train]`."""
        rows = reviews(44)
        for name, part in (("train", rows[:32]), ("dev", rows[32:])):
            lines = [json.dumps(row) for row in part]
            (place / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        masked = self.collator == "masked"
        call = {
            "model": str(tiny("bert", "masks" if masked else "classification")),
            "task": "fill-mask" if masked else "text-classification",
            "data": str(place / "train.jsonl"),
            **({} if self.validation == "off" else {"validation": str(place / "dev.jsonl")}),
        }
        train = {
            "epochs": 2 * self.accumulate if self.validation != "stop" else 8,
            "batch_size": 8,
            "accumulate": self.accumulate,
            "workers": self.workers,
            "save_every": SAVE_EVERY,
            "learning_rate": 5e-3,
            **({"max_tokens": 96} if self.order == "budget" else {}),
            **({"evaluate_every": 2} if self.validation != "off" else {}),
            **({"patience": 1, "learning_rate": 0.3, "schedule": "constant"} if self.validation == "stop" else {}),
        }
        text = [f"{key} = {json.dumps(value)}" for key, value in call.items()]
        text += ["[train]", *(f"{key} = {json.dumps(value)}" for key, value in train.items())]
        lora = {"lora": {"rank": 2, "dropout": 0.1}} if self.trained == "lora" else {}
        for name, table in {**lora, **(tables or {})}.items():
            text += [f"[train.{name}]", *(f"{key} = {json.dumps(value)}" for key, value in table.items())]
        path = place / "run.toml"
        path.write_text("\n".join(text) + "\n", encoding="utf-8")
        return path


COVER = (
    Case("random", "plain", 1, 0, "off"),
    Case("budget", "masked", 3, 2, "off", "lora"),
    Case("random", "masked", 1, 2, "on"),
    Case("budget", "plain", 3, 0, "on", "lora"),
    Case("random", "plain", 3, 2, "stop"),
    Case("budget", "masked", 1, 0, "stop", "lora"),
    Case("random", "masked", 3, 0, "on", "lora"),
    Case("budget", "plain", 1, 2, "off"),
)

# Recipes, some of which go together in a run.
RECIPES: dict[str, dict[str, dict[str, Any]]] = {
    "loss-layer_decay-ema": {
        "loss": {"class_weights": "balanced", "label_smoothing": 0.1},
        "layer_decay": {"factor": 0.8},
        "ema": {"decay": 0.9},
    },
    "top_layers-memory": {"top_layers": {"layers": 1, "cache": "memory"}},
    "top_layers-disk": {"top_layers": {"layers": 0, "cache": "disk"}, "ema": {"decay": 0.9}},
    "lora-ema": {"lora": {"rank": 2}, "ema": {"decay": 0.9}},
}
