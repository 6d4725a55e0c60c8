"""Vectors out: one `.npy` matrix, written row by row, which numpy and `ws.search` map into memory."""

from __future__ import annotations

import array
import logging
import sys
from collections.abc import Mapping
from typing import IO, Any

from warmstart.errors import DataError

_log = logging.getLogger("warmstart")
_HEADER = 128  # bytes; more than any shape takes, and a multiple of the 64 that the format asks for


class NpySink:
    """The `embedding` of each prediction as a float32 line of a matrix (rows, width): line i is the i-th written.

    Nothing else of a prediction or its row has a place in it, so that line i is row i only where no row was skipped:
    `warmstart predict` refuses --skip-errors for it. The format is version 1.0 of numpy's NEP 1.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._rows = self._width = 0
        stream.write(_header(0, 0))  # the number of rows is known at the end

    def write(self, fields: Mapping[str, Any]) -> None:
        vector = fields.get("embedding")
        if not isinstance(vector, list | tuple) or not all(isinstance(value, float) for value in vector):
            raise DataError(
                "npy-no-vector",
                "a .npy file holds vectors, and this prediction has no `embedding`",
                value=sorted(fields),
                fix="write .jsonl, .csv or .parquet, or predict with task=sentence-embedding",
            )
        if not self._rows:
            self._width = len(vector)
            if fields.get("similarity") is not None:
                _log.warning("the rows are pairs: a .npy file holds the vectors of their first texts alone")
        if len(vector) != self._width:
            raise DataError(
                "npy-width",
                f"a .npy file holds vectors of one width; row {self._rows} has another",
                value=f"{len(vector)}, {self._width} before",
                fix="write .jsonl, where rows may differ",
            )
        line = array.array("f", vector)
        if sys.byteorder == "big":
            line.byteswap()
        self._stream.write(line.tobytes())
        self._rows += 1

    def finish(self) -> None:
        self._stream.seek(0)
        self._stream.write(_header(self._rows, self._width))
        self._stream.seek(0, 2)

    def discard(self) -> None:
        pass


def _header(rows: int, width: int) -> bytes:
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {width}), }}"
    room = _HEADER - 10
    return b"\x93NUMPY\x01\x00" + room.to_bytes(2, "little") + text.ljust(room - 1).encode() + b"\n"
