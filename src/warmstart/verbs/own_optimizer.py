"""An optimizer and a scheduler of a person's own in `ws.train`: any of torch's, with exact resume."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from warmstart.errors import TrainingError, UsageError
from warmstart.training.config import TrainConfig
from warmstart.training.loop import Schedule
from warmstart.training.state_files import pack
from warmstart.verbs.preparing import Prepared

# The parameters that ask for a gradient, in the model's order → an optimizer over them.
MakeOptimizer: TypeAlias = Callable[[list[Any]], Any]
# The optimizer and the number of its steps → a scheduler, whose `step()` is called once a step; a ReduceLROnPlateau's
# with the validation loss, after each evaluation.
MakeScheduler: TypeAlias = Callable[[Any, int], Any]


def with_own(prepared: Prepared, optimizer: MakeOptimizer | None, scheduler: MakeScheduler | None) -> Prepared:
    """`prepared` with the optimizer and the scheduler that were asked for, which its provenance then names.

    Raises UsageError "optimizer-unfit" for what is none, takes a closure or a metric that this run cannot give, or has
    a state that could not be saved; TrainingError "nothing-to-train".
    """
    made: dict[str, Any] = {}
    described: dict[str, Any] = {}
    if optimizer is not None:
        trained = [parameter for parameter in prepared.pipeline.model.parameters() if parameter.requires_grad]
        if not trained:
            raise TrainingError(
                "nothing-to-train",
                "no parameter of the model asks for a gradient",
                where=type(prepared.pipeline.model).__name__,
                fix="unfreeze some: parameter.requires_grad_(True)",
            )
        made["optimizer"] = optimizer(trained)
        _check("optimizer", made["optimizer"], torch.optim.Optimizer, "closure")
        described["optimizer"] = _described(made["optimizer"])
    if scheduler is not None:
        if optimizer is None:
            raise UsageError(
                "optimizer-unfit",
                "a scheduler of your own needs an optimizer of your own",
                value="scheduler",
                fix="give optimizer= as well, e.g. optimizer=lambda params: torch.optim.AdamW(params, lr=1e-4)",
            )
        total = Schedule.of(prepared.batches, prepared.config).total
        made["scheduler"] = scheduler(made["optimizer"], total)
        if isinstance(made["scheduler"], ReduceLROnPlateau):
            _check_plateau(made["scheduler"], validated=bool(prepared.held_out))
        else:
            _check("scheduler", made["scheduler"], LRScheduler, "metrics")
        described["scheduler"] = _described(made["scheduler"])
    return dataclasses.replace(prepared, **made, provenance={**prepared.provenance, **described})


def check_settings(config: TrainConfig, optimizer: MakeOptimizer | None, scheduler: MakeScheduler | None) -> None:
    """Nothing that was asked for is dropped in silence: raises UsageError "optimizer-and-setting"."""
    unused = {
        "optimizer": (("learning_rate", "weight_decay", "layer_decay") if optimizer is not None else ()),
        "scheduler": (("warmup", "schedule") if scheduler is not None else ()),
    }
    for name, settings in unused.items():
        for setting in settings:
            if setting in config.model_fields_set and config.__dict__[setting] is not None:
                raise UsageError(
                    "optimizer-and-setting",
                    f"{setting} is a setting of the default {name}, and a {name} of your own was given",
                    value=config.__dict__[setting],
                    fix=f"leave {setting} out of the config, and give it to your {name}",
                )


def _check(name: str, made: Any, kind: Any, argument: str) -> None:
    if not isinstance(made, kind):
        raise _unfit(name, f"{name}= gave no {kind.__name__}", type(made).__name__)
    needed = inspect.signature(made.step).parameters.get(argument)
    if needed is not None and needed.default is inspect.Parameter.empty:
        raise _unfit(
            name, f"{type(made).__name__}.step needs a {argument}, which the loop has none to give of", argument
        )
    try:
        pack(made.state_dict())
    except TypeError as error:
        raise _unfit(
            name, f"the state of {type(made).__name__} cannot be saved: {error}", type(made).__name__
        ) from None


def _check_plateau(made: ReduceLROnPlateau, *, validated: bool) -> None:
    """It looks at the validation loss, which there has to be, and which is better the lower it is."""
    what, fix = "ReduceLROnPlateau looks at the validation loss", ""
    if not validated:
        what, fix = f"{what}, and there are no validation rows", "give validation=, a file or a share such as 0.1"
    elif made.mode != "min":
        what, fix = f"{what}, which is better the lower it is, and its mode is {made.mode!r}", 'give mode="min"'
    if fix:
        raise UsageError("optimizer-unfit", what, value="ReduceLROnPlateau", fix=fix)


def _unfit(name: str, what: str, value: object) -> UsageError:
    example = {
        "optimizer": "optimizer=lambda params: torch.optim.SGD(params, lr=0.01, momentum=0.9)",
        "scheduler": "scheduler=lambda optimizer, total: torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total)",
    }[name]
    return UsageError(
        "optimizer-unfit", what, value=value, fix=f"e.g. {example}; or a loop of your own, ws.Checkpointer"
    )


def _described(made: Any) -> dict[str, Any]:
    """Its class and its plain settings at its start, so that a run is not resumed with another one."""
    kind = f"{type(made).__module__}.{type(made).__qualname__}"
    if isinstance(made, torch.optim.Optimizer):
        groups = [{**group, "params": len(group["params"])} for group in made.param_groups]
        return {"class": kind, "groups": [_plain(group) for group in groups]}
    return {"class": kind, "state": _plain(made.state_dict())}


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if _is_plain(value)}


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value))
