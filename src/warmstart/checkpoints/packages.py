"""Checkpoint folders inside installed Python packages, found without importing the package."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Iterator
from pathlib import Path

from warmstart.checkpoints.weights import INDEX, SINGLE
from warmstart.errors import CheckpointError, did_you_mean

_DEPTH = 4  # folders below a package's root that are looked into


def find_in_package(name: str) -> Path:
    """The checkpoint folder that the installed package `name` carries, or `NAME/sub/folder` of several.

    `name` is a distribution's name (as pip lists it) or a top-level module's. Raises CheckpointError
    `package-not-found`, `package-without-checkpoint` or `package-ambiguous`.
    """
    package, _, inside = name.partition("/")
    roots = list(_roots(package))
    if not roots:
        installed = {str(d.name) for d in importlib.metadata.distributions() if d.name}
        raise CheckpointError(
            "package-not-found",
            f"no package {package!r} is installed here",
            value=package,
            fix=f"pip install {package}; {did_you_mean(package, installed)[:120]}",
        )
    folders = sorted({folder for root in roots for folder in _checkpoints(root)})
    if inside:
        folders = [folder for folder in folders if folder.as_posix().endswith(f"/{inside.rstrip('/')}")]
    if not folders:
        raise CheckpointError(
            "package-without-checkpoint",
            f"package {package!r} carries no checkpoint" + (f" in {inside!r}" if inside else ""),
            where=str(roots[0]),
            value=name,
            fix="a checkpoint is a folder with config.json and model.safetensors; name a package that has one",
        )
    if len(folders) > 1:
        raise CheckpointError(
            "package-ambiguous",
            f"package {package!r} carries {len(folders)} checkpoints",
            where=str(roots[0]),
            value=[str(folder) for folder in folders],
            fix=f"say which: pkg:{package}/{folders[0].name}",
        )
    return folders[0]


def _roots(package: str) -> Iterator[Path]:
    """Folders of the package: by its record of files, and by the import system for editable installs."""
    modules = {package.replace("-", "_")}
    try:
        distribution = importlib.metadata.distribution(package)
    except (importlib.metadata.PackageNotFoundError, ValueError):
        pass
    else:
        files = distribution.files or []
        modules |= {file.parts[0] for file in files if len(file.parts) > 1 and file.parts[0].isidentifier()}
    for module in sorted(modules):
        if not module.isidentifier():
            continue
        try:
            spec = importlib.util.find_spec(module)  # of a top-level name: looks, does not import
        except ValueError:  # `__main__`, which is no package
            continue
        if spec is not None:
            yield from (Path(place) for place in spec.submodule_search_locations or ())


def _checkpoints(root: Path, depth: int = 0) -> Iterator[Path]:
    if (root / "config.json").is_file() and ((root / SINGLE).is_file() or (root / INDEX).is_file()):
        yield root
    if depth < _DEPTH and root.is_dir():
        for entry in sorted(root.iterdir()):
            if entry.is_dir() and not entry.is_symlink() and not entry.name.startswith((".", "__")):
                yield from _checkpoints(entry, depth + 1)
