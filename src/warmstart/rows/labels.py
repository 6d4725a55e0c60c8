"""Labels: spelled one way, counted once, never a new class in silence."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, repeat
from typing import Any

from warmstart.errors import DataError, Where, did_you_mean
from warmstart.rows.targets import WHOLE, is_bit, is_list, plain_value, spelling

_log = logging.getLogger("warmstart")
_FREE_TEXT = 20  # rows with as many classes as rows: from here on, a wrong column rather than a tiny example


@dataclass(frozen=True, slots=True)
class Labels:
    """The classes of a task, in the order of their ids.

    A label is compared in one spelling: surrounding space stripped, Unicode composed (NFC), whole numbers without a
    fraction (1, 1.0 and "1" are one). Where the exact spelling is no class, another case of it is.

    Raises `DataError` "label-duplicate" where two names have one spelling.

        >>> Labels(("negative", "positive")).index(" Positive")
        1
    """

    names: tuple[str, ...]
    said: tuple[str, ...] = field(default=(), compare=False)  # what `learn` changed or guessed, as sentences
    _ids: dict[str, int] = field(default_factory=dict, init=False, repr=False, compare=False)
    _cased: dict[str, int | None] = field(default_factory=dict, init=False, repr=False, compare=False)
    _told: set[str] = field(default_factory=set, init=False, repr=False, compare=False)  # say it once, not once a row

    def __post_init__(self) -> None:
        for index, name in enumerate(self.names):
            spelled = spelling(name)
            if spelled in self._ids:
                raise DataError(
                    "label-duplicate",
                    "two classes have the same name",
                    value=(self.names[self._ids[spelled]], name),
                    fix="give every class its own name",
                )
            self._ids[spelled] = index
            key = spelled.casefold()
            self._cased[key] = None if key in self._cased else index  # None: "US" and "us" are both classes

    @classmethod
    def learn(cls, values: Iterable[object], wheres: Iterable[Where | None] | None = None) -> Labels:
        """The classes that occur in `values`, sorted (by number if all are numbers).

        Lists, as multi-label rows have them, count by their items; where all are vectors of 0 and 1 of one length, the
        classes are the positions. Spellings that differ in case only become one class, under the most frequent of them
        (of equally frequent ones the first in sorted order); this is said, as a warning and in `said`.

        Raises `DataError` "label-missing" (None, NaN, an empty string) or "label-unusable" (a dict, bytes, …) at the
        place in `wheres` of the value, "split-empty" if there is no value.
        """
        values = [plain_value(value) for value in values]
        width = _vector_width(values)
        if width:
            return cls(tuple(str(index) for index in range(width)), (f"labels are vectors of {width} zeros and ones",))
        counts: Counter[str] = Counter()
        for value, where in _placed(values, wheres):
            counts.update(spelling(item, where) for item in (value if is_list(value) else (value,)))
        if not counts:
            raise _empty("there are no labels to learn")
        groups: dict[str, list[str]] = defaultdict(list)
        for name in sorted(counts):
            groups[name.casefold()].append(name)
        names, said = [], []
        for variants in groups.values():
            kept = max(variants, key=lambda name: counts[name])
            names.append(kept)
            others = ", ".join(f"{name!r} ({counts[name]})" for name in variants if name != kept)
            if others:
                said.append(f"label {others} is counted as {kept!r} ({counts[kept]}): they differ in case only")
                _log.warning("%s", said[-1])
        return cls(tuple(sorted(names, key=_sort_key(names))), tuple(said))

    def __len__(self) -> int:
        return len(self.names)

    def index(self, value: object, where: Where | None = None) -> int:
        """The id of a label, 0 to len - 1.

        An integer is the id of a class where no name is a number (said once). A bool is a class only by the names
        true and false.

        Raises `DataError` "label-unknown", "label-missing" or "label-unusable".
        """
        spelled = spelling(value, where)
        found = self._ids.get(spelled)
        if found is None:
            found = self._cased.get(spelled.casefold())
        if found is None and not isinstance(plain_value(value), bool) and self._is_id(spelled):
            found = int(spelled)
            self._tell(f"labels are class ids: {found} is taken as {self.names[found]!r}")
        if found is None:
            raise self._unknown(value, spelled, where)
        return found

    def vector(self, value: object, where: Where | None = None) -> tuple[int, ...]:
        """A multi-label value as len(names) zeros and ones: a list of labels, or such a vector itself.

        A list of len(names) zeros and ones is a vector. Raises what `index` raises, and "label-unusable" for a value
        that is not a list.
        """
        items = plain_value(value)
        if not is_list(items):
            raise DataError(
                "label-unusable",
                "a multi-label row needs a list of labels",
                where=where,
                value=value,
                fix='write a list of names, such as ["sports", "politics"]; an empty list is fine',
            )
        if len(items) == len(self.names) and all(is_bit(item) for item in items) and items:
            return tuple(int(item) for item in items)
        chosen = {self.index(item, where) for item in items}
        return tuple(int(index in chosen) for index in range(len(self.names)))

    def _is_id(self, spelled: str) -> bool:
        # "1 star" is not class 1: names that begin with a digit are never addressed by id.
        if not WHOLE.fullmatch(spelled) or any(name.strip()[:1].isdigit() for name in self.names):
            return False
        return 0 <= int(spelled) < len(self.names)

    def _tell(self, sentence: str) -> None:
        if "ids" not in self._told:
            self._told.add("ids")
            _log.info("%s", sentence)

    def _unknown(self, value: object, spelled: str, where: Where | None) -> DataError:
        known = self.names if len(self.names) <= 50 else self.names[:50]
        near = did_you_mean(spelled, self.names)
        hint = near if near.startswith("did") else did_you_mean("", known)
        return DataError(
            "label-unknown",
            f"this label is none of the {len(self.names)} classes",
            where=where,
            value=value,
            fix=f"{hint} Correct the row, or train with this class",
        )


def unseen(
    labels: Labels,
    values: Iterable[object],
    wheres: Iterable[Where | None] | None = None,
    *,
    refuse: bool = False,
) -> dict[str, int]:
    """How often labels occur in `values` that are none of the classes; empty if all are known. A warning says so.

    Raises `DataError` "label-unknown" at the first of them with `refuse`.
    """
    found: Counter[str] = Counter()
    for value, where in _placed(values, wheres):
        items = plain_value(value)
        for item in items if is_list(items) else (items,):
            try:
                labels.index(item, where)
            except DataError as error:
                if refuse or error.code != "label-unknown":
                    raise
                found[spelling(item)] += 1
    if found:
        shown = ", ".join(f"{name!r} ({count})" for name, count in found.most_common(5))
        _log.warning("%d rows have a label that was not trained: %s", found.total(), shown)
    return dict(found)


def check_training_labels(
    values: Iterable[object],
    labels: Labels | None = None,
    *,
    wheres: Iterable[Where | None] | None = None,
    source: str = "the training rows",
) -> tuple[str, ...]:
    """Whether a single-label split can be trained on at all. Returns, and logs as warnings, what is merely doubtful:
    classes with one row, and classes of `labels` without any.

    Raises `DataError` "split-empty", "label-one-class" (nothing to tell apart), and "label-every-row-differs" (twenty
    or more rows, each with a class of its own: not a label column); and what `Labels.learn` raises for a label that is
    none, or with `labels`, what `Labels.index` does.

        >>> check_training_labels(["a", "a", "b"])
        ("class 'b' has one row only in the training rows",)
    """
    values = list(values)
    if not values:
        raise _empty(f"there are no rows in {source}")
    names: dict[str, str] = {}  # spelled alike but for case: the first of them
    counts: Counter[str] = Counter()
    for value, where in _placed(values, wheres):
        name = spelling(value, where) if labels is None else labels.names[labels.index(value, where)]
        counts[names.setdefault(name.casefold(), name) if labels is None else name] += 1
    if len(counts) == 1:
        raise DataError(
            "label-one-class",
            f"all {len(values)} rows of {source} have the same label",
            value=next(iter(counts)),
            fix="add rows of another class, or check the label column",
        )
    if len(values) >= _FREE_TEXT and len(counts) == len(values):
        raise DataError(
            "label-every-row-differs",
            f"each of the {len(values)} rows of {source} has its own label",
            value=next(iter(counts)),
            fix="check the label column; numbers may want regression",
        )
    single = [name for name, count in counts.items() if count == 1]
    absent = [name for name in (labels.names if labels else ()) if name not in counts]
    said = []
    if single:
        said.append(f"{_classes(single)} one row only in {source}")
    if absent:
        said.append(f"{_classes(absent)} no row in {source}")
    for sentence in said:
        _log.warning("%s", sentence)
    return tuple(said)


def _placed(values: Iterable[object], wheres: Iterable[Where | None] | None) -> Iterator[tuple[object, Where | None]]:
    """Each value with its place: one for each, or a value would be lost with the place that is not there."""
    return zip(values, repeat(None)) if wheres is None else zip(values, wheres, strict=True)


def _vector_width(values: Sequence[Any]) -> int:
    """The common length of 0/1 vectors; 0 where the values are not that.

    [0, 1] may also list two class ids, but then no row names a class twice.
    """
    if not values or not all(is_list(value) for value in values):
        return 0
    widths = {len(value) for value in values}
    if len(widths) != 1 or not all(is_bit(item) for item in chain.from_iterable(values)):
        return 0
    return widths.pop() if any(len(set(value)) < len(value) for value in values) else 0


def _sort_key(names: Iterable[str]) -> Any:
    return int if all(WHOLE.fullmatch(name) for name in names) else str


def _classes(names: Sequence[str]) -> str:
    shown = ", ".join(map(repr, names[:5])) + (" …" if len(names) > 5 else "")
    return f"class {shown} has" if len(names) == 1 else f"{len(names)} classes ({shown}) have"


def _empty(what: str) -> DataError:
    return DataError("split-empty", what, fix="check the path, the split and what was skipped")
