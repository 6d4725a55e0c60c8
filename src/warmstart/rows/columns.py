"""Which column is which field: pinned by the person, or recognised by its name, and then said."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from warmstart.errors import DataError, UsageError, Where, did_you_mean
from warmstart.rows.row import Field


@dataclass(frozen=True, slots=True)
class Match:
    """`columns`: field -> column. `said`: field -> what was guessed about it, as a sentence."""

    columns: Mapping[str, str]
    said: Mapping[str, str]


def check_pins(fields: Sequence[Field], columns: Mapping[str, str]) -> None:
    """Raises `UsageError` "field-unknown" if `columns` pins a field that the task does not have."""
    names = [field.name for field in fields]
    for name in columns:
        if name not in names:
            raise UsageError(
                "field-unknown", "no such field to pin a column to", value=name, fix=did_you_mean(name, names)
            )


def match_columns(
    fields: Sequence[Field], there: Sequence[str], *, pinned: Mapping[str, str], targets: bool, where: Where
) -> Match:
    """Match fields to the columns that are there, in the order of the fields.

    A pin wins. Otherwise a column's exact name, first the field's own, then its aliases in order of preference; then
    the same without regard to case, spaces, hyphens and underscores. A column serves one field only. Target fields
    are matched only with `targets`. A required field may be absent where the one that stands `instead` of it is there.

    Raises `DataError` "column-missing" for a pinned column that is not there and for a required field that no column
    fits; it lists the columns and names near ones.
    """
    chosen = dict(pinned)
    for name, column in pinned.items():
        if column not in there:
            raise _missing(name, [column], there, where, pinned=True)
    said: dict[str, str] = {}
    lacking: list[tuple[Field, list[str]]] = []
    for field in fields:
        if field.name in chosen or (field.target and not targets):
            continue
        taken = set(chosen.values())
        names = _names(field, chosen)
        fits = _fitting(names, [column for column in there if column not in taken])
        if fits:
            chosen[field.name] = fits[0]
            if len(fits) > 1 or fits[0] != field.name:
                said[field.name] = _sentence(field.name, fits)
        elif field.required or (field.target and not field.optional):
            lacking.append((field, names))
    for field, names in lacking:
        if field.instead not in chosen:
            raise _missing(field.name, names, there, where, pinned=False)
    return Match(chosen, said)


def _names(field: Field, chosen: Mapping[str, str]) -> list[str]:
    """The names that count for a field, in order of preference."""
    if not field.partner:
        return [field.name, *field.aliases]
    partner = plain(chosen.get(field.partner, ""))
    pairs = zip(field.aliases, field.partner_aliases, strict=True)
    return [field.name, *(alias for alias, other in pairs if plain(other) == partner)]


def _fitting(names: Iterable[str], columns: Collection[str]) -> list[str]:
    """The columns that fit, best first."""
    names = list(names)
    exact = [name for name in names if name in columns]
    rank = {plain(name): place for place, name in reversed(list(enumerate(names)))}
    loose = [column for column in columns if plain(column) in rank and column not in exact]
    return [*exact, *sorted(loose, key=lambda column: rank[plain(column)])]


def plain(name: str) -> str:
    """A name without its case, spaces, hyphens and underscores."""
    return "".join(name.casefold().split()).replace("_", "").replace("-", "")


def _sentence(name: str, fits: Sequence[str]) -> str:
    text = f"{name!r} is read from column {fits[0]!r}"
    if len(fits) > 1:
        others = ", ".join(map(repr, fits[1:]))
        text += f" ({others} would fit too: pin the one you mean, columns={{{name!r}: {fits[1]!r}}})"
    return text


def _missing(name: str, names: Sequence[str], there: Sequence[str], where: Where, *, pinned: bool) -> DataError:
    listed = ", ".join(map(repr, there[:20])) + (" …" if len(there) > 20 else "")
    near = (
        {hint for wanted in names[:20] if (hint := did_you_mean(wanted, there)).startswith("did")} if there else set()
    )
    hint = f"{min(near)} " if near else ""
    what = f"there is no column {names[0]!r}" if pinned else f"no column is recognised as {name!r}"
    return DataError(
        "column-missing",
        what,
        where=Where(source=where.source, line=where.line, row=where.row, field=name),
        value=f"columns: {listed}" if there else "no columns",
        fix=f"{hint}Pin the column: columns={{{name!r}: '…'}}",
    )
