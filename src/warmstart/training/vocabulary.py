"""The word table while a model trains: only the rows that the run's data look up, every bit as with the whole table.

No token of the data looks the other rows up, so their gradient is zero at every step, AdamW's moments of them stay
zero, and weight decay alone moves them. AdamW is given the looked-up rows as its parameter; the factors by which the
others would have shrunk are noted, and made good, one by one as AdamW rounds them, before anybody looks at the whole
table. Which rows these are is a function of the data, and every state that is saved is that of the whole table, so a
run is resumed exactly, with or without this.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from warmstart.errors import TrainingError
from warmstart.features import Batch
from warmstart.training.batches import Batches
from warmstart.training.config import TrainConfig
from warmstart.training.numerics import numerics

log = logging.getLogger("warmstart")

# Numbers left out, from which on it is worth a look-up: each costs twelve bytes of memory, and a step reads them all.
WORTH = 2**20
_IDS = "input_ids"
_MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW's, in the table's shape
_ROWS, _VALUES = "rows", "values"  # of moments in a state, where the others are zero
_BLOCK = 65_536  # numbers that stay in a processor's cache while all factors pass over them


class WordTable:
    """The table of `embedding`, which `optimizer` (a fused AdamW) trains, and the `ids` (N,) that are looked up.

    It is whole but in a block of `training`; there, in a block of `whole`.
    """

    def __init__(self, embedding: nn.Embedding, optimizer: torch.optim.Optimizer, ids: Tensor) -> None:
        self._embedding, self._optimizer, self._ids = embedding, optimizer, ids
        self._all: Tensor | None = None  # the whole table, while the model holds a part of it
        self._places = ids  # by id, its row in that part; -1 where it has none
        self._decays: list[float] = []  # that the rows left out are still to be multiplied by
        self._is_whole = True

    @contextmanager
    def training(self) -> Iterator[None]:
        """In a block of this the model and the optimizer hold the looked-up rows alone; after it, all as before.

        The optimizer's state of the table goes with it. Steps may be made outside of `whole` only.
        """
        weight, padding = self._embedding.weight, self._embedding.padding_idx
        state = self._optimizer.state.get(weight, {})
        # A run that was forced on with other data has moved rows that none looks up any more: they go on moving.
        moved = [state[name].any(dim=1).nonzero()[:, 0] for name in _MOMENTS if name in state]
        kept = [self._ids, *moved, *([] if padding is None else [torch.tensor([padding])])]
        self._ids = torch.cat(kept).unique()
        self._all = weight.data
        self._places = torch.full((len(self._all),), -1)
        self._places[self._ids] = torch.arange(len(self._ids))
        for name in _MOMENTS:
            if name in state:
                state[name] = state[name][self._ids]
        weight.data, self._is_whole = self._all[self._ids], False
        if padding is not None:
            self._embedding.padding_idx = int(self._places[padding])
        hooks = (
            self._embedding.register_forward_pre_hook(self._look_up),
            self._optimizer.register_step_post_hook(self._note_decay),
        )
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            with numerics("cpu"):
                self._catch_up()
            self._optimizer.state.pop(weight, None)
            self._embedding.padding_idx = padding
            weight.data, weight.grad, self._all, self._is_whole = self._all, None, None, True

    @contextmanager
    def whole(self) -> Iterator[None]:
        """In a block of this the model has its whole table, as it would be: to be read, and not to be changed."""
        if self._all is None or self._is_whole:
            yield
            return
        weight = self._embedding.weight
        rows = weight.data
        self._catch_up()
        weight.data, self._is_whole = self._all, True
        try:
            yield
        finally:
            weight.data, self._is_whole = rows, False

    def optimizer_state(self) -> dict[str, Any]:
        """The optimizer's `state_dict()`; the table's moments in it are some `rows` and their `values`: all others are
        zero. `whole_state` puts them together."""
        weight = self._embedding.weight
        own = self._optimizer.state.get(weight)
        if self._all is None or not own:
            return self._optimizer.state_dict()
        self._optimizer.state[weight] = {
            name: {_ROWS: self._ids, _VALUES: value} if name in _MOMENTS else value for name, value in own.items()
        }
        try:
            return self._optimizer.state_dict()
        finally:
            self._optimizer.state[weight] = own

    def _catch_up(self) -> None:
        """Bring the whole table to where the steps are."""
        assert self._all is not None
        for block in self._all.view(-1).split(_BLOCK) if self._decays else ():
            for decay in self._decays:
                block.mul_(decay)
        self._decays.clear()
        if not self._is_whole:
            self._all[self._ids] = self._embedding.weight.data

    def _note_decay(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        [group] = _groups_of(optimizer, self._embedding.weight)  # load_state_dict makes new ones
        decay = 1 - group["lr"] * group["weight_decay"]  # rounded to float32 when it is used, as there
        if decay != 1:
            self._decays.append(decay)

    def _look_up(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if self._is_whole:
            return None
        places = self._places[args[0]]
        if places.min() < 0:
            raise TrainingError(
                "words-missing",
                "a batch has a token that no row had before the first step, so it is not in the table that is trained",
                value=int(args[0][places < 0][0]),
                fix="give an optimizer of your own, which trains the whole table, such as "
                "optimizer=lambda params: torch.optim.AdamW(params, lr=1e-4)",
            )
        return (places, *args[1:])


def whole_state(state: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """What `WordTable.optimizer_state` gave, with all moments in the shape of `optimizer`'s parameters, as its
    `load_state_dict` takes them. Any other `state_dict()` stays as it is.

    Raises ValueError for rows that are not those of the parameter.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    def whole(place: int, of: Any) -> Any:
        by_rows = [name for name in _MOMENTS if isinstance(of, Mapping) and _is_by_rows(of.get(name))]
        return {**of, **{name: _whole(of[name], parameters, place) for name in by_rows}} if by_rows else of

    if "state" not in state:
        return dict(state)
    return {**state, "state": {place: whole(place, of) for place, of in state["state"].items()}}


