"""How text is generated: the options that generating tasks share, their rules, and what they mean together."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from warmstart.errors import CheckpointError, DataError, UsageError
from warmstart.rows import Row
from warmstart.tasks.option_rules import Rule
from warmstart.tokenization import Tokenizer

# Options of every generating task, which has a field of each name; `Generation` tells what they mean.
GENERATION_RULES: Mapping[str, tuple[Any, ...] | Rule] = {
    "max_new_tokens": (int,),
    "min_new_tokens": Rule(lambda value: type(value) is int and value >= 0, "a whole number from 0"),
    "temperature": Rule(lambda value: _is_number(value) and 0 <= value <= 100, "a number from 0 (greedy) to 100"),
    "top_k": Rule(lambda value: type(value) is int and value >= 0, "a whole number from 0, which is all tokens"),
    "top_p": (float,),
    "beams": (int,),
    "length_penalty": Rule(lambda value: _is_number(value) and 0 <= value <= 100, "a number from 0 to 100"),
    "stop": Rule(lambda value: _are_stops(value), "a text, or a list of at most 16 texts"),
    "seed": Rule(lambda value: type(value) is int and value >= 0, "a whole number from 0"),
    "cache_megabytes": (int,),
}
GENERATION_OPTIONS = tuple(GENERATION_RULES)
_MOST_STOPS = 16

# Where configs keep the sizes of a key-value cache, by the names that model families give them; the decoder's first.
_NESTED = ("text_config", "decoder")
_LAYERS = ("num_decoder_layers", "decoder_layers", "num_hidden_layers", "n_layer", "n_layers", "num_layers")
_HEADS = ("decoder_attention_heads", "num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads")
_WIDTH = ("hidden_size", "d_model", "n_embd")
_HEAD = ("head_dim", "d_kv")
_SHARED_HEADS = ("num_key_value_heads", "num_kv_heads")
_OTHER_CACHES = ("kv_lora_rank", "qk_nope_head_dim", "layers_block_type", "mamba_d_state", "state_size")
_CACHE_SIZES = frozenset([*_LAYERS, *_HEADS, *_WIDTH, *_HEAD, *_SHARED_HEADS, *_OTHER_CACHES, "global_head_dim"])

log = logging.getLogger("warmstart")


@dataclass(frozen=True, kw_only=True)
class Generation:
    """What stands between a model's logits and its text.

    `temperature` 0 takes the most probable token each time (greedy). Above it tokens are drawn, from the `top_k` most
    probable (0: all) and of these from the fewest that together have probability `top_p` (nucleus sampling: A. Holtzman
    et al., "The Curious Case of Neural Text Degeneration", ICLR 2020). `beams` above 1 search for the most probable
    text, whose log probability is divided by its length to the power of `length_penalty`. An answer ends with a token
    of `end_ids`, before the first text of `stop`, or after `max_new_tokens`; no such token comes before
    `min_new_tokens`. Draws are a function of `seed` and the row alone.

    Raises UsageError "option-conflict" for options that do not go together.
    """

    max_new_tokens: int
    min_new_tokens: int = 0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    beams: int = 1
    length_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int = 0
    end_ids: tuple[int, ...] = ()
    pad_id: int = 0

    def __post_init__(self) -> None:
        if self.beams > 1 and self.temperature > 0:
            raise _conflict("beams and temperature", "beams search for the most probable text, and draw none")
        if self.beams > 1 and self.stop:
            raise _conflict("beams and stop", "a beam is not stopped by a text; cut the answer instead")
        if self.temperature == 0 and (self.top_k or self.top_p < 1):
            raise _conflict("top_k or top_p without temperature", "only drawing reads them", "set temperature=1.0")
        if self.min_new_tokens > self.max_new_tokens:
            raise _conflict("min_new_tokens above max_new_tokens", "an answer cannot be that long and that short")


def stops(value: str | list[str] | tuple[str, ...]) -> tuple[str, ...]:
    """The option `stop` as a task keeps it."""
    return (value,) if isinstance(value, str) else tuple(value)


def generation_of(options: Mapping[str, Any], tokenizer: Tokenizer, end_ids: tuple[int, ...]) -> Generation:
    """A generating task's options together; `options` holds a value for each of GENERATION_OPTIONS.

    A text of `stop` that is a special token of the checkpoint ends an answer as the tokens of `end_ids` do: it says
    nothing, so no text would show it.

    Raises UsageError "option-conflict", and "option-value" for a stop text with a special token among other things.
    """
    chosen = {name: options[name] for name in GENERATION_OPTIONS if name != "cache_megabytes"}
    chosen["stop"] = tuple(text for text in options["stop"] if text not in tokenizer.specials)
    ends = tuple(tokenizer.rust.token_to_id(text) for text in options["stop"] if text in tokenizer.specials)
    for text in chosen["stop"]:
        if found := next((token for token in sorted(tokenizer.specials) if token in text), None):
            raise UsageError(
                "option-value",
                f"no answer says the special token {found!r}, so none can be stopped by a text that has it",
                value=text,
                fix=f"set stop={found!r}, which ends an answer as a token, or leave it out of the text",
            )
    return Generation(**chosen, end_ids=tuple(dict.fromkeys(end_ids + ends)), pad_id=tokenizer.pad_id)


def end_ids_of(config: Mapping[str, Any], folder: Path) -> tuple[int, ...]:
    """The tokens that end a text: what the folder's `generation_config.json` says, else the config.

    Raises CheckpointError "json-invalid"."""
    found = stored_settings(folder).get("eos_token_id")
    found = (config.get("text_config") or config).get("eos_token_id") if found is None else found
    ids = found if isinstance(found, list) else [found]
    return tuple(token for token in ids if type(token) is int)


def stored_settings(folder: Path) -> Mapping[str, Any]:
    """What the checkpoint's `generation_config.json` says; nothing where it has none.

    Raises CheckpointError "json-invalid"."""
    path = folder / "generation_config.json"
    try:
        own = json.loads(path.read_bytes()) if path.is_file() else {}
    except (ValueError, RecursionError):
        own = None
    if not isinstance(own, dict):
        raise CheckpointError(
            "json-invalid",
            f"{path.name} is no JSON object",
            where=str(path),
            fix="get the file from the checkpoint's publisher again, or remove it: the config says what is needed",
        )
    return own


def with_cache_sizes(config: Mapping[str, Any], resolved: Mapping[str, Any]) -> Mapping[str, Any]:
    """A checkpoint's own config with the sizes of a key-value cache that it leaves out, as `resolved` has them: what
    transformers makes of it."""
    found = {name: value for name, value in _decoder(resolved).items() if name in _CACHE_SIZES and value is not None}
    key = next((name for name in _NESTED if isinstance(config.get(name), Mapping)), None)
    part = config if key is None else config[key]
    whole = {**part, **{name: value for name, value in found.items() if part.get(name) is None}}
    return whole if key is None else {**config, key: whole}


def cache_bytes_a_token(config: Mapping[str, Any]) -> int:
    """Bytes that one token of one row takes in a decoder's key-value cache, in float32; 0 where the config does not
    say, which is logged: rows then go one at a time.

    Two vectors, key and value, of every layer and key-value head.
    """
    sizes = _decoder(config)
    layers = _first(sizes, *_LAYERS)
    heads = _first(sizes, *_HEADS)
    width = _first(sizes, *_WIDTH)
    head = max(_first(sizes, *_HEAD), _first(sizes, "global_head_dim")) or (width // heads if heads else 0)
    found = 2 * 4 * layers * (_first(sizes, *_SHARED_HEADS) or heads) * head
    # Latent attention caches vectors of other sizes, and some layers none at all: no formula here.
    if found and not any(sizes.get(name) for name in _OTHER_CACHES):
        return found
    log.warning(
        "the config of this %s checkpoint does not say how large a key-value cache is: rows go one at a time",
        config.get("model_type", ""),
    )
    return 0


def rows_at_most(tokens: int, how: Generation, *, bytes_a_token: int, megabytes: int) -> int:
    """Rows of `tokens` tokens each, prompt and answer, whose key-value cache fits into `megabytes`; may be 0. Where
    `bytes_a_token` is 0, not known, it is 1."""
    row = tokens * bytes_a_token * how.beams
    return (megabytes << 20) // row if row else 1


def cache_too_large(
    row: Row, prompt: int, new: int, how: Generation, *, bytes_a_token: int, megabytes: int
) -> DataError:
    """What a row is refused by whose `prompt` and `new` tokens do not fit into the cache even alone."""
    needed = (prompt + new) * bytes_a_token * how.beams
    return DataError(
        "cache-too-large",
        f"{prompt:,} tokens of prompt and {new:,} new ones need {needed / 2**20:,.1f} MB of key-value cache, "
        f"{megabytes:,} MB are allowed",
        where=row.where,
        value=prompt + new,
        fix=f"set cache_megabytes={-(-needed >> 20)}, or lower max_new_tokens, beams or max_length",
    )


def _decoder(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a config that is about the decoder of text."""
    return next((config[name] for name in _NESTED if isinstance(config.get(name), Mapping)), config)


def _first(config: Mapping[str, Any], *names: str) -> int:
    return next((config[name] for name in names if type(config.get(name)) is int), 0)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _are_stops(value: Any) -> bool:
    texts = [value] if isinstance(value, str) else value
    return (
        isinstance(texts, list | tuple)
        and len(texts) <= _MOST_STOPS
        and all(isinstance(text, str) and text for text in texts)
    )


def _conflict(what: str, why: str, fix: str = "leave one of the two out") -> UsageError:
    return UsageError("option-conflict", f"{what}: {why}", value=what, fix=fix)
