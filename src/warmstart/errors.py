"""Every error a person can meet.

    WarmstartError                exit 1   something failed that no input explains
    ├── UsageError                exit 2   the call itself is wrong: a name, an option, a combination
    ├── DataError                 exit 3   a row, a file of rows, a label
    ├── CheckpointError           exit 4   a checkpoint is missing, damaged, hostile or of the wrong kind
    └── TrainingError             exit 1   a run cannot start or cannot go on

An error says what is wrong, where, what was found there, and what to do next. `code` is stable: programs may match on
it, and `docs/errors.md` has an entry for each. The messages are for people and may change.
"""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable
from dataclasses import dataclass

# Of torch's allocator on a CPU, a file that is mapped, and CUDA; of ONNX Runtime and OpenVINO.
_OUT_OF_MEMORY = (
    *("can't allocate memory", "cannot allocate memory", "out of memory"),
    *("failed to allocate", "bad_alloc", "bad allocation"),
)


@dataclass(frozen=True, slots=True)
class Where:
    """A place in what a person gave us. Every part is optional; `str()` joins the parts that are known.

    `line` counts from 1, `row` from 0 (its position in a list or stream), `offset` is in bytes from the file's start.
    """

    source: str | None = None
    line: int | None = None
    field: str | None = None
    row: int | None = None
    offset: int | None = None

    def __str__(self) -> str:
        parts = [self.source or ""]
        if self.line is not None:
            parts[0] = f"{self.source or 'line'}:{self.line}"
        elif self.row is not None:
            parts.append(f"row {self.row}")
        if self.field is not None:
            parts.append(f"field {self.field!r}")
        if self.offset is not None:
            parts.append(f"byte {self.offset}")
        return ", ".join(part for part in parts if part)


class WarmstartError(Exception):
    """What is wrong (`what`), where (`where`), what was found there (`value`), and the next step (`fix`)."""

    exit_code = 1

    def __init__(
        self, code: str, what: str, *, fix: str, where: Where | str | None = None, value: object = None
    ) -> None:
        self.code = code
        self.what = what
        self.fix = fix
        self.where = Where(source=where) if isinstance(where, str) else where or Where()
        self.value = value
        super().__init__(str(self))

    def __str__(self) -> str:
        lines = [self.what]
        if place := str(self.where):
            lines.append(f"  at:   {place}")
        if self.value is not None:
            lines.append(f"  got:  {shorten(self.value)}")
        lines.append(f"  next: {self.fix}  [{self.code}]")
        return "\n".join(lines)

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.code, self.what, self.fix, self.where, self.value)

    def as_dict(self) -> dict[str, object]:
        """The error as plain JSON-able values, for `--json` output and servers."""
        return {
            "code": self.code,
            "what": self.what,
            "where": str(self.where),
            "value": None if self.value is None else shorten(self.value),
            "next": self.fix,
        }


class UsageError(WarmstartError):
    exit_code = 2


class DataError(WarmstartError):
    exit_code = 3


class CheckpointError(WarmstartError):
    exit_code = 4


class TrainingError(WarmstartError):
    exit_code = 1


def is_out_of_memory(error: BaseException) -> bool:
    """Does an error mean that the computer or the device has not enough memory. Few libraries have a class for that."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    return not isinstance(error, WarmstartError) and any(words in str(error).lower() for words in _OUT_OF_MEMORY)


def _rebuild(kind: type[WarmstartError], code: str, what: str, fix: str, where: Where, value: object) -> WarmstartError:
    return kind(code, what, fix=fix, where=where, value=value)


def shorten(value: object, width: int = 80) -> str:
    """`repr` of a value, cut in the middle to `width` characters. Never builds the repr of a huge string."""
    if isinstance(value, str) and len(value) > 4 * width:
        value = value[: 2 * width] + value[-2 * width :]
    text = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    half = (width - 1) // 2
    return text if len(text) <= width else f"{text[:half]}…{text[-half:]}"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A sentence that offers the nearest of the known names, or lists them all."""
    known = sorted(known)
    near = difflib.get_close_matches(name.lower(), dict.fromkeys(k.lower() for k in known), n=2, cutoff=0.6)
    nearest = [k for name in near for k in known if k.lower() == name]  # the nearest first
    return f"did you mean {' or '.join(nearest)}?" if nearest else f"known: {', '.join(known)}"