def _is_by_rows(moments: Any) -> bool:
    return isinstance(moments, dict) and moments.keys() == {_ROWS, _VALUES}


def _whole(moments: Mapping[str, Tensor], parameters: list[Tensor], place: int) -> Tensor:
    rows, values = moments[_ROWS], moments[_VALUES]
    shape = parameters[place].shape if place < len(parameters) else torch.Size()
    fits = rows.dtype == torch.int64 and rows.ndim == 1 and values.shape == (len(rows), *shape[1:]) and len(shape) > 0
    if not fits or (len(rows) and not (rows.min() >= 0 and rows.max() < shape[0])):
        raise ValueError(f"rows of parameter {place} are not those of a tensor of shape {tuple(shape)}")
    return values.new_zeros(shape).index_copy_(0, rows, values)


def word_table(
    model: Any, optimizer: torch.optim.Optimizer, batches: Batches[Batch], config: TrainConfig, *, device: str
) -> WordTable | None:
    """The table of `model` for a run over `batches`; None where all of it is trained, as elsewhere."""
    embedding = model.get_input_embeddings()
    reason = why_whole(model, optimizer, batches, config, device=device)
    if reason is None:
        ids = looked_up(batches, len(embedding.weight))
        left_out = len(embedding.weight) - len(ids)
        if left_out * embedding.weight.shape[1] >= WORTH:
            words = (f"{len(ids):,}", f"{len(embedding.weight):,}")
            log.info("%s of %s rows of the word table are trained: no text looks the others up", *words)
            return WordTable(embedding, optimizer, ids)
        reason = f"no text looks {left_out:,} of its rows up, which are too few to leave out"
    log.debug("all of the word table is trained: %s", reason)
    return None


def why_whole(
    model: Any, optimizer: torch.optim.Optimizer, batches: Batches[Batch], config: TrainConfig, *, device: str
) -> str | None:
    """Why all of the word table is to be trained, whatever the rows look up; None if it need not."""
    embedding = model.get_input_embeddings()
    if type(embedding) is not nn.Embedding or embedding.sparse or embedding.max_norm or embedding.scale_grad_by_freq:
        return f"it is a {type(embedding).__name__} with rules of its own"
    weight = embedding.weight
    if not weight.requires_grad:
        return "it is frozen"
    if device != "cpu" or weight.dtype != torch.float32:
        return f"it is of {weight.dtype} on {device}"
    if type(weight) is not nn.Parameter or not weight.is_contiguous():
        return f"it is a {type(weight).__name__} that is not laid out row by row"
    names = [name for name, parameter in model.named_parameters(remove_duplicate=False) if parameter is weight]
    if len(names) > 1 or model.config.is_encoder_decoder:
        return f"something else reads it, too: {', '.join(names[1:]) or 'a decoder'}"
    if embedding._forward_hooks or embedding._forward_pre_hooks or "forward" in vars(embedding):
        return "it has a hook"
    groups = _groups_of(optimizer, weight)
    if type(optimizer) is not torch.optim.AdamW or len(groups) != 1 or not groups[0]["fused"] or groups[0]["amsgrad"]:
        return "the optimizer is not the default one"
    if not isinstance(groups[0]["lr"], float):
        return "its learning rate is a tensor"
    if config.precision == "fp16":
        return "under fp16 a step may be left out"
    if config.ema is not None:
        return "the average of the weights follows all of it"
    if batches.varies():
        return f"{batches.task.name} changes its inputs in every epoch"
    return None


def looked_up(batches: Batches[Batch], size: int) -> Tensor:
    """The ids (N,) below `size` that the features of a run hold, and that batches are padded with, rising."""
    seen = np.zeros(size, dtype=bool)
    seen[int(batches.task.pads[_IDS].value)] = True
    for row in batches.features:
        for feature in row:
            seen[feature.inputs[_IDS]] = True
    return torch.from_numpy(np.flatnonzero(seen))


def _groups_of(optimizer: torch.optim.Optimizer, weight: Tensor) -> list[dict[str, Any]]:
    return [group for group in optimizer.param_groups if any(p is weight for p in group["params"])]
