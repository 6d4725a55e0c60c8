"""A row is one example: a dict of fields that remembers where it was read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from warmstart.errors import Where


class Row(dict[str, Any]):
    """A plain dict of fields, with the place it came from. Equality and JSON are those of the dict."""

    __slots__ = ("where",)

    def __init__(self, fields: Mapping[str, Any], where: Where | None = None) -> None:
        super().__init__(fields)
        self.where = where or Where()


@dataclass(frozen=True, slots=True)
class Field:
    """One field that a task reads. `aliases` are column names recognised without a flag, in order of preference.

    `partner` and `partner_aliases` tie the aliases of a second text to those of the first: the i-th alias counts only
    where the field named `partner` is read from the column `partner_aliases[i]`. The field's own name always counts.

        Field("text_pair", ("sentence2", "context"), required=False, partner="text",
              partner_aliases=("sentence1", "question"))
    """

    name: str
    aliases: tuple[str, ...] = ()
    required: bool = True  # needed to predict
    target: bool = False  # needed to train and to evaluate; never read when predicting
    doc: str = ""
    partner: str = ""
    partner_aliases: tuple[str, ...] = ()
    text: bool = False  # the value must be a string; anything else is an error of its row
    instead: str = ""  # the field that may stand in the place of this one
    many: bool = False  # of a text: a list of strings is one value too
    whole: bool = False  # the value is a whole number from 0
    optional: bool = False  # of a target: there is a way to train and to evaluate without it
    together: bool = False  # rows with one value of it stay in one part of a split, as what might be learned by heart

    def __post_init__(self) -> None:
        assert not self.partner or len(self.partner_aliases) == len(self.aliases), "one partner alias for each alias"
