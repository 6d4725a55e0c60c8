"""Every error code that the source can raise, read from its syntax trees; and what docs/errors.md says of them.

    python tests/error_codes.py            lists the codes without an entry and the entries without a code
    python tests/error_codes.py --write    adds a first entry for each missing code, made from its message

A code is the first argument of an error class. Where that is a parameter named `code` of a helper, the codes are the
literals given to the helper; where it is a variable `code`, the literals assigned to it or carried by an exception.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
SRC = ROOT / "src" / "warmstart"
PAGE = ROOT / "docs" / "errors.md"
EXIT = {"WarmstartError": 1, "UsageError": 2, "DataError": 3, "CheckpointError": 4, "TrainingError": 1}
SLUG = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)+")
HEADING = re.compile(r"^## `([^`]+)`$", re.MULTILINE)

_INTRO = """# Errors

Every error has a stable code, printed in brackets at its end and given as `code` in JSON. What follows is one entry a
code. Exit codes: 2 the call is wrong, 3 the data, 4 the checkpoint, 1 anything else.
"""


@dataclass(frozen=True)
class Use:
    """One place that raises a code, or hands it to the helper that does."""

    code: str
    kind: str  # the error class
    place: str  # file:line
    what: str
    fix: str


def collect(src: Path = SRC) -> tuple[list[Use], list[str]]:
    """All uses, and the places whose code cannot be read from the source."""
    uses: list[Use] = []
    unread: list[str] = []
    for path in sorted(src.rglob("*.py")):
        if path.name != "errors.py":
            module = _Module(path, src)
            uses += module.uses
            unread += module.unread
    return uses, unread


def documented(page: Path = PAGE) -> list[str]:
    """The codes that have an entry, in the page's order."""
    return HEADING.findall(page.read_text(encoding="utf-8")) if page.is_file() else []


class _Module:
    """The uses of one file."""

    def __init__(self, path: Path, src: Path) -> None:
        self.name = path.relative_to(src).as_posix()
        self.tree = ast.parse(path.read_text(encoding="utf-8"))
        self.uses: list[Use] = []
        self.unread: list[str] = []
        self.loose: list[tuple[ast.Call, str]] = []
        self.helpers: dict[str, tuple[int, str, str]] = {}  # name -> position of `code`, error class, fix
        self._direct()
        self._through_helpers()
        if self.loose:
            self._through_variables()

    def _direct(self) -> None:
        for function, call in _calls(self.tree):
            kind = _callee(call)
            if kind not in EXIT:
                continue
            first = _argument(call, 0, "code")
            literals = list(_strings(first))
            for code in literals:
                self._add(code, kind, call, _argument(call, 1, "what"), _argument(call, -1, "fix"))
            if literals:
                continue
            names = _parameters(function) if function else []
            if isinstance(first, ast.Name) and function and first.id in names:
                self.helpers[function.name] = (
                    names.index(first.id),
                    kind,
                    self._said(_argument(call, -1, "fix"), call.lineno),
                )
            elif isinstance(first, ast.Name):
                self.loose.append((call, kind))
            else:  # a code that is put together at run time cannot be searched for
                self.unread.append(f"{self.name}:{call.lineno}")

    def _through_helpers(self) -> None:
        waiting = dict(self.helpers)
        while waiting:  # a helper may be called by a helper
            found: dict[str, tuple[int, str, str]] = {}
            for function, call in _calls(self.tree):
                entry = waiting.get(_callee(call))
                if entry is None:
                    continue
                position, kind, fix = entry
                bound = position - (1 if isinstance(call.func, ast.Attribute) else 0)
                given = _argument(call, bound, "code")
                what = _argument(call, bound + 1, "what")
                for code in _strings(given):
                    self._add(code, kind, call, what, _argument(call, -1, "fix"), fix)
                if isinstance(given, ast.Name) and function and function.name not in self.helpers:
                    names = _parameters(function)
                    if given.id in names:
                        found[function.name] = (names.index(given.id), kind, fix)
            self.helpers |= found
            waiting = found

    def _through_variables(self) -> None:
        """Codes that travel in a variable: literals of the file that look like codes, where a code would stand."""
        before = len(self.uses)
        kind = self.loose[0][1]
        for node in ast.walk(self.tree):
            values: list[ast.expr] = []
            if isinstance(node, ast.Tuple):
                values = node.elts
            elif isinstance(node, ast.Call) and _callee(node) not in {*EXIT, *self.helpers}:
                values = node.args
            for value, what, fix in zip(values, values[1:], [*values[2:], None], strict=False):
                for code in _strings(value):
                    if SLUG.fullmatch(code) and " " in _text(what):
                        self._add(code, kind, node, what, fix if " " in _text(fix) else None)
        if len(self.uses) == before:
            self.unread += [f"{self.name}:{call.lineno}" for call, _ in self.loose]

    def _add(
        self, code: str, kind: str, node: ast.AST, what: ast.expr | None, fix: ast.expr | None, other_fix: str = ""
    ) -> None:
        line = getattr(node, "lineno", 0)
        said = [self._said(message, line) for message in (what, fix)]
        self.uses.append(Use(code, kind, f"{self.name}:{line}", said[0], said[1] or other_fix))

    def _said(self, node: ast.expr | None, line: int) -> str:
        """The text of a message; that of a variable is what it was last given, or what the first caller gives."""
        if not isinstance(node, ast.Name):
            return _text(node)
        function = next((f for f in ast.walk(self.tree) if isinstance(f, ast.FunctionDef) and _holds(f, line)), None)
        if function and (value := _assigned(function, node.id, line)):
            return _text(value)
        names = _parameters(function) if function else []
        if function and node.id in names:
            for _, call in _calls(self.tree):
                if _callee(call) == function.name:
                    return _text(_argument(call, names.index(node.id), node.id))
        constants = ast.Module([s for s in self.tree.body if isinstance(s, ast.Assign)], [])
        return _text(_assigned(constants, node.id, line))


