"""Rows as they come, bounded in memory, under the names of a task."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Generator, Iterator, Mapping
from dataclasses import replace

from warmstart.errors import DataError, did_you_mean
from warmstart.rows.columns import match_columns
from warmstart.rows.limits import Limits
from warmstart.rows.row import Field, Row
from warmstart.rows.source import Note, Source
from warmstart.rows.spans import completed, lifted, unanswered
from warmstart.rows.targets import is_missing, plain_value

_log = logging.getLogger("warmstart")
_MOST_DIGITS = 100  # of a whole number in a cell
_UNMATCHED = 100  # rows without the needed columns that are skipped before the columns themselves are at fault


class RowStream:
    """An iterable of `Row`. Every `iter()` starts anew; of a pipe or a generator there is one pass only.

    Attributes, of the pass that was last begun:
        columns: field -> the column it is read from.
        guessed: what was not pinned, as sentences; each was also logged.
        errors: of the rows that were skipped, at most `Limits.max_errors_kept` of them.
        skipped: how many rows were skipped.
        left_out: how many rows were left out because their annotation tool says that nobody has labelled them; only
            where targets are needed.
        source: the path as resolved, "stdin", or the kind of object.
    """

    def __init__(
        self,
        source: Source,
        *,
        fields: tuple[Field, ...],
        pins: Mapping[str, str],
        targets: bool,
        skip: bool,
        limits: Limits,
    ) -> None:
        self.source = source.name
        self.columns: dict[str, str] = {}
        self.guessed: list[str] = []
        self.errors: list[DataError] = []
        self.skipped = 0
        self.left_out = 0
        self._source = source
        self._fields = fields
        self._limits = limits
        self._skip = skip
        self._targets = targets
        unread = {field.name for field in fields if field.target and not targets}
        self._pins = {name: column for name, column in pins.items() if name not in unread}
        self._names: dict[str, str] = {}  # column -> field: `columns`, turned around
        self._known: dict[str, None] = {}  # columns met so far, in order
        for sentence in source.said:
            self._say(sentence)
        # The first row settles the columns, so that their errors are raised at once.
        started = self._pass(quiet=not source.once)
        first = next(started, None)
        self._only = itertools.chain(() if first is None else (first,), started) if source.once else None
        if not source.once:
            started.close()

    def __iter__(self) -> Iterator[Row]:
        if not self._source.once:
            return self._pass(quiet=False)
        if self._only is None:
            raise DataError(
                "source-exhausted",
                "these rows were read already, and come only once",
                where=self.source,
                fix="keep them in a list, or read them from a file",
            )
        only, self._only = self._only, None
        return only

    def __repr__(self) -> str:
        columns = ", ".join(f"{name}={column!r}" for name, column in self.columns.items())
        return f"RowStream({self.source!r}, {columns or 'no rows'})"

    def _pass(self, *, quiet: bool) -> Generator[Row, None, None]:
        self.errors, self.skipped, self.left_out = [], 0, 0
        count = 0
        for raw in self._source.open():
            if isinstance(raw, Note):
                self._say(raw.text)
                continue
            if self._targets and isinstance(raw, Row) and unanswered(raw):
                self.left_out += 1
                continue
            if self._targets and isinstance(raw, Row):
                raw = completed(raw)
            row = raw if isinstance(raw, DataError) else self._fit(lifted(raw))
            if isinstance(row, Row):
                count += 1
                yield row
            elif self._skip:
                self._note(row, quiet)
            else:
                raise row
        if self.skipped and not quiet:
            _log.warning("%s: %d rows were skipped, %d read", self.source, self.skipped, count)
        if self.left_out and not quiet:
            said = "%s: %d rows that nobody has labelled were left out, %d read"
            _log.warning(said, self.source, self.left_out, count)
        if not count and not quiet:
            _log.warning("%s: there are no rows", self.source)

    def _note(self, error: DataError, quiet: bool) -> None:
        self.skipped += 1
        if len(self.errors) < self._limits.max_errors_kept:
            self.errors.append(error)
        if self.skipped == 1 and not quiet:
            _log.warning("a row is skipped; more are only counted: %s", error)
        if not self._known and self.skipped >= _UNMATCHED and error.code == "column-missing":
            raise error

    def _fit(self, raw: Row) -> Row | DataError:
        """The row under the task's names, or its error."""
        if not raw.keys() <= self._known.keys():
            try:
                self._match(raw)
            except DataError as error:
                if self._skip and error.code == "column-missing":
                    return error
                raise
        names = self._names
        absent = [field for field, column in self.columns.items() if column not in raw and field in raw]
        if absent:  # a row may always use the field's own name
            names = {**names, **{field: field for field in absent if field not in names}}
        row = Row({names.get(column) or self._free(column, raw): value for column, value in raw.items()}, raw.where)
        return self._fault(row, raw) or row

    def _match(self, raw: Row) -> None:
        there = [*self._known, *(column for column in raw if column not in self._known)]
        if len(there) > self._limits.max_columns:
            raise DataError(
                "columns-too-many",
                f"the rows have more than {self._limits.max_columns} different columns",
                where=raw.where,
                fix="give every row the same columns, or raise Limits.max_columns",
            )
        pins = {**self._pins, **self.columns}
        where = raw.where if raw.where.source else replace(raw.where, source=self.source)
        match = match_columns(self._fields, there, pinned=pins, targets=self._targets, where=where)
        for name, sentence in match.said.items():
            self._say(f"{sentence} of {self.source}")
            names = self._source.class_names.get(match.columns[name])
            if names:
                self._say(f"ids in {match.columns[name]!r} of {self.source} become names: {', '.join(names[:10])}")
        self.columns = dict(match.columns)
        self._names = {column: name for name, column in match.columns.items()}
        self._known = dict.fromkeys(there)

    def _free(self, column: str, raw: Row) -> str:
        """The key of a column that no field is read from."""
        key = column
        while key in self.columns or (key != column and key in raw):
            key = f"input_{key}"
        return key

    def _fault(self, row: Row, raw: Row) -> DataError | None:
        """Check the fields of a row, and turn class ids into names, in place."""
        for field in self._fields:
            column = self.columns.get(field.name)
            if column is None:
                continue
            value = row.get(field.name)
            names = self._source.class_names.get(column)
            if names:
                value = row[field.name] = _named(value, names)
            if field.whole and isinstance(value, str) and not value.strip():  # an empty cell
                value = row[field.name] = None
            if is_missing(value) and (field.target or not isinstance(value, str)):  # an empty text is a text
                if (field.required or field.target) and is_missing(row.get(field.instead)):
                    return self._lacking(field.name, column, raw)
            elif field.whole:
                if (number := _whole(value)) is None:
                    return DataError(
                        "field-not-whole",
                        f"{field.name!r} must be a whole number from 0",
                        where=replace(raw.where, field=column),
                        value=value,
                        fix="write digits, or leave the value out",
                    )
                row[field.name] = number
            elif field.text and not (isinstance(value, str) or (field.many and _are_texts(value))):
                return DataError(
                    "field-not-text",
                    f"{field.name!r} must be a string{' or a list of them' if field.many else ''}, "
                    f"this is of type {type(value).__name__}",
                    where=replace(raw.where, field=column),
                    value=value,
                    fix="write the value as a string, or skip bad rows: on_error='skip'",
                )
        return None

    def _lacking(self, name: str, column: str, raw: Row) -> DataError:
        there = column in raw
        hint = "" if there or not raw else f"{did_you_mean(column, map(str, raw))} "
        return DataError(
            "field-missing",
            f"the row's {name!r} is empty" if there else f"the row has no {column!r}, from which {name!r} is read",
            where=replace(raw.where, field=column),
            value=raw.get(column) if there else list(raw),
            fix=f"{hint}Give every row a value, or skip bad rows: on_error='skip'",
        )

    def _say(self, sentence: str) -> None:
        if sentence not in self.guessed:  # a second pass finds the same again
            self.guessed.append(sentence)
            _log.info("%s", sentence)


def _whole(value: object) -> int | None:
    """A whole number from 0 as it may stand in a file: a cell holds its digits, and a column with gaps floats."""
    value = plain_value(value)
    if isinstance(value, str) and value.strip().isdecimal() and len(value.strip()) <= _MOST_DIGITS:
        return int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if type(value) is int and value >= 0 else None


def _named(value: object, names: tuple[str, ...]) -> object:
    """A class id, or a list of them, by name. -1 says: no label."""
    if isinstance(value, int) and not isinstance(value, bool):
        return names[value] if 0 <= value < len(names) else None
    return [_named(item, names) for item in value] if isinstance(value, list) else value


def _are_texts(value: object) -> bool:
    value = plain_value(value)
    return isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)
