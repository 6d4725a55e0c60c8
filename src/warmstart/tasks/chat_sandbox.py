"""Rendering a checkpoint's chat template, which is a program of somebody else's, as a closed world.

jinja2 parses and compiles; what runs then is ours, by lists of what is allowed, and nothing else is there:

- syntax: the nodes of `_SYNTAX`; no include, no block, no call block, no power;
- values: text, numbers, None, lists, tuples, dicts and ranges, as JSON brings them, `namespace`, `loop` and macros.
  No Markup, whose methods are Python functions, and so lead to everything: `safe` gives plain text;
- attributes: `METHODS`, `_LOOP`, and keys. Python's `getattr` is asked of `loop` and of namespaces only;
- filters, tests, globals: those of `chat_functions` and `chat_filters`, none of jinja2's own.

Work and memory cannot be bounded from outside within a process. So every step looks at the clock, every value that is
built is paid for out of one budget a rendering, and what could be large is measured before it is built.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from jinja2 import Template, Undefined, nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context, LoopContext, Macro
from jinja2.sandbox import SandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from warmstart.tasks.chat_filters import FILTERS, TESTS
from warmstart.tasks.chat_functions import (
    BUDGET,
    GLOBALS,
    LARGEST,
    METHODS,
    SECONDS,
    Budget,
    TemplateRefusedError,
    are_numbers,
    budget_of,
    items_of,
    text_of,
)

LONGEST_SOURCE = 32 << 10  # characters: compiling has no clock, and takes longest over one long list

_DEEPEST = 50  # macros inside each other
_GENERATION = re.compile(r"(\{%-?\s*)(end)?generation(\s*-?%\})")  # a mark of transformers' own, around answers
_DATE_IF_ANY = re.compile(r"strftime_now\s+is\s+(not\s+)?defined")
_SYNTAX = frozenset(
    [
        *(nodes.Template, nodes.Output, nodes.TemplateData, nodes.If, nodes.For, nodes.Break, nodes.Continue),
        *(nodes.Assign, nodes.AssignBlock, nodes.With, nodes.Macro, nodes.Name, nodes.NSRef, nodes.Const),
        *(nodes.List, nodes.Tuple, nodes.Dict, nodes.Pair, nodes.Keyword, nodes.CondExpr),
        *(nodes.Getattr, nodes.Getitem, nodes.Slice, nodes.Call, nodes.Filter, nodes.Test),
        *(nodes.Compare, nodes.Operand, nodes.And, nodes.Or, nodes.Not, nodes.Neg, nodes.Pos),
        *(nodes.Add, nodes.Sub, nodes.Mul, nodes.Div, nodes.FloorDiv, nodes.Mod, nodes.Concat),
    ]
)
_LOOP = frozenset(
    ["index", "index0", "revindex", "revindex0", "first", "last", "length", "previtem", "nextitem", "depth", "depth0"]
)


class TemplateFailedError(Exception):
    """The template is wrong, does what it may not, or does too much."""


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
        # Not optimized: jinja2 would work out what is constant now, where there is no budget.
        environment = _Closed(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"], optimized=False
        )
        environment.filters = {**FILTERS, "__paid": _paid, "__held": _held, "__counted": _counted}
        environment.tests = dict(TESTS)
        environment.globals = {name: _Callable(function) for name, function in GLOBALS.items()}
        if _DATE_IF_ANY.search(source):  # it has a date of its own, so that prompts stay the same from day to day
            del environment.globals["strftime_now"]
        environment.finalize = _written
        try:
            tree = _Rewriter().visit(environment.parse(source))
            self._template = Template.from_code(environment, environment.compile(tree), environment.globals)
        except Exception as error:  # a source can be wrong in any way: too deep for Python's compiler, say
            raise TemplateFailedError(_words(error)) from None

    def render(self, variables: Mapping[str, Any]) -> str:
        """The text. `variables`: what JSON can carry. Raises TemplateRefusedError, TemplateFailedError."""
        budget = Budget(time.thread_time() + SECONDS)
        try:
            return self._template.render({**json.loads(json.dumps(variables)), BUDGET: budget})
        except TemplateRefusedError:
            raise
        except Exception as error:  # whatever a foreign program does wrong, in Python's words
            raise TemplateFailedError(_words(error)) from None


@dataclass(frozen=True, eq=False, slots=True)
class _Callable:
    """A function of ours as a template holds it: it can be called, and has nothing else."""

    function: Callable[..., Any]
    owner: tuple[Any, ...] = ()  # of a method: the value whose it is


class _Closed(SandboxedEnvironment):
    """What a compiled template asks of its environment, answered from the lists alone."""

    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "%", "**"})

    def getattr(self, obj: Any, attribute: str) -> Any:
        if attribute.startswith("_"):
            raise SecurityError(f"it asks for {attribute}")
        method = METHODS.get(type(obj), {}).get(attribute)
        if method is not None:
            return _Callable(method, (obj,))
        if type(obj) is dict and attribute in obj:
            return obj[attribute]
        if isinstance(obj, Undefined) or (type(obj) is LoopContext and attribute in _LOOP):
            return getattr(obj, attribute)  # of what is undefined: jinja2's own error
        if type(obj) is Namespace:
            try:
                return getattr(obj, attribute)
            except AttributeError:
                pass
        return self.undefined(obj=obj, name=attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        if isinstance(obj, Undefined) or type(obj) in (dict, str, list, tuple, range):
            try:
                return obj[argument]  # of what is undefined: jinja2's own error
            except (LookupError, TypeError):
                pass
        return self.getattr(obj, argument) if type(argument) is str else self.undefined(obj=obj, name=argument)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        budget, numbers = budget_of(context), are_numbers(left, right)
        if operator == "**" or (operator == "%" and not numbers):
            raise SecurityError(f"its use of {operator} can build too much")
        if operator == "*" and not numbers:
            value, times = (right, left) if isinstance(left, int) else (left, right)
            if type(value) not in (str, list, tuple) or not isinstance(times, int):
                raise SecurityError("it multiplies what is no number")
            budget.fits(characters=len(value) * times, memory=8 * len(value) * times)
        return budget.paid(super().call_binop(context, operator, left, right), shallow=True)

    def call(
        self, context: Context, obj: Any, /, *args: Any, _loop_vars: Any = None, _block_vars: Any = None, **kwargs: Any
    ) -> Any:
        """`_loop_vars` and `_block_vars` are jinja2's, which says by them what a function could see."""
        budget = budget_of(context)
        budget.tick()
        if type(obj) is _Callable:
            return obj.function(context, *obj.owner, *args, **kwargs)
        if isinstance(obj, Undefined):
            return obj()  # jinja2's own error
        if type(obj) is not Macro:
            raise SecurityError(f"it calls a {type(obj).__name__}")
        if budget.depth == _DEEPEST:
            raise SecurityError(f"it calls more than {_DEEPEST} macros inside each other")
        budget.depth += 1
        try:
            return obj(*args, **kwargs)
        finally:
            budget.depth -= 1


