"""Rows to features, off the event loop: clients take turns, so that nobody waits for another's large request."""

from __future__ import annotations

import dataclasses
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from warmstart.features import Feature
from warmstart.rows import Row
from warmstart.tasks import Task

# A turn is this much text, or as many tokens where a row gives many: about 20 ms of a tokenizer. (A row alone may be
# more.)
_CHARACTERS, _TOKENS = 32 << 10, 16 << 10


class Turns:
    """Work of many clients on a few threads. It yields where its turn may end, and goes on after the others'."""

    def __init__(self, threads: int, *, name: str) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._lock = threading.Lock()
        self._waiting: dict[str, deque[Iterator[None]]] = {}  # by client; whose turn is next comes first

    def submit(self, client: str, work: Iterator[None]) -> None:
        self._put(client, work)
        self._pool.submit(self._run)

    def shutdown(self) -> None:
        """Take nothing more, and do not wait for what was taken."""
        self._pool.shutdown(wait=False)

    def _run(self) -> None:
        """Turns until some work is done: as many calls go on as there are works that are not."""
        while True:
            with self._lock:
                client = next(iter(self._waiting))
                works = self._waiting.pop(client)
                work = works.popleft()
                if works:
                    self._waiting[client] = works
            if next(work, self) is self:
                return
            self._put(client, work)

    def _put(self, client: str, work: Iterator[None]) -> None:
        with self._lock:
            self._waiting.setdefault(client, deque()).append(work)


def encode_in_turns(task: Task, rows: Sequence[Row]) -> Iterator[Feature | None]:
    """The rows' features, and None wherever a turn may end. Raises what the task does."""
    tokens = 0
    for start, stop in _slices(rows):
        if start:
            yield None
        for feature in task.encode(rows[start:stop]):
            if tokens >= _TOKENS:
                tokens = 0
                yield None
            tokens += feature.length
            yield dataclasses.replace(feature, row=start + feature.row) if start else feature


def _slices(rows: Sequence[Row]) -> Iterator[tuple[int, int]]:
    """Where rows begin and end that have `_CHARACTERS` together, or are one row."""
    start, size = 0, 0
    for i, row in enumerate(rows):
        size += sum(map(characters, row.values()))
        if size >= _CHARACTERS:
            yield start, i + 1
            start, size = i + 1, 0
    if start < len(rows):
        yield start, len(rows)


def most_characters(row: Row) -> int:
    """Characters that a task may read of a row, at most about: each text once for each item of a list beside it."""
    lists = [value for value in row.values() if isinstance(value, list)]
    texts = sum(characters(value) for value in row.values() if not isinstance(value, list))
    return texts * max([1, *map(len, lists)]) + sum(map(characters, lists))


def characters(value: Any, *, depth: int = 5) -> int:
    """Of all texts in a row's value, as deep as a conversation's are."""
    if isinstance(value, str):
        return len(value)
    if depth and isinstance(value, list | dict):
        inner = value.values() if isinstance(value, dict) else value
        return sum(characters(item, depth=depth - 1) for item in inner)
    return 0
