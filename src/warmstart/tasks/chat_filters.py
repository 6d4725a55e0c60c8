"""The filters and tests of a chat template: jinja2's, written so that each is measured before it builds anything large.

Filters take jinja2's context first, for the budget of the rendering. Where jinja2 gives a generator these give a list.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Mapping
from typing import Any

from jinja2 import Undefined, filters, pass_context
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context

from warmstart.tasks.chat_functions import (
    LARGEST,
    PART,
    Function,
    attribute_of,
    budget_of,
    items_of,
    join,
    number,
    plain,
    replace,
    searching,
    text_of,
)

_LONGEST_NUMBER = 100  # characters


def _keys(context: Context, values: Any, path: Any, case_sensitive: bool) -> list[Any]:
    """What the values are ordered and told apart by."""
    budget, keys = budget_of(context), []
    for item in items_of(context, values):
        key = attribute_of(context, item, path)
        keys.append(budget.paid(key.lower() if isinstance(key, str) and not case_sensitive else key))
    return keys


def _of_text(function: Function) -> Function:
    return lambda context, value, *args: function(context, text_of(context, value), *args)


def _title(context: Context, text: str) -> str:
    budget_of(context).fits(memory=PART * len(text))
    return filters.do_title(text)


def _length(context: Context, value: Any) -> int:
    return len(value if isinstance(value, str | list | tuple | dict | range) else items_of(context, value))


def _end(place: int) -> Function:
    def _run(context: Context, values: Any) -> Any:
        items = items_of(context, values)
        return items[place] if items else context.environment.undefined("it has no items")

    return _run


def _reverse(context: Context, value: Any) -> Any:
    return value[::-1] if isinstance(value, str) else list(reversed(items_of(context, value)))


def _items(context: Context, value: Any) -> list[Any]:
    return [] if isinstance(value, Undefined) else list(dict.items(value))


def _default(context: Context, value: Any, default: Any = "", boolean: bool = False) -> Any:
    return default if isinstance(value, Undefined) or (boolean and not value) else value


def _map(context: Context, values: Any, name: Any = None, *args: Any, **kwargs: Any) -> list[Any]:
    """`map("upper")`, `map(attribute="role", default="")`."""
    if name is None:
        path, otherwise = kwargs["attribute"], kwargs.get("default")

        def made(item: Any) -> Any:
            found = attribute_of(context, item, path)
            return otherwise if isinstance(found, Undefined) and "default" in kwargs else found
    else:
        function = FILTERS[name]

        def made(item: Any) -> Any:
            return function(context, item, *args, **kwargs)

    budget = budget_of(context)
    return [budget.paid(made(item)) for item in items_of(context, values)]


def _select(keep: bool, *, by_attribute: bool = False) -> Function:
    def _run(context: Context, values: Any, *args: Any) -> list[Any]:
        path, (name, *rest) = (args[0], args[1:] or (None,)) if by_attribute else (None, args or (None,))
        test = bool if name is None else TESTS[name]
        budget = budget_of(context)
        found = budget.counted(items_of(context, values))
        return [item for item in found if bool(test(attribute_of(context, item, path), *rest)) is keep]

    return _run


def _sort(
    context: Context, values: Any, reverse: bool = False, case_sensitive: bool = False, attribute: Any = None
) -> list[Any]:
    items, keys = items_of(context, values), _keys(context, values, attribute, case_sensitive)
    return [items[place] for place in sorted(range(len(items)), key=keys.__getitem__, reverse=reverse)]


def _dictsort(
    context: Context, value: Any, case_sensitive: bool = False, by: str = "key", reverse: bool = False
) -> list[Any]:
    return _sort(context, _items(context, value), reverse, case_sensitive, {"key": "0", "value": "1"}[by])


def _unique(context: Context, values: Any, case_sensitive: bool = False, attribute: Any = None) -> list[Any]:
    keys = _keys(context, values, attribute, case_sensitive)
    first = {key: place for place, key in reversed(list(enumerate(keys)))}
    return [item for place, item in enumerate(items_of(context, values)) if first[keys[place]] == place]


def _extreme(function: Function) -> Function:
    def _run(context: Context, values: Any, case_sensitive: bool = False, attribute: Any = None) -> Any:
        items, keys = items_of(context, values), _keys(context, values, attribute, case_sensitive)
        return items[function(range(len(items)), key=keys.__getitem__)] if items else context.environment.undefined()

    return _run


def _int(context: Context, value: Any, default: Any = 0, base: int = 10) -> Any:
    if isinstance(value, str) and len(value) > _LONGEST_NUMBER:
        return default
    return filters.do_int(value, default, base)


def _float(context: Context, value: Any, default: Any = 0.0) -> Any:
    if isinstance(value, str) and len(value) > _LONGEST_NUMBER:
        return default
    return filters.do_float(value, default)


def _round(context: Context, value: Any, precision: int = 0, method: str = "common") -> Any:
    if not -20 <= precision <= 20:
        raise SecurityError("it rounds to more than 20 places")
    return filters.do_round(number(value), precision, method)  # type: ignore[arg-type]


def _tojson(
    context: Context,
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    """As transformers' own; `indent` and the separators at most 8 wide."""
    for size in (indent, *map(len, separators or ())):
        if size is not None and not 0 <= size <= 8:
            raise SecurityError("it writes JSON too wide")
    budget, left, parts = budget_of(context), LARGEST, []
    budget.paid(value)
    encoder = json.JSONEncoder(
        ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys, allow_nan=True
    )
    for part in encoder.iterencode(value):
        left -= len(part)
        budget.fits(characters=LARGEST - left)
        parts.append(part)
    return "".join(parts)


