"""What a result came from: fingerprints of files, folders, rows and the environment, with secrets left out.

Every digest is SHA-256 in lower-case hex. Nothing here imports torch or transformers: versions are read from the
metadata of the installed packages.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
import os
import platform
import re
import stat
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np

from warmstart.errors import DataError

PACKAGES = (
    "warmstart", "torch", "transformers", "tokenizers", "safetensors", "huggingface_hub", "numpy", "pyarrow",
    "sentence-transformers", "datasets", "peft", "openvino", "onnxruntime",
)  # fmt: skip

# Read by the libraries below us in ways that can change a result or its speed. Any other variable stays private.
VARIABLES = (
    "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "CUBLAS_WORKSPACE_CONFIG",
    "PYTHONHASHSEED", "TOKENIZERS_PARALLELISM", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "WORLD_SIZE", "RANK",
)  # fmt: skip

# What decides which kernels run, hence the last digits and the speed; `asimd` is NEON.
_CPU_FLAGS = (
    "avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_tile", "amx_int8", "amx_bf16",
    "asimd", "asimddp", "bf16", "i8mm", "sve",
)  # fmt: skip

_HIDDEN = "[redacted]"
# `token` alone means a credential, `pad_token` and `max_tokens` do not.
_SECRET_NAME = (
    r"(?:[\w.-]*(?:secret|passw(?:or)?d|passphrase|(?:api|access|private)[_-]?key|credential|authorization)s?"
    r"|[\w.-]*(?:hf|hub|face|access|auth|api|bearer|refresh|session|git(?:hub|lab)|client)[._-]?token|(?:x-)?token)"
)
_SECRETS = re.compile(
    r"""
    \b(?: hf_[A-Za-z0-9]{16,} | sk-[A-Za-z0-9_-]{16,} | gh[pousr]_[A-Za-z0-9]{16,} | github_pat_\w{16,}
        | glpat-[\w-]{16,} | xox[a-z]-[\w-]{10,} | (?:AKIA|ASIA)[A-Z0-9]{16} | AIza[\w-]{30,}
        | eyJ[\w-]{8,}\.[\w-]+\.[\w-]* )                                # keys of known shapes, JSON web tokens
    | (?<=://)[^/\s@]+(?=@)                                             # user:password in a URL
    | (?<=bearer\ )[^\s"',;]+ | (?<=basic\ )[A-Za-z0-9+/=]{8,}          # HTTP credentials
    """,
    re.VERBOSE | re.IGNORECASE,
)
_ASSIGNED = re.compile(
    rf"""((?<![\w.-]){_SECRET_NAME}["']?\s*[=:]\s*["']?)(?!\[redacted\]|bearer\b|basic\b)[^\s"'&,;]+""", re.IGNORECASE
)
_OPTION = re.compile(rf"--?{_SECRET_NAME}", re.IGNORECASE)


def file_digest(path: str | Path) -> str:
    """SHA-256 of a file's bytes, read in pieces of 1 MB.

    Raises DataError `file-unreadable` if the file is missing, is no regular file (a FIFO is refused, never opened) or
    may not be read.

    >>> import tempfile; name = tempfile.mkstemp()[1]
    >>> file_digest(name)[:16]
    'e3b0c44298fc1c14'
    """
    try:
        if not stat.S_ISREG(Path(path).stat().st_mode):
            raise _unreadable(path, "it is not a regular file")
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise _unreadable(path, error.strerror or str(error)) from None


def folder_digest(path: str | Path) -> str:
    """SHA-256 over the relative names and digests of all files below a folder, in the order of their names.

    Where the folder lies and when its files were written do not count, nor do empty folders. Links to files are
    followed (a hub cache is made of them), links to folders are not, so a loop ends. Raises DataError
    `file-unreadable`.
    """
    root = Path(path)
    if not root.is_dir():
        raise _unreadable(root, "it is not a folder")
    total = hashlib.sha256()
    for name in sorted(_files_below(root)):
        total.update(canonical_json([name, file_digest(root / name)]).encode() + b"\n")
    return total.hexdigest()


def json_digest(value: object) -> str:
    """SHA-256 of a value's canonical JSON: what a configuration is compared by.

    >>> json_digest({"a": 1, "b": 2}) == json_digest({"b": 2, "a": 1})
    True
    """
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def canonical_json(value: object) -> str:
    """JSON with sorted keys, no spaces and ASCII only, so that equal values give equal text.

    Numpy values become plain ones, dates ISO text, decimals text, bytes the digest of their content, NaN and the
    infinities those names as text. Raises DataError `not-json` for anything else: a `repr` may hold an address.

    >>> canonical_json({"b": np.int64(1), "a": "é"})
    '{"a":"\\\\u00e9","b":1}'
    """
    return json.dumps(_plain(value), sort_keys=True, separators=(",", ":"), allow_nan=False)


class RowsDigest:
    """Two digests of a stream of rows, updated row by row in constant memory.

    `ordered` depends on the rows and their order, `unordered` on the rows and how often each occurs. The latter is the
    sum of the rows' digests modulo 2**256 (AdHash: M. Bellare and D. Micciancio, EUROCRYPT '97), which tells honest
    data apart; it is no defence against rows made to collide.

    >>> a, b = RowsDigest(), RowsDigest()
    >>> for row in ({"text": "x"}, {"text": "y"}): a.update(row)
    >>> for row in ({"text": "y"}, {"text": "x"}): b.update(row)
    >>> a.ordered == b.ordered, a.unordered == b.unordered, a.count
    (False, True, 2)
    """

    def __init__(self) -> None:
        self.count = 0
        self._ordered = hashlib.sha256()
        self._sum = 0

    def update(self, row: Mapping[str, Any]) -> None:
        """Take in one more row. Raises DataError `not-json` as `canonical_json` does."""
        digest = hashlib.sha256(canonical_json(row).encode()).digest()
        self.count += 1
        self._ordered.update(digest)
        self._sum = (self._sum + int.from_bytes(digest, "big")) % (1 << 256)

    @property
    def ordered(self) -> str:
        """The digest that sees order, of the rows so far."""
        return self._ordered.hexdigest()

    @property
    def unordered(self) -> str:
        """The digest that does not, of the rows so far."""
        return f"{self._sum:064x}"

    def as_dict(self) -> dict[str, object]:
        """Count and both digests, for provenance.json."""
        return {"rows": self.count, "ordered": self.ordered, "unordered": self.unordered}


def rows_digest(rows: Iterable[Mapping[str, Any]]) -> dict[str, object]:
    """Count and both digests of all the rows: `RowsDigest` in one call."""
    digest = RowsDigest()
    for row in rows:
        digest.update(row)
    return digest.as_dict()


def environment(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """The machine, the interpreter, the packages and the call (`sys.argv` if not given), JSON-able.

    Neither host, user nor paths of the machine are recorded except as the call names them; of the environment only the
    variables that the libraries below us read (`VARIABLES`); the call's secrets are replaced as `redact_args` does.

    >>> environment(["warmstart", "--token", "abc"])["command"]
    ['warmstart', '--token', '[redacted]']
    """
    model, flags = _cpu()
    return {
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": {"model": model, "flags": flags, "cores": os.cpu_count(), "usable": _usable_cores()},
        "packages": {name: _version(name) for name in PACKAGES},
        "variables": {name: redact(os.environ[name]) for name in VARIABLES if name in os.environ},
        "command": redact_args(sys.argv if argv is None else argv),
    }


def redact(text: str) -> str:
    """The text without secrets: keys of known shapes, passwords in URLs, values given to a name like `token=`.

    >>> redact("https://me:pw@example.org/?api_key=abc&x=1")
    'https://[redacted]@example.org/?api_key=[redacted]&x=1'
    """
    return _ASSIGNED.sub(rf"\1{_HIDDEN}", _SECRETS.sub(_HIDDEN, text))


def redact_args(args: Sequence[str]) -> list[str]:
    """Each argument redacted, and whole the one after an option like `--token` or `--api-key`.

    The name of a file of secrets (`--api-key-file F`) is no secret and stays.
    """
    out: list[str] = []
    secret_next = False
    for arg in args:
        out.append(_HIDDEN if secret_next else redact(arg))
        secret_next = not secret_next and _OPTION.fullmatch(arg) is not None
    return out


def _unreadable(path: str | Path, why: str) -> DataError:
    return DataError(
        "file-unreadable",
        f"cannot take a fingerprint: {why}",
        where=str(path),
        fix="check the path and its permissions",
    )


def _files_below(root: Path) -> Iterable[str]:
    for folder, _, names in os.walk(root, followlinks=False):
        for name in names:
            yield (Path(folder) / name).relative_to(root).as_posix()


def _plain(value: object) -> object:
    """The value as what `json.dumps` writes the same way everywhere."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else repr(value)
    if isinstance(value, np.generic | np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, Mapping):
        return {_key(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, bytes | bytearray | memoryview):
        return {"sha256": hashlib.sha256(value).hexdigest()}
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, Decimal | timedelta | Path):
        return str(value)
    raise DataError(
        "not-json",
        f"a {type(value).__name__} cannot be fingerprinted, because it has no fixed JSON form",
        fix="turn it into text, numbers, lists or dicts of these",
    )


def _key(key: object) -> str:
    if isinstance(key, str):
        return key
    raise DataError("not-json", "a field's name must be text", value=key, fix="rename the column to text")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _usable_cores() -> int | None:
    """Cores that this process may run on: fewer than `cores` in a container or under taskset."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()


def _cpu() -> tuple[str, list[str]]:
    """The processor's name and those of its instruction sets that decide which kernels run."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:  # not Linux: the name is all the standard library knows
        return platform.processor() or platform.machine(), []
    fields = dict(re.findall(r"^(model name|flags|Features)\s*:\s*(.*)$", text, re.MULTILINE))
    known = set(f"{fields.get('flags', '')} {fields.get('Features', '')}".split())
    return fields.get("model name") or platform.machine(), [flag for flag in _CPU_FLAGS if flag in known]
