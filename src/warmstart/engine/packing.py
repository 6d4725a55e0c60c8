"""A batch without its padding: which positions are kept, in which order, and the way there and back."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor


@dataclass(frozen=True)
class Pack:
    """The T kept positions of a padded batch of shape (B, S).

    Rows stand longest first, so that rows of equal length are neighbours: a run of them is a dense block without any
    padding. A row without a single kept position takes no place, and unpacks to zeros.
    """

    index: Tensor  # (T,) positions in the flattened batch
    rows: int  # B
    width: int  # S
    runs: tuple[tuple[int, int], ...]  # (rows, length) of each run

    @classmethod
    def of(cls, mask: Tensor) -> Pack:
        """The pack of a mask of shape (B, S): what is not zero is kept. Padding may be on any side."""
        kept = mask.bool()
        rows, width = kept.shape
        lengths = kept.sum(dim=1)
        order = lengths.argsort(descending=True, stable=True)
        positions = order[:, None] * width + torch.arange(width, device=kept.device)
        runs = [(len(list(same)), length) for length, same in groupby(lengths[order].tolist())]
        return cls(positions[kept[order]], rows, width, tuple(run for run in runs if run[1]))

    def pack(self, padded: Tensor) -> Tensor:
        """(B, S, …) → (1, T, …). What does not differ between rows may come as (1, S, …)."""
        every_row = padded.expand(self.rows, *padded.shape[1:])
        return every_row.reshape(self.rows * self.width, *padded.shape[2:]).index_select(0, self.index)[None]

    def unpack(self, packed: Tensor) -> Tensor:
        """(1, T, …) → (B, S, …), zeros where padding stood."""
        flat = packed.new_zeros(self.rows * self.width, *packed.shape[2:])
        return flat.index_copy(0, self.index, packed[0]).view(self.rows, self.width, *packed.shape[2:])

    def blocks(self) -> list[tuple[int, int, int]]:
        """(start, rows, length) of each run, `start` counted in packed tokens."""
        found, start = [], 0
        for rows, length in self.runs:
            found.append((start, rows, length))
            start += rows * length
        return found

    def firsts(self) -> Tensor:
        """Where each row's first token stands in the pack: (rows with tokens,)."""
        starts = [start + row * length for start, rows, length in self.blocks() for row in range(rows)]
        return torch.tensor(starts, device=self.index.device)

    def of_firsts(self) -> Pack:
        """The pack of each row's first token alone."""
        firsts = self.firsts()
        return Pack(self.index[firsts], self.rows, self.width, ((len(firsts), 1),))

    def boundaries(self) -> Tensor:
        """Where each row starts in the pack, and the end: int32 of shape (rows with tokens + 1,)."""
        lengths = [length for rows, length in self.runs for _ in range(rows)]
        starts = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
        return starts.to(self.index.device, non_blocking=True)


@dataclass(frozen=True)
class GraphPack:
    """The T kept positions of a padded batch (B, S) inside a graph, told by `graph_runtime.pack_inputs`."""

    index: Tensor  # (T,) positions in the flattened batch
    places: Tensor  # (B, S) where each position stands in the pack; where padding stood, that of some token

    def pack(self, padded: Tensor) -> Tensor:
        """(B, S, …) → (1, T, …). What does not differ between rows may come as (1, S, …)."""
        every_row = padded.expand(self.places.shape[0], *padded.shape[1:])
        return every_row.flatten(0, 1).index_select(0, self.index)[None]

    def unpack(self, packed: Tensor) -> Tensor:
        """(1, T, …) → (B, S, …), where padding stood something of the text's."""
        # Not packed[0]: in int8 OpenVINO keeps that axis, and reads beyond its memory.
        return packed.squeeze(0).index_select(0, self.places.flatten()).unflatten(0, self.places.shape)

    def firsts(self) -> Tensor:
        """Where each row's first token stands in the pack: (B,)."""
        return self.places[:, 0]

    def of_firsts(self) -> GraphPack:
        """The pack of each row's first token alone, which unpacks to (B, 1, …)."""
        firsts = self.firsts()
        return GraphPack(self.index.index_select(0, firsts), torch.arange(firsts.shape[0])[:, None])
