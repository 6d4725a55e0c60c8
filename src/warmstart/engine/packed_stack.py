"""Hooks of an encoder stack by which it runs on a pack, where its call carries one by keyword."""

from __future__ import annotations

from typing import Any

from torch import nn

from warmstart.engine.packed_call import unpacked


class BeforeStack:
    """Drops the padding from what the encoder stack is given."""

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        pack = kwargs.get("pack")
        if pack is None:
            return None
        if args:
            args = (pack.pack(args[0]), *args[1:])
        else:
            kwargs = kwargs | {"hidden_states": pack.pack(kwargs["hidden_states"])}
        if (rotary := kwargs.get("position_embeddings")) is not None:
            kwargs = kwargs | {"position_embeddings": tuple(pack.pack(part) for part in rotary)}
        return args, kwargs


class AfterStack:
    """Puts the padding back: the pack says as what."""

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        pack = kwargs.get("pack")
        if pack is None:
            return None
        return unpacked(output, pack.of_firsts() if kwargs.get("first_token_only") else pack)
