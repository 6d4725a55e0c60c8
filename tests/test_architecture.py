"""The rules of the house, read from the source: who may import whom and when, what no file may do, how large it may be.

The levels are data (`LEVELS`); `docs/architecture.md` tells why. A failure lists every violation as file:line.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

import error_codes

SRC = Path(__file__).parent.parent / "src"
FILES = sorted(SRC.rglob("*.py"))

# From the ground up: a part imports what is below it, or itself; never what stands beside or above it.
LEVELS = (
    ("errors",),
    ("display", "durable", "features", "randomness"),
    ("provenance", "tokenization"),
    ("rows", "batching", "metrics"),
    ("tasks",),
    ("checkpoints", "engine"),
    ("training", "evaluation", "report"),
    ("pipeline",),
    ("verbs",),
    ("serving", "scaleout"),
    ("cli",),
    ("__main__",),
)
LEVEL = {part: height for height, parts in enumerate(LEVELS) for part in parts}

# Parts that must be usable without torch and transformers.
LIGHT = ("errors", "display", "features", "randomness", "provenance", "tokenization", "batching", "rows", "metrics")
LIGHT += ("durable", "tasks", "evaluation", "report", "pipeline")
HEAVY = {"torch", "transformers", "peft", "sentence_transformers", "datasets", "pandas", "polars"}

# The four seams at which an import may wait until it is needed. (Tasks and rows: see `_task_may` and `_rows_may`.)
SEAMS = ("__init__.py", "cli/", "checkpoints/__init__.py", "engine/__init__.py")
# Stands in for functions of transformers, whose classes it must know and whose keywords are open.
UNPADDING = tuple(
    f"engine/{name}.py"
    for name in (
        *("unpad", "packed_call", "packed_attention", "packed_layer", "prepacked_layer", "by_length", "first_token"),
        *("stand_ins", "lower_states", "graph_packing", "packed_stack"),
    )
)
# Overrides methods of jinja2, whose keywords are open.
SANDBOX = "tasks/chat_sandbox.py"
TASK_FUNCTIONS = {"forward", "infer", "loss"}

UNSAFE_MODULES = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
UNSAFE_CALLS = {"eval", "exec", "compile", "__import__"}

MOST_LINES, MOST_FUNCTION_LINES = 400, 80
MOST_MODULES_AT_IMPORT = 40


@dataclass(frozen=True)
class Import:
    """One imported module, and the function it waits in, if any."""

    file: Path
    line: int
    module: str
    function: str | None

    @property
    def top(self) -> str:
        return self.module.partition(".")[0]

    def __str__(self) -> str:
        return f"{_place(self.file)}:{self.line} imports {self.module}"


@cache
def _tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"), str(file))


def _place(file: Path) -> str:
    return file.relative_to(SRC / "warmstart").as_posix()


def _module(file: Path) -> str:
    parts = file.relative_to(SRC).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _part(module: str) -> str:
    """`warmstart.rows.read` is of the part `rows`; `warmstart` itself is the part ``."""
    return module.split(".")[1] if "." in module else ""


MODULES = {_module(file): file for file in FILES}


def _imports(file: Path) -> list[Import]:
    found: list[Import] = []

    def visit(node: ast.AST, function: str | None) -> None:
        for child in ast.iter_child_nodes(node):
            inner = child.name if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) else function
            found.extend(Import(file, child.lineno, name, function) for name in _imported(child, file))
            visit(child, inner)

    visit(_tree(file), None)
    return found


def _imported(node: ast.AST, file: Path) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            package = _module(file).split(".") + ([] if file.name != "__init__.py" else ["_"])
            base = ".".join([*package[: -node.level], *([base] if base else [])])
        # `from warmstart import metrics` imports a module, `from warmstart.errors import DataError` a name.
        return [full if (full := f"{base}.{alias.name}") in MODULES else base for alias in node.names]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "import_module":
        first = node.args[0]
        return [first.value if isinstance(first, ast.Constant) else "dynamic"]
    return []


def _ours(file: Path) -> list[Import]:
    return [found for found in _imports(file) if found.top == "warmstart"]


def _listed(violations: list[str]) -> str:
    return "\n" + "\n".join(violations)


# --- directions ---------------------------------------------------------------------------------------------------


def test_every_part_has_a_level() -> None:
    assert sorted({_part(module) for module in MODULES} - set(LEVEL) - {""}) == []


def test_imports_point_down_only() -> None:
    wrong = [
        f"{found}: {_part(_module(file))} stands on level {LEVEL[_part(_module(file))]}, "
        f"{_part(found.module) or 'the public surface'} on {_height(found.module)}"
        for file in FILES
        if (part := _part(_module(file)))  # warmstart/__init__ may name everything
        for found in _ours(file)
        if _part(found.module) != part and _height(found.module) >= LEVEL[part]
    ]
    assert not wrong, _listed(wrong)


def _height(module: str) -> float:
    """`warmstart` itself, the public surface, stands between the verbs and what is built on them."""
    return LEVEL[_part(module)] if _part(module) else LEVEL["verbs"] + 0.5


def test_no_cycle_between_modules() -> None:
    edges = {
        module: {f.module for f in _ours(file) if f.module in MODULES and f.function is None} - {module}
        for module, file in MODULES.items()
        if module != "warmstart"
    }
    state: dict[str, int] = {}
    cycles: list[str] = []

    def visit(module: str, path: list[str]) -> None:
        state[module] = 1
        for below in sorted(edges.get(module, ())):
            if state.get(below) == 1:
                cycles.append(" -> ".join([*path[path.index(below) :], below]))
            elif below not in state:
                visit(below, [*path, below])
        state[module] = 2

    for module in edges:
        if module not in state:
            visit(module, [module])
    assert not cycles, _listed(cycles)


def test_imports_wait_only_at_the_named_seams() -> None:
    wrong = [
        f"{found} inside {found.function}()"
        for file in FILES
        for found in _imports(file)
        if found.function and not (_place(file).startswith(SEAMS) or _task_may(file, found) or _rows_may(file, found))
    ]
    assert not wrong, _listed(wrong)


def _task_may(file: Path, found: Import) -> bool:
    return _place(file).startswith("tasks/") and found.top == "torch" and found.function in TASK_FUNCTIONS


def _rows_may(file: Path, found: Import) -> bool:
    """docs/decisions/0002: reading JSONL, CSV and text must not pay for pyarrow."""
    return _place(file).startswith("rows/") and found.top == "pyarrow"


def test_light_parts_name_nothing_heavy_at_module_level() -> None:
    wrong = [
        str(found)
        for file in FILES
        if _part(_module(file)) in LIGHT
        for found in _imports(file)
        if found.top in HEAVY and not found.function
    ]
    assert not wrong, _listed(wrong)


def test_only_checkpoints_imports_transformers_and_only_its_adapters_peft() -> None:
    wrong = [
        str(found)
        for file in FILES
        for found in _imports(file)
        if (found.top == "transformers" and not _place(file).startswith(("checkpoints/", *UNPADDING)))
        or (found.top == "peft" and _place(file) != "checkpoints/adapters.py")
    ]
    assert not wrong, _listed(wrong)


def test_tasks_do_not_import_each_other() -> None:
    named = {found.module for found in _ours(SRC / "warmstart/tasks/__init__.py") if _part(found.module) == "tasks"}
    registered = named - {"warmstart.tasks.contract"}
    assert registered >= {"warmstart.tasks.text_classification", "warmstart.tasks.sentence_embedding"}
    wrong = [
        str(found)
        for file in FILES
        if _place(file).startswith("tasks/") and file.name != "__init__.py"
        for found in _ours(file)
        if found.module in registered
    ]
    assert not wrong, _listed(wrong)


# --- what importing does ------------------------------------------------------------------------------------------


def _run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_warmstart_is_small() -> None:
    loaded = _run("import sys; before = set(sys.modules); import warmstart; print(*set(sys.modules) - before)").split()
    assert len(loaded) <= MOST_MODULES_AT_IMPORT, sorted(loaded)
    assert not {"numpy", "pyarrow", "pydantic", "click", "rich", "torch", "transformers"} & set(loaded)


def test_light_parts_load_nothing_heavy() -> None:
    """Not only by their own imports: by anything they pull in."""
    names = ", ".join(f"warmstart.{part}" for part in LIGHT)
    code = f"import sys, warmstart, {names}; print(*({HEAVY!r} & set(sys.modules)))"
    assert _run(code) == ""


def test_public_names_keep_their_kind_after_every_module_is_imported() -> None:
    """A module `warmstart/train.py` would take the place of the function `warmstart.train` once imported."""
    code = """
