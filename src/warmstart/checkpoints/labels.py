"""The label table of a checkpoint: what `id2label`, `label2id` and `num_labels` say together, or why they cannot."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from warmstart.errors import CheckpointError, Where

MAX_LABELS = 1_000_000
_DEFAULT = re.compile(r"LABEL_\d+")


def read_labels(config: Mapping[str, Any], path: Path, head_rows: int | None) -> tuple[str, ...] | None:
    """Label names in the order of the logits, exactly as stored; None when the config names none and there is no head.

    `head_rows` is the number of rows of the trained head's last weight, or None without such a head. Names are kept as
    they are, markup and control characters included: whoever prints them escapes (`warmstart.display`).

    Raises CheckpointError `label-table-invalid`, `label-table-gap`, `label-duplicate`, `label-tables-disagree`,
    `label-count`.
    """
    id2label, label2id, count = config.get("id2label"), config.get("label2id"), config.get("num_labels")
    if count is not None and (type(count) is not int or not 1 <= count <= MAX_LABELS):
        raise _error("label-count", "num_labels is not a possible number of labels", path, "num_labels", count)
    if id2label is None:
        return _unnamed(label2id, count, path, head_rows)
    labels = _table(id2label, path)
    if count is not None and count != len(labels):
        what = f"num_labels is {count} but id2label names {len(labels)} labels"
        raise _error("label-count", what, path, "num_labels", count)
    if label2id is not None:
        _check_inverse(labels, label2id, path)
    if head_rows is not None and head_rows != len(labels):
        what = f"the trained head gives {head_rows} scores but id2label names {len(labels)} labels"
        raise _error("label-count", what, path, "id2label", list(labels[:10]))
    if head_rows is None and all(_DEFAULT.fullmatch(label) for label in labels):
        return None  # what every config of a base model carries: no information
    return labels


def _unnamed(label2id: Any, count: int | None, path: Path, head_rows: int | None) -> tuple[str, ...] | None:
    if label2id is not None:
        what = "there is a label2id but no id2label"
        raise _error("label-tables-disagree", what, path, "label2id", label2id)
    implied = count if count is not None else 2  # transformers writes neither for two unnamed labels
    if head_rows is not None and head_rows != implied:
        what = f"the trained head gives {head_rows} scores but the config implies {implied} labels and names none"
        raise _error("label-count", what, path, "id2label", None)
    return None if head_rows is None else tuple(f"LABEL_{i}" for i in range(head_rows))


def _table(id2label: Any, path: Path) -> tuple[str, ...]:
    if not isinstance(id2label, dict) or not 1 <= len(id2label) <= MAX_LABELS:
        raise _error("label-table-invalid", "id2label is not a table of names", path, "id2label", id2label)
    table: dict[int, str] = {}
    for key, name in id2label.items():
        if not re.fullmatch(r"0|[1-9][0-9]{0,6}", str(key)):
            raise _error("label-table-invalid", "a key of id2label is not a label number", path, "id2label", key)
        if not isinstance(name, str) or len(name) > 10_000:
            raise _error("label-table-invalid", f"label {key} has no usable name", path, f"id2label.{key}", name)
        table[int(key)] = name
    if sorted(table) != list(range(len(table))):
        missing = next(i for i in range(len(table)) if i not in table)
        what = f"id2label has {len(table)} names, but none for label {missing}"
        raise _error("label-table-gap", what, path, "id2label", sorted(table)[:20])
    labels = tuple(table[i] for i in range(len(table)))
    if len(set(labels)) != len(labels):
        seen: dict[str, int] = {}
        first, second = next((seen[n], i) for i, n in enumerate(labels) if seen.setdefault(n, i) != i)
        what = f"labels {first} and {second} have the same name"
        raise _error("label-duplicate", what, path, f"id2label.{second}", labels[second])
    return labels


def _check_inverse(labels: tuple[str, ...], label2id: Any, path: Path) -> None:
    if not isinstance(label2id, dict):
        raise _error("label-table-invalid", "label2id is not a table", path, "label2id", label2id)
    expected = {name: i for i, name in enumerate(labels)}
    # Configs in the wild write the numbers as strings, too.
    actual = {
        name: int(i) if isinstance(i, str) and i.isdecimal() and len(i) < 8 else i for name, i in label2id.items()
    }
    if actual == expected:
        return
    if all(_DEFAULT.fullmatch(str(name)) for name in actual):
        return  # the defaults, left behind by whoever set id2label only: transformers ignores them for predicting
    wrong = next(name for name in {**actual, **expected} if actual.get(name) != expected.get(name))
    what = f"label2id and id2label disagree on {wrong!r}"
    raise _error("label-tables-disagree", what, path, "label2id", {wrong: actual.get(wrong)})


def _error(code: str, what: str, path: Path, field: str, value: object) -> CheckpointError:
    return CheckpointError(
        code,
        what,
        where=Where(source=str(path), field=field),
        value=value,
        fix="correct id2label and label2id in config.json to one name for each score of the head, from 0 up",
    )
