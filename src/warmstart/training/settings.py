"""What the settings of a run have in common: they are frozen and typed, and every wrong one is named."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

from pydantic import ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from warmstart.errors import UsageError, Where, did_you_mean

FROZEN = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)


# What other trainers call a setting of ours whose name is not like theirs.
_ELSEWHERE = {"lr": "learning_rate", "r": "rank", "gradient_accumulation_steps": "accumulate"}


class Table(Protocol):
    """A pydantic model of settings. `table` stands before its keys: "lora." of `lora.rank`."""

    table: ClassVar[str]
    model_fields: ClassVar[dict[str, FieldInfo]]


def refuse(cls: type[Table], values: Any, make: Any) -> Any:
    """A wrap validator: pydantic's refusal as UsageError "config-unknown-key" or "config-value" that names the key."""
    try:
        return make(values)
    except ValidationError as error:
        raise _refused(cls, error) from None


def with_none(values: Mapping[str, Any]) -> dict[str, Any]:
    """Plain values in which the word "none" stands for None, as neither TOML nor a command line has it."""
    return {key: with_none(value) if isinstance(value, dict) else _none(value) for key, value in values.items()}


def without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `with_none`."""
    return {
        key: without_none(value) if isinstance(value, dict) else "none" if value is None else value
        for key, value in values.items()
    }


def _none(value: Any) -> Any:
    return None if isinstance(value, str) and value.lower() == "none" else value


def _refused(cls: type[Table], error: ValidationError) -> UsageError:
    first = max(error.errors(), key=lambda each: len(each["loc"]))  # of several types, the one that came furthest
    # What stands behind the name is which of its types was tried.
    name = str(first["loc"][0]) if first["loc"] else None
    key = cls.table.rstrip(".") if name is None else cls.table + name
    if first["type"] == "extra_forbidden":
        return UsageError(
            "config-unknown-key",
            f"there is no training setting {key!r}",
            where=Where(field=key),
            fix=did_you_mean(_ELSEWHERE.get(name or "", name or ""), cls.model_fields),
        )
    field = cls.model_fields.get(name or "")
    example = next(iter(cls.model_fields))
    return UsageError(
        "config-value",
        f"the training setting {key!r} cannot have this value: {first['msg']}",
        where=Where(field=key or None),
        value="none" if first["input"] is None else first["input"],  # None as this is read and written
        fix=f"{key}: {field.description}" if field else f"give settings by name, such as {cls.table}{example}",
    )
