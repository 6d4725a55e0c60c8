"""The budget of a chat template, and its methods and globals, each measured before it builds anything large.

Every function takes jinja2's context first, for the budget of the rendering, and values of a template after it: text,
numbers, None, lists, tuples, dicts, ranges. Anything else (`loop`, a macro, a namespace) can be held, not worked on.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from sys import getsizeof
from typing import Any

from jinja2 import Undefined
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context, LoopContext
from jinja2.utils import Namespace

SECONDS = 1.0  # of processor time; a template that goes through a text letter by letter takes 0.4 for 100,000
LARGEST = 2 << 20  # characters of one text, and of all that is written
MEMORY = 64 << 20  # bytes of all values a rendering may build, however short they live
BUDGET = "__budget__"  # its name in the context of a template

_TOO_MUCH = f"it builds a text of more than {LARGEST:,} characters, or more than {MEMORY >> 20} MB altogether"
_ITEM = 32  # bytes: the least that an item, or a turn of a loop, is paid for
PART = 3 * _ITEM  # bytes of a short text in a list
_WORD = 1 << 63  # integers are below it, and not below its negative
_SEARCHED = 1 << 26  # characters of a text times those looked for, where Python's search multiplies them
_LONGEST_RANGE = 100_000
_DATE = re.compile(r"(?:[^%]|%-?[a-zA-Z%]){0,100}", re.DOTALL)
_LINE_ENDS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"

Function = Callable[..., Any]


class TemplateRefusedError(Exception):
    """The template said, by `raise_exception`, that it does not take these messages."""


@dataclass
class Budget:
    """What one rendering may still use."""

    deadline: float  # in the processor time of this thread: a busy machine refuses no honest template
    memory: int = MEMORY
    output: int = LARGEST  # characters that may still be written
    depth: int = 0  # of macros inside each other

    def tick(self) -> None:
        if time.thread_time() > self.deadline:
            raise SecurityError(f"it takes more than {SECONDS:.0f} s")

    def fits(self, *, characters: int = 0, memory: int = 0) -> None:
        """Raises SecurityError if a text or a value of that size may not be built now."""
        self.tick()
        if characters > LARGEST or memory > self.memory:  # or it has been used up
            raise SecurityError(_TOO_MUCH)

    def pay(self, memory: int) -> None:
        self.fits(memory=memory)
        self.memory -= memory

    def paid(self, value: Any, *, shallow: bool = False) -> Any:
        """The value, paid for with all that is in it, each time it is in it; `shallow`: what is in it was there before,
        so that only it is new. That all of it can be paid for makes sure that what Python does with it later (a
        comparison, a sort) is quick as well."""
        self.tick()
        if value is True or value is False:
            return value
        cost, waiting = 0, [value]
        while waiting:
            item = waiting.pop()
            cost += _ITEM
            if isinstance(item, str):
                cost += getsizeof(item)
                if len(item) > LARGEST:
                    raise SecurityError(_TOO_MUCH)
            elif isinstance(item, list | tuple | dict):
                cost += getsizeof(item)
                waiting.extend(item)
                waiting.extend(item.values() if isinstance(item, dict) else ())
            elif isinstance(item, int):
                if not -_WORD <= item < _WORD:
                    raise SecurityError("it counts further than 64 bits reach")
            elif not (item is None or isinstance(item, float)):
                cost += 7 * _ITEM
            if cost + _ITEM * len(waiting) > self.memory:
                raise SecurityError(_TOO_MUCH)
        self.memory -= getsizeof(value) if shallow else cost
        return value

    def counted(self, values: Iterable[Any]) -> Iterator[Any]:
        for value in values:
            self.memory -= _ITEM
            self.fits()
            yield value


def budget_of(context: Context) -> Budget:
    """The budget of this rendering."""
    found = context.parent[BUDGET]  # what was given to render: no `set` of the template reaches it
    assert isinstance(found, Budget)
    return found


# --- values ---------------------------------------------------------------------------------------------------------


def are_numbers(*values: Any) -> bool:
    return all(isinstance(value, int | float) for value in values)


def text_of(context: Context, value: Any) -> str:
    """A value as it is written. Raises SecurityError for what is no data, or holds what is none."""
    if isinstance(value, str):
        return value
    if isinstance(value, Undefined):
        return ""
    budget, waiting = budget_of(context), [value]
    least = budget.memory - LARGEST
    budget.paid(value)
    if budget.memory < least:  # Python may write one letter of a text in a list as ten
        raise SecurityError(_TOO_MUCH)
    while waiting:
        item = waiting.pop()
        if isinstance(item, list | tuple | dict):
            waiting.extend(item)
            waiting.extend(item.values() if isinstance(item, dict) else ())
        elif not (item is None or isinstance(item, str | int | float | range)):
            raise SecurityError(f"it writes a {type(item).__name__}")
    text = str(value)
    budget.paid(text)
    return text


def items_of(context: Context, values: Any) -> Sequence[Any]:
    """What a loop over the values gives. Raises SecurityError for what has no items."""
    if isinstance(values, list | tuple):
        return values
    if isinstance(values, Undefined):
        return ()
    if not isinstance(values, str | dict | range):
        raise SecurityError(f"it goes through a {type(values).__name__}")
    budget_of(context).pay(PART * len(values))
    return list(values)


def number(value: Any) -> Any:
    if not are_numbers(value):
        raise TypeError(f"a {type(value).__name__} is no number")
    return value


def attribute_of(context: Context, item: Any, path: Any) -> Any:
    """`item` itself for None; for "a.b" the b of its a."""
    for part in () if path is None else text_of(context, path).split("."):
        item = context.environment.getitem(item, int(part) if part.isdecimal() else part)
    return item


# --- methods --------------------------------------------------------------------------------------------------------


def plain(function: Function) -> Function:
    """For a function whose work and result are in proportion to what it is given."""
    return lambda context, *args, **kwargs: function(*args, **kwargs)


def searching(function: Function) -> Function:
    """For a function of a text that may hold each letter against each one of what it looks for."""

    def _run(context: Context, text: str, *args: Any, **kwargs: Any) -> Any:
        for sought in (*args, *kwargs.values()):
            if isinstance(sought, str) and len(sought) * len(text) > _SEARCHED:
                raise SecurityError("it looks for too long a text")
        return function(text, *args, **kwargs)

    return _run


def _splitting(function: Function) -> Function:
    def _run(context: Context, text: str, sep: str | None = None, maxsplit: int = -1) -> Any:
        parts = (len(text) // 2 if sep is None else text.count(sep)) + 1
        budget_of(context).fits(memory=PART * (min(parts, maxsplit + 1) if maxsplit >= 0 else parts))
        return searching(function)(context, text, sep, maxsplit)

    return _run


def _splitlines(context: Context, text: str, keepends: bool = False) -> list[str]:
    budget_of(context).fits(memory=PART * (1 + sum(map(text.count, _LINE_ENDS))))
    return text.splitlines(keepends)


def replace(context: Context, text: Any, old: Any, new: Any, count: int | None = None) -> str:
    text, old, new = (text_of(context, value) for value in (text, old, new))
    most = -1 if count is None else count
    found = text.count(old) if most < 0 else min(text.count(old), most)
    budget_of(context).fits(characters=len(text) + found * (len(new) - len(old)))
    return str(text.replace(old, new, most))


def join(context: Context, values: Any, between: Any = "", attribute: Any = None) -> str:
    between = text_of(context, between)
    texts = [text_of(context, attribute_of(context, item, attribute)) for item in items_of(context, values)]
    budget_of(context).fits(characters=sum(map(len, texts)) + len(between) * len(texts))
    return str(between.join(texts))


_QUICK = (
    "capitalize", "count", "endswith", "find", "index", "isalnum", "isalpha", "isdecimal", "isdigit",
    "islower", "isnumeric", "isspace", "istitle", "isupper", "lower", "partition", "removeprefix",
    "removesuffix", "startswith", "swapcase", "title", "upper",
)  # fmt: skip
_TEXT_METHODS: dict[str, Function] = {
    **{
        name: plain(vars(str)[name])
        for name in _QUICK
    },
    **{name: searching(vars(str)[name]) for name in ("lstrip", "rfind", "rindex", "rpartition", "rstrip", "strip")},
    "split": _splitting(str.split), "rsplit": _splitting(str.rsplit), "splitlines": _splitlines, "replace": replace,
    "join": lambda context, between, values: join(context, values, between),
}  # fmt: skip
METHODS: Mapping[type, Mapping[str, Function]] = {
    str: _TEXT_METHODS,
    list: {"index": plain(list.index), "count": plain(list.count)},
    tuple: {"index": plain(tuple.index), "count": plain(tuple.count)},
    dict: {
        "get": plain(dict.get),
        "items": lambda context, values: list(values.items()),
        "keys": lambda context, values: list(values),
        "values": lambda context, values: list(values.values()),
    },
    LoopContext: {"cycle": plain(LoopContext.cycle), "changed": plain(LoopContext.changed)},
}


# --- globals --------------------------------------------------------------------------------------------------------


def _dict(context: Context, values: Any = (), /, **more: Any) -> dict[Any, Any]:
    return dict(values if isinstance(values, dict) else items_of(context, values), **more)


def _namespace(context: Context, values: Any = (), /, **more: Any) -> Namespace:
    return Namespace(budget_of(context).paid(_dict(context, values, **more)))


def _range(context: Context, *bounds: int) -> range:
    found = range(*bounds)
    if len(found) > _LONGEST_RANGE:
        raise SecurityError(f"it counts to more than {_LONGEST_RANGE:,}")
    return found


def _raise_exception(context: Context, message: Any = "") -> None:
    raise TemplateRefusedError(text_of(context, message)[:300])


def _strftime_now(context: Context, form: str) -> str:
    if not _DATE.fullmatch(form):  # a width in it is a number that text grows by
        raise SecurityError("it asks for a date in no form of dates")
    return datetime.now().strftime(form)


GLOBALS: Mapping[str, Function] = {
    "dict": _dict, "namespace": _namespace, "range": _range, "raise_exception": _raise_exception,
    "strftime_now": _strftime_now,
}  # fmt: skip