_OURS: dict[str, Function] = {
    **{name: _of_text(plain(vars(str)[name])) for name in ("capitalize", "lower", "upper")},
    **dict.fromkeys(("safe", "string"), text_of),  # `safe`: nothing is escaped here
    **dict.fromkeys(("count", "length"), _length),
    **dict.fromkeys(("d", "default"), _default),
    "abs": lambda context, value: abs(number(value)),
    "dictsort": _dictsort,
    "first": _end(0),
    "float": _float,
    "int": _int,
    "items": _items,
    "join": join,
    "last": _end(-1),
    "list": lambda context, values: list(items_of(context, values)),
    "map": _map,
    "max": _extreme(max),
    "min": _extreme(min),
    "reject": _select(False),
    "rejectattr": _select(False, by_attribute=True),
    "replace": replace,
    "reverse": _reverse,
    "round": _round,
    "select": _select(True),
    "selectattr": _select(True, by_attribute=True),
    "sort": _sort,
    "title": _of_text(_title),
    "tojson": _tojson,
    "trim": _of_text(searching(str.strip)),
    "unique": _unique,
}
FILTERS: Mapping[str, Function] = {name: pass_context(function) for name, function in _OURS.items()}


# --- tests ----------------------------------------------------------------------------------------------------------


def _is(*kinds: type) -> Function:
    return lambda value: isinstance(value, kinds)


_SEQUENCES = (str, list, tuple, dict, range, Undefined)  # as jinja2 has it: what has a length and items
TESTS: Mapping[str, Function] = {
    "boolean": _is(bool),
    "defined": lambda value: not isinstance(value, Undefined),
    "divisibleby": lambda value, by: number(value) % number(by) == 0,
    "even": lambda value: number(value) % 2 == 0,
    "false": lambda value: value is False,
    "float": _is(float),
    "in": lambda value, values: value in values,
    "integer": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "iterable": _is(*_SEQUENCES),
    "mapping": _is(dict),
    "none": lambda value: value is None,
    "number": _is(int, float),
    "odd": lambda value: number(value) % 2 == 1,
    "sameas": lambda value, other: value is other,
    "sequence": _is(*_SEQUENCES),
    "string": _is(str),
    "true": lambda value: value is True,
    "undefined": _is(Undefined),
    **dict.fromkeys(("eq", "==", "equalto"), operator.eq),
    **dict.fromkeys(("ne", "!="), operator.ne),
    **dict.fromkeys(("ge", ">="), operator.ge),
    **dict.fromkeys(("gt", ">", "greaterthan"), operator.gt),
    **dict.fromkeys(("le", "<="), operator.le),
    **dict.fromkeys(("lt", "<", "lessthan"), operator.lt),
}
