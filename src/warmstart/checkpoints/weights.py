"""Which files hold a checkpoint's weights: one safetensors file, or shards named by an index."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from warmstart.checkpoints.files import find_file, read_json
from warmstart.checkpoints.safetensors_file import CONVERT, TensorInfo, read_header
from warmstart.errors import CheckpointError, Where

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_SHARD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*\.safetensors")
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "model.pt", "model.pth", "tf_model.h5", "model.ckpt")


def read_weights(folder: Path) -> Mapping[str, TensorInfo]:
    """Every tensor of the checkpoint in a resolved `folder`, from checked headers; transformers' own precedence.

    Raises CheckpointError `weights-not-found`, `pickle-refused`, `index-invalid`, `shard-missing`, `shard-mismatch`,
    or an error of `safetensors_file.read_header`.
    """
    if single := find_file(folder, SINGLE):
        return read_header(single)
    if index := find_file(folder, INDEX):
        return _read_shards(folder, index)
    raise _no_weights(folder)


def _no_weights(folder: Path) -> CheckpointError:
    pickles = [name for name in _PICKLES if (folder / name).is_file()]
    if pickles:
        return CheckpointError(
            "pickle-refused",
            f"the folder has {pickles[0]} but no {SINGLE}",
            where=str(folder / pickles[0]),
            fix=CONVERT,
        )
    if (folder / "adapter_config.json").exists():
        return adapter_refused(folder)
    others = sorted(path.name for path in folder.glob("*.safetensors"))[:5]
    hint = f"rename the weights to {SINGLE}" if len(others) == 1 else "download the checkpoint again"
    return CheckpointError(
        "weights-not-found",
        f"the folder has neither {SINGLE} nor {INDEX}",
        where=str(folder),
        value=others or None,
        fix=hint,
    )


def adapter_refused(folder: Path) -> CheckpointError:
    """The error for a folder with an adapter: transformers would follow its file to another checkpoint."""
    return CheckpointError(
        "adapter-unsupported",
        "this folder holds an adapter, whose adapter_config.json names another checkpoint to load",
        where=str(folder / "adapter_config.json"),
        fix="merge it into its base with peft (model.merge_and_unload()), save that, and load the saved folder",
    )


def _read_shards(folder: Path, index: Path) -> Mapping[str, TensorInfo]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise _index_invalid(index, "the index has no weight_map", weight_map)
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or not _SHARD.fullmatch(shard):
            raise _index_invalid(index, f"tensor {name!r} is said to be in a file outside this folder", shard)
    found: dict[str, TensorInfo] = {}
    for shard in sorted(set(weight_map.values())):
        path = find_file(folder, shard)
        if path is None:
            raise CheckpointError(
                "shard-missing",
                f"the index names {shard}, which is not in the folder",
                where=Where(source=str(index), field="weight_map"),
                value=shard,
                fix="download the checkpoint again, all shards of it",
            )
        tensors = read_header(path)
        if wrong := sorted(name for name in tensors if weight_map.get(name) != shard):
            raise _shard_mismatch(path, f"{shard} holds tensors that the index does not place there", wrong)
        found.update(tensors)
    if absent := sorted(set(weight_map) - set(found)):
        raise _shard_mismatch(index, "the index names tensors that no shard holds", absent)
    return found


def _index_invalid(index: Path, what: str, value: object) -> CheckpointError:
    return CheckpointError(
        "index-invalid",
        what,
        where=Where(source=str(index), field="weight_map"),
        value=value,
        fix="get the checkpoint from its publisher again; do not use it if you do not know who made it",
    )


def _shard_mismatch(path: Path, what: str, names: list[str]) -> CheckpointError:
    return CheckpointError(
        "shard-mismatch",
        f"{what}: {', '.join(names[:5])}{' …' if len(names) > 5 else ''}",
        where=str(path),
        value=len(names),
        fix="the shards are of different checkpoints: download all of them again",
    )
