"""A GGUF file's header, read as what it is: data from a stranger. Nothing is believed that the file's size denies.

Layout (ggml's docs/gguf.md): the magic, a version, two counts; keys with typed values; then each tensor's name, shape,
type and offset; then, from the next multiple of the alignment, the tensors.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from warmstart.errors import CheckpointError, Where

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_MOST_TENSORS, _MOST_KEYS, _MOST_ITEMS = 100_000, 10_000, 2_000_000
_LONGEST_STRING, _LONGEST_NAME = 1 << 20, 256
_MOST_DIMENSIONS = 4
_HEADER_LIMIT = 256 << 20  # bytes before the tensors
_ALIGNMENT = "general.alignment"

# Scalar value types: how struct reads them. 8 is a string, 9 an array.
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
# Tensor types: numbers in a block, bytes of a block.
_BLOCKS = {
    0: (1, 4),
    1: (1, 2),
    30: (1, 2),  # F32, F16, BF16
    2: (32, 18),
    3: (32, 20),
    6: (32, 22),
    7: (32, 24),
    8: (32, 34),  # Q4_0, Q4_1, Q5_0, Q5_1, Q8_0
    10: (256, 84),
    11: (256, 110),
    12: (256, 144),
    13: (256, 176),
    14: (256, 210),  # Q2_K to Q6_K
}


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """`shape` as the file has it, the fastest dimension first; `start` and `size` in bytes of the file."""

    shape: tuple[int, ...]
    kind: int
    start: int
    size: int


@dataclass(frozen=True, slots=True)
class Gguf:
    """What the header says. Of an array only its length is kept, as an int."""

    metadata: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]


def read_gguf(path: Path) -> Gguf:
    """Read and check the header of a GGUF file; the tensors stay on the disk.

    Raises CheckpointError "gguf-invalid" with the byte where it is wrong: a count, length, shape or offset that the
    file cannot hold, a key or tensor twice, tensors that overlap or leave room between them; "gguf-unsupported" for a
    version or tensor type this reader does not know.

    >>> read_gguf(Path("model.gguf")).metadata["general.architecture"]  # doctest: +SKIP
    'llama'
    """
    with path.open("rb") as file:
        return _Reader(path, file, path.stat().st_size).read()


@dataclass
class _Reader:
    path: Path
    file: BinaryIO
    size: int
    at: int = 0

    def read(self) -> Gguf:
        if self.take(4) != _MAGIC:
            self.refuse("it does not begin as a GGUF file")
        if (version := self.number("<I")) not in _VERSIONS:
            raise self.unsupported(f"its version is {version}, {' and '.join(map(str, _VERSIONS))} are read")
        tensors = self.count(_MOST_TENSORS, "tensors", least=24)
        keys = self.count(_MOST_KEYS, "keys", least=13)
        metadata: dict[str, Any] = {}
        for _ in range(keys):
            key = self.string(_LONGEST_NAME)
            if key in metadata:
                self.refuse(f"the key {key!r} is there twice")
            metadata[key] = self.value()
        infos = self.once([self.tensor() for _ in range(tensors)])
        alignment = metadata.get(_ALIGNMENT, 32)
        if type(alignment) is not int or not 1 <= alignment <= 1 << 16 or alignment & (alignment - 1):
            self.refuse(f"{_ALIGNMENT} is {alignment!r}")
        return Gguf(metadata, self.laid_out(infos, alignment))

    def once(self, infos: list[tuple[str, GgufTensor]]) -> dict[str, GgufTensor]:
        found = dict(infos)
        if len(found) < len(infos):
            self.refuse("a tensor's name is there twice")
        return found

    def tensor(self) -> tuple[str, GgufTensor]:
        name = self.string(_LONGEST_NAME)
        dimensions = self.number("<I")
        if not 1 <= dimensions <= _MOST_DIMENSIONS:
            self.refuse(f"tensor {name!r} has {dimensions} dimensions")
        shape = tuple(self.number("<Q") for _ in range(dimensions))
        kind, offset = self.number("<I"), self.number("<Q")
        if kind not in _BLOCKS:
            raise self.unsupported(f"tensor {name!r} is of type {kind}")
        numbers, width = _BLOCKS[kind]
        total = 1
        for length in shape:
            total *= length
        if total == 0 or shape[0] % numbers or total // numbers * width > self.size:
            self.refuse(f"tensor {name!r} has shape {shape}, which the file cannot hold")
        return name, GgufTensor(shape, kind, offset, total // numbers * width)

    def laid_out(self, infos: Mapping[str, GgufTensor], alignment: int) -> dict[str, GgufTensor]:
        """The tensors with their places in the file, which they fill from the header to the end."""
        base = end = _aligned(self.at, alignment)
        placed = {}
        for name, info in sorted(infos.items(), key=lambda item: item[1].start):
            start = base + info.start
            if start != end or start + info.size > self.size:
                self.refuse(f"tensor {name!r} is said to stand at byte {start}, {end} is its place")
            placed[name] = GgufTensor(info.shape, info.kind, start, info.size)
            end = _aligned(start + info.size, alignment)
        if placed and self.size > end:
            self.refuse(f"{self.size - end:,} bytes follow the last tensor")
        return placed

    def value(self) -> Any:
        kind = self.number("<I")
        if kind == _STRING:
            return self.string(_LONGEST_STRING)
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind != _ARRAY:
            self.refuse(f"there is no value type {kind}")
        kind = self.number("<I")
        if kind in _SCALARS:
            width = struct.calcsize(_SCALARS[kind])
            items = self.count(_MOST_ITEMS, "items", least=width)
            self.skip(items * width)
            return items
        if kind != _STRING:
            self.refuse(f"there is no array of type {kind}")
        items = self.count(_MOST_ITEMS, "items", least=8)
        for _ in range(items):
            self.string(_LONGEST_STRING)
        return items

    def count(self, most: int, what: str, *, least: int) -> int:
        """A count of things that take at least so many bytes each."""
        found = self.number("<Q")
        if found > most or found * least > self.size - self.at:
            self.refuse(f"{found:,} {what} cannot be in the {self.size - self.at:,} bytes that follow")
        return found

    def string(self, longest: int) -> str:
        length = self.number("<Q")
        if length > min(longest, self.size - self.at):
            self.refuse(f"a text of {length:,} bytes cannot be in the {self.size - self.at:,} that follow")
        try:
            return self.take(length).decode()
        except UnicodeDecodeError:
            self.refuse("a text is not UTF-8")

    def number(self, form: str) -> Any:
        [value] = struct.unpack(form, self.take(struct.calcsize(form)))
        return value

    def take(self, length: int) -> bytes:
        self.pass_over(length)
        return self.file.read(length)

    def skip(self, length: int) -> None:
        self.pass_over(length)
        self.file.seek(length, 1)

    def pass_over(self, length: int) -> None:
        if self.at + length > min(self.size, _HEADER_LIMIT):
            self.refuse("it ends inside its header")
        self.at += length

    def refuse(self, what: str) -> NoReturn:
        raise CheckpointError(
            "gguf-invalid",
            f"this GGUF file is damaged or lies: {what}",
            where=Where(source=str(self.path), offset=self.at),
            fix="download the file again from its publisher",
        )

    def unsupported(self, what: str) -> CheckpointError:
        return CheckpointError(
            "gguf-unsupported",
            f"this GGUF file is of a kind that is not read: {what}",
            where=Where(source=str(self.path), offset=self.at),
            fix="use a file of version 3 in F32, F16, BF16, Q4_0 to Q8_0 or Q2_K to Q6_K",
        )


def _aligned(place: int, alignment: int) -> int:
    return -(-place // alignment) * alignment