def _calls(tree: ast.AST, inside: ast.FunctionDef | None = None) -> Iterator[tuple[ast.FunctionDef | None, ast.Call]]:
    """Every call, with the function it stands in."""
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.Call):
            yield inside, child
        yield from _calls(child, child if isinstance(child, ast.FunctionDef) else inside)


def _parameters(function: ast.FunctionDef) -> list[str]:
    return [a.arg for a in (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)]


def _holds(function: ast.FunctionDef, line: int) -> bool:
    return function.lineno <= line <= (function.end_lineno or 0)


def _callee(call: ast.Call) -> str:
    if isinstance(call.func, ast.Name):
        return call.func.id
    return call.func.attr if isinstance(call.func, ast.Attribute) else ""


def _argument(call: ast.Call, position: int, name: str) -> ast.expr | None:
    for keyword in call.keywords:
        if keyword.arg == name:
            return keyword.value
    return call.args[position] if 0 <= position < len(call.args) else None


def _strings(node: ast.expr | None) -> Iterator[str]:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.IfExp):
        yield from _strings(node.body)
        yield from _strings(node.orelse)


def _text(node: ast.expr | None) -> str:
    """A message as plain text; what it fills in at run time becomes an ellipsis."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
    if isinstance(node, ast.BinOp):
        return _text(node.left) + _text(node.right)
    if isinstance(node, ast.Call):
        return "use a name that the message offers" if _callee(node) == "did_you_mean" else ""
    return _text(node.body) if isinstance(node, ast.IfExp) else ""


def _assigned(tree: ast.AST, name: str, before: int) -> ast.expr | None:
    """What a name was last given above a line, tuples unpacked."""
    found: list[tuple[int, ast.expr]] = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Assign) or node.lineno > before:
            continue
        for target in node.targets:
            if isinstance(target, ast.Name) and target.id == name:
                found.append((node.lineno, node.value))
            elif isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                pairs = zip(target.elts, node.value.elts, strict=False)
                found += [(node.lineno, v) for t, v in pairs if isinstance(t, ast.Name) and t.id == name]
    return max(found, key=lambda pair: pair[0])[1] if found else None


def _entry(uses: list[Use]) -> str:
    """A first entry: which class, what is wrong, what to do next."""
    what = next((use.what for use in uses if use.what), uses[0].code.replace("-", " "))
    fix = next((use.fix for use in uses if use.fix), "")
    kinds = " or ".join(f"`{kind}`, exit {EXIT[kind]}" for kind in sorted({use.kind for use in uses}))
    sentences = [f"{_capital(what)}."] + ([f"Next: {fix.rstrip('.')}."] if fix else [])
    return f"## `{uses[0].code}`\n\n{kinds}. {' '.join(sentences)}\n"


def _capital(text: str) -> str:
    text = text.strip().rstrip(".")
    return text if text.startswith("…") else text[:1].upper() + text[1:]


def main(argv: list[str]) -> int:
    """List what is missing and what is stale, or write the missing entries."""
    uses, unread = collect()
    by_code: dict[str, list[Use]] = {}
    for use in uses:
        by_code.setdefault(use.code, []).append(use)
    known = documented()
    missing, stale = sorted(set(by_code) - set(known)), sorted(set(known) - set(by_code))
    if "--write" in argv:
        text = PAGE.read_text(encoding="utf-8") if PAGE.is_file() else _INTRO
        head, *entries = re.split(r"^(?=## `)", text, flags=re.MULTILINE)
        kept = [entry.rstrip() + "\n" for entry in entries if HEADING.match(entry)[1] not in stale]  # type: ignore[index]
        kept += [_entry(by_code[code]) for code in missing]
        PAGE.write_text("\n".join([head.rstrip() + "\n", *sorted(kept)]), encoding="utf-8")
    for title, names in (("missing", missing), ("stale", stale), ("unread", unread)):
        print(f"{title}: {', '.join(names) or 'none'}")
    return 0 if "--write" in argv or not (missing or stale or unread) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