class _Rewriter(NodeTransformer):
    """Refuses what is not of `_SYNTAX`, and puts the budget between the parts of a template."""

    def visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> Any:
        if type(node) not in _SYNTAX:
            raise SecurityError(f"it uses {type(node).__name__}, which no chat template needs")
        if isinstance(node, nodes.Name | nodes.NSRef | nodes.Filter | nodes.Test) and node.name.startswith("__"):
            raise SecurityError(f"it names {node.name}")
        self.generic_visit(node)
        match node:
            case nodes.Const():
                Budget(float("inf")).paid(node.value)  # no longer a number than others
            case nodes.For(recursive=True):
                raise SecurityError("it has a loop that calls itself")
            case nodes.For():
                node.iter = _filtered(node.iter, "__counted")
            case nodes.Concat():
                return _filtered(_filtered(nodes.List(node.nodes), "join"), "__paid")
            case nodes.TemplateData():
                return nodes.Const(node.data)  # so that it is counted as any other output
            case nodes.Filter() | nodes.Call():
                return _filtered(node, "__paid")
            case nodes.Tuple(ctx="load") | nodes.List() | nodes.Dict() | nodes.Getitem(arg=nodes.Slice()):
                return _filtered(node, "__held")
            case nodes.Compare() | nodes.Test():
                return _filtered(node, "__held")
        return node


def _filtered(node: nodes.Node, name: str) -> nodes.Expr:
    assert isinstance(node, nodes.Expr)
    return nodes.Filter(node, name, [], [], None, None)


@pass_context
def _paid(context: Context, value: Any) -> Any:
    return budget_of(context).paid(value)


@pass_context
def _held(context: Context, value: Any) -> Any:
    return budget_of(context).paid(value, shallow=True)


@pass_context
def _written(context: Context, value: Any) -> str:
    text, budget = text_of(context, value), budget_of(context)
    budget.output -= len(text)
    if budget.output < 0:
        raise SecurityError(f"it writes more than {LARGEST:,} characters")
    return text


@pass_context
def _counted(context: Context, values: Any) -> Any:
    # A list stays sized, for `loop.last` and `loop.length` look ahead.
    return _Counted(budget_of(context), values if type(values) in (str, dict, range) else items_of(context, values))


class _Counted:
    """A sized iterable whose turns are paid for."""

    def __init__(self, budget: Budget, values: Any) -> None:
        self._budget, self._values = budget, values

    def __len__(self) -> int:
        return len(self._values)

    def __iter__(self) -> Iterator[Any]:
        return self._budget.counted(self._values)


def _words(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0][:200] or type(error).__name__
