"""What an option may be, where no list of values says it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Rule:
    """A check that answers for any object, and its words: "a whole number from 0"."""

    fits: Callable[[Any], bool]
    wanted: str
