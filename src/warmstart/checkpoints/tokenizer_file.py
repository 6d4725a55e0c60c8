"""tokenizer.json, checked before the Rust library reads it: ids the model has no row for, patterns made to stall."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from warmstart.checkpoints.files import check_size, find_file, parse_json, read_bytes
from warmstart.errors import CheckpointError, Where

NAME = "tokenizer.json"
SIZE_LIMIT = 96 << 20  # bytes; the largest honest one we know has 35 MB
# What transformers reads beside it, or where it is not there, whole.
_PARTS = (
    *("vocab.txt", "vocab.json", "merges.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model"),
    *("added_tokens.json", "special_tokens_map.json", "chat_template.jinja", "tekken.json", "bpe.codes"),
)
ADDED_LIMIT = 50_000
TEMPLATE_LIMIT = 64  # special tokens that a post-processor may put around one text
PROBE_SECONDS = 5.0  # to start an interpreter and to split a few thousand characters

# Patterns of well-known tokenizers (GPT-2, GPT-4, Llama 3, Qwen 2, ModernBERT, DeepSeek): linear in practice.
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_GOOD_REGEX = frozenset(
    {
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
        _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        r"\p{N}{1,3}",
        r"\s+",
        r"\s",
        r" ",
        r" +",
        r" {2,}",
        r"\p{N}",
        r"[0-9]",
        r"\n",
        r"``",
        r"''",
        r"\p{Nd}{3}(?=\d)",
    }
)
_PROBE = """
import sys
from tokenizers import Tokenizer
tokenizer = Tokenizer.from_file(sys.argv[1])
tokenizer.no_padding()
for text in sys.stdin.read().split("\\x00"):
    tokenizer.encode(text)
"""


def check_tokenizer(folder: Path, embedding_rows: int | None) -> tuple[str, ...]:
    """Check tokenizer.json of a resolved folder, if it has one. Returns findings, one sentence each.

    `embedding_rows` is the number of tokens the model has a vector for, or None if that is unknown.
    Raises CheckpointError `tokenizer-invalid`, `tokenizer-vocab-too-large`, `tokenizer-added-tokens`,
    `tokenizer-template`, `tokenizer-too-slow`, or a file or JSON error.
    """
    for name in _PARTS:
        if part := find_file(folder, name):
            check_size(part, SIZE_LIMIT)
    path = find_file(folder, NAME)
    if path is None:
        return ()
    tokenizer = parse_json(read_bytes(path, SIZE_LIMIT), Where(source=str(path)))
    model, added = tokenizer.get("model"), tokenizer.get("added_tokens") or []
    if not isinstance(model, dict) or not isinstance(added, list):
        raise _error("tokenizer-invalid", "the file has no tokenizer model", path, "model", model)
    if len(added) > ADDED_LIMIT:
        what = f"{len(added):,} added tokens; at most {ADDED_LIMIT:,} are read"
        raise _error("tokenizer-added-tokens", what, path, "added_tokens", len(added))
    _check_ids(path, model, added, embedding_rows)
    _check_templates(path, tokenizer.get("post_processor"))
    unknown = sorted({pattern for part in _pipeline(tokenizer) for pattern in _regexes(part)} - _GOOD_REGEX)
    if not unknown:
        return ()
    _probe(path, unknown)
    return ()


def _check_ids(path: Path, model: Mapping[str, Any], added: list[Any], rows: int | None) -> None:
    vocab = model.get("vocab")
    if isinstance(vocab, dict):
        ids = vocab.values()
        if not all(type(i) is int and i >= 0 for i in ids):
            raise _error("tokenizer-invalid", "the vocabulary has an id that is no number", path, "model.vocab", None)
        highest = max(ids, default=-1)
    else:
        highest = len(vocab) - 1 if isinstance(vocab, list) else -1  # unigram: a list of [piece, score]
    for entry in added:
        number = entry.get("id") if isinstance(entry, dict) else None
        if type(number) is not int or number < 0:
            raise _error("tokenizer-invalid", "an added token has no id", path, "added_tokens", entry)
        highest = max(highest, number)
    if rows is not None and highest >= rows:
        what = f"the tokenizer gives ids up to {highest}, the model has vectors for 0 to {rows - 1}"
        raise _error("tokenizer-vocab-too-large", what, path, "model.vocab", highest)


def _check_templates(path: Path, processor: Any) -> None:
    """Each text is wrapped in the post-processor's template: its length is a cost of every row."""
    for part in _objects(processor):
        pieces = [part.get("single"), part.get("pair")]
        lengths = [len(piece) for piece in pieces if isinstance(piece, list)]
        special = part.get("special_tokens")
        if isinstance(special, dict):
            lengths += [len(token["ids"]) for token in special.values() if isinstance(token, dict) and "ids" in token]
        if lengths and max(lengths) > TEMPLATE_LIMIT:
            what = (
                f"the post-processor adds {max(lengths):,} tokens to every text; at most {TEMPLATE_LIMIT} are allowed"
            )
            raise _error("tokenizer-template", what, path, "post_processor", max(lengths))


def _pipeline(tokenizer: Mapping[str, Any]) -> Iterator[Any]:
    for stage in ("normalizer", "pre_tokenizer", "decoder"):
        yield tokenizer.get(stage)


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _objects(item)  # the depth is bounded by parse_json


def _regexes(value: Any) -> Iterator[str]:
    for part in _objects(value):
        pattern = part.get("Regex")
        if isinstance(pattern, str):
            yield pattern


def _probe(path: Path, patterns: list[str]) -> None:
    """Split texts that make a backtracking pattern explode, in a child that is killed when its time is over."""
    characters = dict.fromkeys(" a1!" + "".join(c for p in patterns for c in re.findall(r"\w", p)[:16]))
    texts = [character * 2000 + "\n!" for character in list(characters)[:24]]
    try:
        result = subprocess.run(
            [sys.executable, "-I", "-c", _PROBE, str(path)],
            input="\x00".join(texts).encode(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=PROBE_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        what = f"a pattern of the tokenizer does not get through {len(texts)} short texts in {PROBE_SECONDS:.0f} s"
        raise _error("tokenizer-too-slow", what, path, "pre_tokenizer", patterns[0]) from None
    if result.returncode != 0:
        lines = result.stderr.decode(errors="replace").strip().splitlines()
        what = "the tokenizers library cannot use this file"
        raise _error("tokenizer-invalid", what, path, "pre_tokenizer", lines[-1] if lines else result.returncode)


def _error(code: str, what: str, path: Path, field: str, value: object) -> CheckpointError:
    return CheckpointError(
        code,
        what,
        where=Where(source=str(path), field=field),
        value=value,
        fix="tokenizer and weights must be of the same checkpoint: get both from its publisher again",
    )