import importlib, pkgutil, types, warmstart as ws
before = {name: getattr(ws, name) for name in ws.__all__}
assert sorted(ws.__all__) == list(ws.__all__) and set(ws.__all__) <= set(dir(ws))
for module in pkgutil.walk_packages(ws.__path__, "warmstart."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
print(*[n for n, was in before.items() if getattr(ws, n) is not was or isinstance(was, types.ModuleType)])
"""
    assert _run(code) == ""


def test_an_unknown_name_is_an_attribute_error() -> None:
    import warmstart

    with pytest.raises(AttributeError, match="trian"):
        warmstart.trian  # noqa: B018


def test_nothing_happens_at_import() -> None:
    """At module level there are imports, definitions, names and docstrings; no bare call."""
    wrong = [
        f"{_place(file)}:{node.lineno}"
        for file in FILES
        for node in _tree(file).body
        if not isinstance(node, _QUIET) and not _is_docstring(node) and not _is_main_or_types(node)
    ]
    assert not wrong, _listed(wrong)


_QUIET = (
    ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign,
    ast.AugAssign, ast.TypeAlias if sys.version_info >= (3, 12) else ast.Assign,
)  # fmt: skip


def _is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _is_main_or_types(node: ast.stmt) -> bool:
    if not isinstance(node, ast.If):
        return False
    test = ast.unparse(node.test)
    return test in {"TYPE_CHECKING", "typing.TYPE_CHECKING", "__name__ == '__main__'"} or test.startswith("sys.")


# --- what no file may do ------------------------------------------------------------------------------------------


def _nodes(kind: type[ast.AST]) -> Iterator[tuple[str, ast.AST]]:
    for file in FILES:
        for node in ast.walk(_tree(file)):
            if isinstance(node, kind):
                yield f"{_place(file)}:{node.lineno}", node  # type: ignore[attr-defined]


def test_no_pickle() -> None:
    wrong = [str(found) for file in FILES for found in _imports(file) if found.top in UNSAFE_MODULES]
    for place, node in _nodes(ast.Call):
        assert isinstance(node, ast.Call)
        name = ast.unparse(node.func)
        options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if name in UNSAFE_CALLS or name in {"torch.load", "torch.save", "pd.read_pickle", "np.load", "numpy.load"}:
            wrong.append(f"{place} calls {name}")
        if options.get("trust_remote_code", "False") != "False" or options.get("allow_pickle", "False") != "False":
            wrong.append(f"{place} trusts code: {ast.unparse(node)[:80]}")
        if options.get("shell", "False") != "False":
            wrong.append(f"{place} starts a shell")
    assert not wrong, _listed(wrong)


def test_no_open_ended_keywords_in_public_signatures() -> None:
    wrong = [
        f"{place} {node.name}(**{node.args.kwarg.arg})"
        for kind in (ast.FunctionDef, ast.AsyncFunctionDef)
        for place, node in _nodes(kind)
        if isinstance(node, kind)
        and node.args.kwarg
        and (not node.name.startswith("_") or node.name.startswith("__"))
        and not place.startswith((*UNPADDING, SANDBOX))
    ]
    assert not wrong, _listed(wrong)


def test_no_probing_and_no_global_statement() -> None:
    wrong = [f"{place} global" for place, _ in _nodes(ast.Global)]
    for place, node in _nodes(ast.Call):
        assert isinstance(node, ast.Call)
        name = ast.unparse(node.func)
        if name == "hasattr" or (name == "getattr" and len(node.args) == 3):
            wrong.append(f"{place} {ast.unparse(node)[:80]}")
    assert not wrong, _listed(wrong)


def test_classes_are_abstract_or_final() -> None:
    """No class of ours is built on a concrete one of ours; the tree of errors is the exception."""
    concrete = {
        node.name
        for file in FILES
        for node in ast.walk(_tree(file))
        if isinstance(node, ast.ClassDef) and not {"Protocol", "ABC"} & {_last_name(base) for base in node.bases}
    }
    wrong = [
        f"{place} {node.name}({ast.unparse(base)})"
        for place, node in _nodes(ast.ClassDef)
        if isinstance(node, ast.ClassDef) and not place.startswith("errors.py")
        for base in node.bases
        if _last_name(base) in concrete
    ]
    assert not wrong, _listed(wrong)


def _last_name(base: ast.expr) -> str:
    return ast.unparse(base).partition("[")[0].rpartition(".")[2]


# --- size ---------------------------------------------------------------------------------------------------------


def test_files_and_functions_are_short() -> None:
    wrong = [
        f"{_place(file)} has {lines} lines"
        for file in FILES
        if (lines := len(file.read_text(encoding="utf-8").splitlines())) > MOST_LINES
    ]
    for kind in (ast.FunctionDef, ast.AsyncFunctionDef):
        for place, node in _nodes(kind):
            assert isinstance(node, kind)
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > MOST_FUNCTION_LINES:
                wrong.append(f"{place} {node.name} has {lines} lines")
    assert not wrong, _listed(wrong)


# --- error codes --------------------------------------------------------------------------------------------------


def test_every_error_code_can_be_read_from_the_source() -> None:
    uses, unread = error_codes.collect()
    odd = [f"{use.place} {use.code!r}" for use in uses if not error_codes.SLUG.fullmatch(use.code)]
    assert not unread + odd, _listed(unread + odd)
    assert len(uses) > 100


def test_every_error_code_has_an_entry_and_every_entry_a_code() -> None:
    """`python tests/error_codes.py --write` adds what is missing."""
    codes = {use.code for use in error_codes.collect()[0]}
    entries = error_codes.documented()
    assert len(entries) == len(set(entries)), "an entry stands twice"
    assert sorted(codes - set(entries)) == [], "codes without an entry in docs/errors.md"
    assert sorted(set(entries) - codes) == [], "entries without a code"
