"""`starter`: our own sentiment classifier, stored as a small difference to `starter-encoder`.

A delta folder holds `delta.safetensors` and `starter.json`. For a changed matrix W (out, in) the file has the factors
`<name>.left` (out, r) and `<name>.right` (r, in), and W = W_base + left @ right; any other changed or new tensor stands
whole as `<name>.value`. `starter.json` has the config's additions, and the hash of the base they belong to.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from warmstart.checkpoints.cache import fill_once
from warmstart.checkpoints.carriers import starter_encoder
from warmstart.checkpoints.commit import commit_folder
from warmstart.checkpoints.files import read_json
from warmstart.checkpoints.manifest import sha256
from warmstart.errors import CheckpointError, Where
from warmstart.features import Array

DELTA = Path(__file__).parent / "starter_delta"
_TENSORS = "delta.safetensors"
_SETTINGS = "starter.json"
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json")
_EXTRA = ("warmstart.json", "README.md")


def starter(cache: Path) -> Path:
    """The folder of the `starter` classifier in `cache`, put together on first use. Needs the encoder, once.

    Raises CheckpointError `starter-missing`, `starter-base`, `starter-invalid`, and those of `starter_encoder`.
    """
    if not (DELTA / _TENSORS).is_file():
        raise CheckpointError(
            "starter-missing",
            "this installation carries no starter classifier",
            where=str(DELTA),
            fix="make starter (in a clone), or name another checkpoint with -m",
        )
    key = hashlib.sha256(f"{sha256(DELTA / _TENSORS)}{sha256(DELTA / _SETTINGS)}".encode()).hexdigest()
    # The encoder's hash is part of starter.json, so this key stands for both.
    target = cache / "checkpoints" / f"starter-{key[:12]}"
    if target.is_dir():
        return target
    base = starter_encoder(cache)
    return fill_once(target, lambda folder: _write(base, DELTA, folder))


def materialise(base_folder: Path, delta_folder: Path, target: Path) -> Path:
    """Write base plus delta as a standard Hugging Face folder, in one step. Returns `target`.

    Reads and writes with numpy only. Raises CheckpointError `starter-base` when the base is not the one the delta was
    made from, `starter-invalid` when the delta does not fit, and those of `commit_folder`.

    >>> materialise(Path("encoder"), Path("delta"), Path("classifier"))  # doctest: +SKIP
    """
    return commit_folder(target, lambda folder: _write(base_folder, delta_folder, folder))


def _write(base_folder: Path, delta_folder: Path, folder: Path) -> None:
    settings = read_json(delta_folder / _SETTINGS)
    base_file = base_folder / "model.safetensors"
    if settings.get("base_sha256") != sha256(base_file):
        raise CheckpointError(
            "starter-base",
            "this delta was made from another base",
            where=Where(source=str(delta_folder / _SETTINGS), field="base_sha256"),
            value=str(base_file),
            fix="use the base it was made from, or make the delta again",
        )
    tensors = _apply(_prefixed(load_file(base_file), settings), load_file(delta_folder / _TENSORS), delta_folder)
    kept = settings.get("tensors", sorted(tensors))
    save_file({name: tensors[name] for name in kept}, folder / "model.safetensors", metadata={"format": "pt"})
    config = {**read_json(base_folder / "config.json"), **settings["config"]}
    (folder / "config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    for source, names in ((base_folder, _TOKENIZER), (delta_folder, _EXTRA)):
        for name in names:
            if (source / name).is_file():
                shutil.copyfile(source / name, folder / name)


def _prefixed(tensors: Mapping[str, Array], settings: Mapping[str, Any]) -> dict[str, Array]:
    prefix = settings.get("prefix", "")
    return {f"{prefix}{name}": tensor for name, tensor in tensors.items()}


def _apply(base: dict[str, Array], delta: Mapping[str, Array], delta_folder: Path) -> dict[str, Array]:
    result = dict(base)
    for key, array in delta.items():
        name, _, kind = key.rpartition(".")
        if kind == "value":
            result[name] = array.astype(np.float32)
        elif kind == "left":
            right = delta.get(f"{name}.right")
            if name not in base or right is None or base[name].shape != (array.shape[0], right.shape[1]):
                raise _invalid(delta_folder, name, "the factors do not fit a matrix of the base")
            change = array.astype(np.float32) @ right.astype(np.float32)  # (out, r) @ (r, in)
            result[name] = base[name].astype(np.float32) + change
        elif kind != "right":
            raise _invalid(delta_folder, key, "a tensor of the delta is neither left, right nor value")
    return result


def _invalid(delta_folder: Path, name: str, what: str) -> CheckpointError:
    return CheckpointError(
        "starter-invalid",
        what,
        where=str(delta_folder / _TENSORS),
        value=name,
        fix="install the package again; in a clone, make starter",
    )


def make_delta(base_folder: Path, finetuned_folder: Path, out: Path, rank: int) -> dict[str, float]:
    """Write the difference of two checkpoints as a delta folder; the inverse of `materialise`, up to rank and fp16.

    Matrices are cut to their `rank` largest singular values (or fewer, where the difference has no more); tensors
    without change are left out; vectors, new tensors and matrices too small to gain stand whole. Files named
    warmstart.json and README.md in the fine-tuned folder travel along. Returns, for each changed tensor, the share of
    the change that is lost: ||W - W'|| / ||W - W_base|| in the Frobenius norm, 0 to 1.

    Raises CheckpointError `starter-base` when the fine-tuned model is not built on the base.
    """
    base_file = base_folder / "model.safetensors"
    tuned = load_file(finetuned_folder / "model.safetensors")
    plain = load_file(base_file)
    prefix = _find_prefix(plain, tuned, finetuned_folder)
    base = {f"{prefix}{name}": tensor for name, tensor in plain.items()}
    delta: dict[str, Array] = {}
    lost: dict[str, float] = {}
    for name in sorted(tuned):
        if name in base and np.array_equal(base[name], tuned[name]):
            continue
        old, new = base.get(name), tuned[name].astype(np.float32)
        parts = {f"{name}.{kind}": array for kind, array in _encode(old, new, rank).items()}
        lost[name] = _lost(old, new, _apply(base, parts, out)[name])
        delta |= parts
    settings = {
        "base_sha256": sha256(base_file),
        "prefix": prefix,
        "rank": rank,
        "tensors": sorted(tuned),
        "config": _config_additions(base_folder, finetuned_folder),
    }

    def write(folder: Path) -> None:
        save_file(delta, folder / _TENSORS)
        (folder / _SETTINGS).write_text(json.dumps(settings, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        for name in _EXTRA:
            if (finetuned_folder / name).is_file():
                shutil.copyfile(finetuned_folder / name, folder / name)

    commit_folder(out, write)
    return lost


def _find_prefix(base: Mapping[str, Array], tuned: Mapping[str, Array], where: Path) -> str:
    """What the fine-tuned model puts before the base's names: `bert.` before `embeddings.…`, or nothing."""
    anchor = max(base, key=lambda name: base[name].size)
    names = [name for name in tuned if name.endswith(anchor) and tuned[name].shape == base[anchor].shape]
    if not names:
        raise CheckpointError(
            "starter-base",
            "the fine-tuned checkpoint is not built on this base",
            where=str(where),
            value=anchor,
            fix="give the base that the training started from",
        )
    return min(names, key=len).removesuffix(anchor)


def _encode(base: Array | None, tuned: Array, rank: int) -> dict[str, Array]:
    whole = {"value": tuned.astype(np.float16)}
    if base is None or tuned.ndim != 2 or base.shape != tuned.shape or rank * sum(tuned.shape) >= tuned.size:
        return whole
    u, s, vt = np.linalg.svd(tuned - base.astype(np.float32), full_matrices=False)
    keep = min(rank, max(1, int((s > s[0] * 1e-6).sum())))
    root = np.sqrt(s[:keep])  # split evenly, so that neither factor leaves the range of fp16
    return {"left": (u[:, :keep] * root).astype(np.float16), "right": (root[:, None] * vt[:keep]).astype(np.float16)}


def _lost(base: Array | None, tuned: Array, restored: Array) -> float:
    change = np.linalg.norm(tuned - base) if base is not None and base.shape == tuned.shape else np.linalg.norm(tuned)
    return float(np.linalg.norm(tuned - restored) / change) if change else 0.0


def _config_additions(base_folder: Path, finetuned_folder: Path) -> dict[str, Any]:
    old, new = read_json(base_folder / "config.json"), read_json(finetuned_folder / "config.json")
    return {key: value for key, value in new.items() if key not in old or old[key] != value}
