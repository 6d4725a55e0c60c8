"""Rendering a checkpoint's chat template, which is a program of somebody else's: bounded in what it may do.

jinja2's immutable sandbox keeps a template away from Python. What it does not bound is work, so the parsed template is
rewritten: every loop counts its turns, and every value that is built is weighed, against one budget a rendering.
Filters and methods of strings that can grow a text by a number are not there at all.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import BuiltinMethodType
from typing import Any

from jinja2 import Template, TemplateError, nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

SECONDS = 1.0  # of processor time
LARGEST = 2 << 20  # characters (and items, and bytes of integers) of one value, and of the whole text
LONGEST_SOURCE = 256 << 10  # characters

_FILTERS = (
    "abs capitalize count d default dictsort first float int items last length list lower map max min reject "
    "rejectattr reverse round safe select selectattr sort string title trim unique upper"
)
_METHODS = frozenset(
    [
        "capitalize",
        "count",
        "endswith",
        "find",
        "index",
        "isalnum",
        "isalpha",
        "isdigit",
        "islower",
        "isnumeric",
        "isspace",
        "isupper",
        "join",
        "lower",
        "lstrip",
        "partition",
        "removeprefix",
        "removesuffix",
        "replace",
        "rfind",
        "rindex",
        "rpartition",
        "rsplit",
        "rstrip",
        "split",
        "splitlines",
        "startswith",
        "strip",
        "title",
        "upper",
    ]
)
_DEEPEST = 50
_WIDTH = re.compile(r"%[^a-zA-Z%]*(\*|\d{4})")
_GENERATION = re.compile(r"(\{%-?\s*)(end)?generation(\s*-?%\})")  # a mark of transformers' own, around answers


class TemplateRefusedError(Exception):
    """The template said, by `raise_exception`, that it does not take these messages."""


class TemplateFailedError(Exception):
    """The template is wrong, does what it may not, or does too much."""


@dataclass
class _Budget:
    deadline: float  # in the processor time of this thread: a busy machine refuses no honest template
    left: int = LARGEST  # characters that may still be written
    depth: int = 0  # of calls inside calls

    def tick(self) -> None:
        if time.thread_time() > self.deadline:
            raise SecurityError(f"it takes more than {SECONDS:.0f} s")

    def weighed(self, value: Any) -> Any:
        """The value, if all of it is small enough to be handled in a moment."""
        self.tick()
        total, waiting = 0, [value]
        while waiting:
            item = waiting.pop()
            if isinstance(item, str):
                total += len(item)
            elif isinstance(item, int):
                total += item.bit_length() // 8
            elif isinstance(item, list | tuple):
                self.tick()  # one list may stand in another a million times
                total += len(item)
                waiting.extend(item)
            elif isinstance(item, dict):
                total += len(item)
                waiting.extend(item)
                waiting.extend(item.values())
            if total > LARGEST or len(waiting) > LARGEST:
                raise SecurityError(f"it builds a value of more than {LARGEST:,} characters")
        return value

    def counted(self, values: Iterable[Any]) -> Iterator[Any]:
        for value in values:
            self.tick()
            yield value


class ChatProgram:
    """A compiled chat template.

    >>> ChatProgram("{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{% endfor %}").render(
    ...     {"messages": [{"role": "user", "content": "hi"}]}
    ... )
    'user: hi'
    """

    def __init__(self, source: str) -> None:
        """Raises TemplateFailedError for a source that is none."""
        if len(source) > LONGEST_SOURCE:
            raise TemplateFailedError(f"it has {len(source):,} characters, {LONGEST_SOURCE:,} are read")
        source = _GENERATION.sub(lambda m: f"{m[1]}{'endif' if m[2] else 'if true'}{m[3]}", source)
        environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
        known = environment.filters
        environment.filters = {name: known[name] for name in _FILTERS.split()} | _OWN_FILTERS
        environment.globals = {
            name: environment.globals[name] for name in ("dict", "namespace", "range")
        } | {"raise_exception": _raise_exception}  # fmt: skip
        environment.finalize = _written
        try:
            tree = _Rewriter().visit(environment.parse(source))
            self._template = Template.from_code(environment, environment.compile(tree), environment.globals)
        except (TemplateError, RecursionError, ValueError, TypeError, AssertionError) as error:
            raise TemplateFailedError(_words(error)) from None

    def render(self, variables: Mapping[str, Any]) -> str:
        """The text. Raises TemplateRefusedError, TemplateFailedError."""
        budget = _Budget(time.thread_time() + SECONDS)
        try:
            return self._template.render({**variables, _BUDGET: budget})
        except TemplateRefusedError:
            raise
        except Exception as error:  # whatever a foreign program does wrong, in Python's words
            raise TemplateFailedError(_words(error)) from None


_BUDGET = "__budget__"


def _budget(context: Context) -> _Budget:
    found = context.parent[_BUDGET]  # what was given to render: no `set` of the template reaches it
    assert isinstance(found, _Budget)
    return found


class _Sandbox(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"+", "*", "%", "**"})

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        budget = _budget(context)
        if operator == "**" or (operator == "%" and isinstance(left, str) and _WIDTH.search(left)):
            raise SecurityError(f"its use of {operator} can build too much")
        if operator == "*":
            sizes = [len(value) for value in (left, right) if isinstance(value, str | list | tuple)]
            times = [value for value in (left, right) if isinstance(value, int)]
            if sizes and times and sizes[0] * times[0] > LARGEST:
                raise SecurityError(f"it builds a value of more than {LARGEST:,} characters")
        return budget.weighed(super().call_binop(context, operator, left, right))

    def call(self, context: Context, obj: Any, *args: Any, **kwargs: Any) -> Any:
        budget = _budget(context)
        budget.tick()
        if isinstance(obj, BuiltinMethodType) and isinstance(obj.__self__, str):
            if obj.__name__ not in _METHODS:
                raise SecurityError(f"it calls {obj.__name__} of a text")
            if obj.__name__ == "replace":
                return _replace(context, obj.__self__, *args, **kwargs)
            if obj.__name__ == "join":
                [values] = args
                return _join(context, values, obj.__self__)
        if budget.depth == _DEEPEST:
            raise SecurityError(f"it calls more than {_DEEPEST} macros inside each other")
        budget.depth += 1
        try:
            return super().call(context, obj, *args, **kwargs)
        finally:
            budget.depth -= 1

    def wrap_str_format(self, value: Any) -> Any:
        """Where jinja2 stands between a template and `str.format`: a width in it is a number, too."""
        if isinstance(value, BuiltinMethodType) and value.__name__ in ("format", "format_map"):
            raise SecurityError(f"it calls {value.__name__} of a text")
        return None


class _Rewriter(NodeTransformer):
    """Puts the budget between the parts of a template."""

    def visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> Any:
        self.generic_visit(node)
        match node:
            case nodes.For():
                assert isinstance(node.iter, nodes.Expr)
                node.iter = _filtered(node.iter, "__counted")
            case nodes.Concat():
                return _filtered(nodes.List(node.nodes), "join")
            case nodes.TemplateData():
                return nodes.Const(node.data)  # so that it is counted as any other output
            case nodes.Tuple(ctx="load") | nodes.List() | nodes.Dict() | nodes.Filter() | nodes.Call():
                assert isinstance(node, nodes.Expr)
                return _filtered(node, "__weighed")
        return node


def _filtered(node: nodes.Expr, name: str) -> nodes.Expr:
    return nodes.Filter(node, name, [], [], None, None)


def _raise_exception(message: object) -> None:
    raise TemplateRefusedError(str(message)[:300])


@pass_context
def _written(context: Context, value: Any) -> Any:
    budget = _budget(context)
    text = value if isinstance(value, str) else str(budget.weighed(value))
    budget.left -= len(text)
    if budget.left < 0:
        raise SecurityError(f"it writes more than {LARGEST:,} characters")
    return text


@pass_context
def _counted(context: Context, values: Any) -> Any:
    budget = _budget(context)
    known = isinstance(values, str | list | tuple | dict | range)
    # A list stays one, for `loop.last` and `loop.length` look ahead; what is counted is then the look at each item.
    return _Counted(budget, values) if known else budget.counted(values)


class _Counted:
    """A sized iterable whose turns are counted."""

    def __init__(self, budget: _Budget, values: Any) -> None:
        self._budget, self._values = budget, values

    def __len__(self) -> int:
        return len(self._values)

    def __iter__(self) -> Iterator[Any]:
        return self._budget.counted(self._values)


@pass_context
def _weighed(context: Context, value: Any) -> Any:
    return _budget(context).weighed(value)


@pass_context
def _join(context: Context, values: Any, between: str = "", attribute: Any = None) -> str:
    if attribute is not None:
        raise SecurityError("it joins attributes")
    budget = _budget(context)
    items = budget.weighed(list(budget.counted(values)))
    if len(between) * len(items) > LARGEST:
        raise SecurityError(f"it builds a value of more than {LARGEST:,} characters")
    return between.join(map(str, items))


@pass_context
def _replace(context: Context, text: str, old: str, new: str, count: int = -1) -> str:
    text, old, new = str(text), str(old), str(new)
    _budget(context).tick()
    if len(text) + text.count(old) * len(new) > LARGEST:
        raise SecurityError(f"it builds a value of more than {LARGEST:,} characters")
    return text.replace(old, new, count)


@pass_context
def _tojson(context: Context, value: Any, indent: int | None = None, ensure_ascii: bool = False) -> str:
    _budget(context).weighed(value)
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=None if indent is None else min(int(indent), 8))


_OWN_FILTERS = {
    "join": _join, "replace": _replace, "tojson": _tojson, "__weighed": _weighed, "__counted": _counted
}  # fmt: skip


def _words(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0][:200] or type(error).__name__
