"""seqeval's definition of an entity, written out here: seqeval itself is no dependency."""

from __future__ import annotations

from collections.abc import Sequence


def chunks(sentence: Sequence[str]) -> set[tuple[str, int, int]]:
    """`get_entities` in default mode, by its `start_of_chunk` and `end_of_chunk`: (type, first, after the last)."""
    found, begin = set(), 0
    before, before_type = "O", ""
    for i, tag in enumerate([*sentence, "O"]):
        kind, _, name = tag.partition("-")
        ends = (
            before in ("E", "S")
            or (before in ("B", "I") and kind in ("B", "S", "O"))
            or (before != "O" and before_type != name)
        )
        starts = (
            kind in ("B", "S")
            or (before in ("E", "S", "O") and kind in ("E", "I"))
            or (kind != "O" and before_type != name)
        )
        if ends:
            found.add((before_type, begin, i))
        if starts:
            begin = i
        before, before_type = kind, name
    return found


def micro(true: Sequence[Sequence[str]], pred: Sequence[Sequence[str]]) -> tuple[float, float, float]:
    """Precision, recall and F1 over all entities of all sentences; 0 where one is undefined."""
    left = {(i, *entity) for i, sentence in enumerate(true) for entity in chunks(sentence)}
    right = {(i, *entity) for i, sentence in enumerate(pred) for entity in chunks(sentence)}
    hits = len(left & right)
    precision, recall = (hits / len(side) if side else 0.0 for side in (right, left))
    return precision, recall, 2 * precision * recall / (precision + recall) if hits else 0.0
