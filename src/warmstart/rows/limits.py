"""How much a reader takes in before it refuses: hostile or broken files must cost neither memory nor hours."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Limits:
    """Upper bounds of reading. Every one is generous for honest data; raise one by passing your own `Limits`."""

    max_line_bytes: int = 32 * MIB  # one line of JSONL or text, one record of CSV
    max_document_bytes: int = 256 * MIB  # one JSON document, which has to be read whole
    max_depth: int = 64  # nesting of JSON values and of Arrow types
    max_ratio: int = 200  # decompressed bytes for one compressed byte ...
    ratio_floor_bytes: int = 16 * MIB  # ... counted only above this size: small files compress as they like
    max_batch_bytes: int = 16 * MIB  # decoded columnar rows held at a time (a single larger row still passes)
    max_columns: int = 10_000  # distinct column names in one source
    max_directory_entries: int = 10_000  # entries looked at in a directory
    max_errors_kept: int = 100  # skipped rows whose error is kept; the rest are only counted


DEFAULT_LIMITS = Limits()
