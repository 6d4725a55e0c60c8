"""What a checkpoint's generation settings do to logits, as transformers prepares it, for rows that come and go.

transformers makes processors for one batch, whose rows are padded to one length and stay to the end. Here a processor
sees rows of one length without padding, and rows that are done keep their places: so what it does to a row is what it
does to the row alone.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from warmstart.tasks.generation_options import Generation

log = logging.getLogger("warmstart")

# Settings that no answer here follows, by what they say when they ask for nothing (beside null).
_UNFOLLOWED: Mapping[str, Any] = {
    "constraints": None,
    "diversity_penalty": 0.0,
    "dola_layers": None,
    "force_words_ids": None,
    "guidance_scale": 1,
    "max_time": None,
    "num_beam_groups": 1,
    "penalty_alpha": 0,
    "stop_strings": None,
    "token_healing": False,
    "watermarking_config": None,
}
# Settings of how an answer is found or returned, which leave the answer itself as it is.
_OTHER_WAYS: Mapping[str, Any] = {
    **dict.fromkeys(("assistant_early_exit", "prompt_lookup_num_tokens", "speculation_type", "use_mtp")),
    "num_return_sequences": 1,
    "return_dict_in_generate": False,
}


def say_not_followed(settings: Mapping[str, Any]) -> None:
    """Log those of a checkpoint's generation settings that change its texts elsewhere and are not followed here."""
    asked = {name: settings.get(name) for name in _UNFOLLOWED}
    said = [f"{name}={value!r}" for name, value in asked.items() if value is not None and value != _UNFOLLOWED[name]]
    if said:
        log.warning("the checkpoint's generation settings ask for what is not done here: %s", ", ".join(said))


def ends(how: Generation, most: int, *, after: int, decoder: bool) -> dict[str, Any]:
    """The arguments of `generate` that say where an answer of at most `most` tokens ends, which begins after so many
    tokens, and that it is made in no way that we do not follow, whatever the checkpoint's settings say.

    A stored `min_length` counts a decoder's prompt too, and holds where nothing else is asked; an encoder-decoder's is
    an option already.
    """
    asked = {
        **dict.fromkeys(_UNFOLLOWED),
        **_OTHER_WAYS,
        "max_new_tokens": most,
        "max_length": None,
        "min_new_tokens": None,  # beside a stored `min_length` it would be warned about
        "eos_token_id": list(how.end_ids) or None,
        "pad_token_id": how.pad_id,
    }
    if how.min_new_tokens:
        return asked | {"min_length": after + min(how.min_new_tokens, most)}
    return asked if decoder else asked | {"min_length": None}


class Processed:
    """Rows of one length, with the processors that transformers prepared for them."""

    def __init__(self, process: Any, ids: Any, most: int, pad_id: int) -> None:
        """`ids` (n, T) is what the decoder reads of each row; at most `most` tokens follow."""
        self._process = process
        self._length = ids.shape[1]
        self._ids = ids.new_full((len(ids), self._length + most), pad_id)
        self._ids[:, : self._length] = ids

    def add(self, rows: Any, tokens: Any) -> None:
        """The next token (b,) of these rows (b,)."""
        self._ids[rows, self._length] = tokens
        self._length += 1

    def __call__(self, rows: Any, logits: Any) -> Any:
        """The logits (b, V) of these rows (b,) as the settings want them."""
        if not self._process:
            return logits
        # Some processors remember the source of each row of the whole batch: rows that are done stay in their places.
        whole = logits.new_zeros(len(self._ids), logits.shape[1])
        whole[rows] = logits
        return self._process(self._ids[:, : self._length], whole)[rows]


class ProcessedPrompts:
    """A decoder's rows by the length of their prompts, each length with processors of its own."""

    def __init__(self, model: Any, prompts: Any, mask: Any, how: Generation, mosts: Sequence[int]) -> None:
        """`prompts` and `mask` (B, T) are padded on the left; `mosts`: tokens each row's answer may have."""
        self._each: list[Processed] = []
        self._group, self._place = (mask.new_zeros(len(mask)) for _ in range(2))
        groups: dict[tuple[int, int], list[int]] = {}
        for row, (length, most) in enumerate(zip(mask.sum(dim=1).tolist(), mosts, strict=True)):
            groups.setdefault((length, most), []).append(row)
        for (length, most), rows in groups.items():
            ids = prompts[rows, prompts.shape[1] - length :]
            process = prepared(model, ids, how, most)
            if not process:  # they depend on the settings alone, so there are none for any length
                return
            self._group[rows] = len(self._each)
            self._place[rows] = mask.new_tensor(range(len(rows)))
            self._each.append(Processed(process, ids, most, how.pad_id))

    def add(self, rows: Any, tokens: Any) -> None:
        """The next token (b,) of these rows (b,)."""
        for each, members in self._parts(rows):
            each.add(self._place[rows[members]], tokens[members])

    def __call__(self, rows: Any, logits: Any) -> Any:
        """The logits (b, V) of these rows (b,) as the settings want them."""
        for each, members in self._parts(rows):
            logits[members] = each(self._place[rows[members]], logits[members])
        return logits

    def _parts(self, rows: Any) -> list[tuple[Processed, Any]]:
        """Each length that has rows left, and where they stand among `rows`."""
        found = [(each, (self._group[rows] == number).nonzero()[:, 0]) for number, each in enumerate(self._each)]
        return [(each, members) for each, members in found if len(members)]


def prepared(model: Any, prompts: Any, how: Generation, most: int) -> Any:
    """The processors of logits that `generate` of a decoder would use for these prompts (n, T), which have no padding;
    false if there are none."""
    found: list[Any] = []

    def _take(model: Any, input_ids: Any, *, logits_processor: Any, **others: Any) -> Any:
        """Stands where a decoding method of transformers would, and decodes nothing."""
        found.append(logits_processor)
        return input_ids

    model.generate(
        input_ids=prompts,
        attention_mask=prompts.new_ones(prompts.shape),
        **ends(how, most, after=prompts.shape[1], decoder=True),
        num_beams=1,
        do_sample=False,
        custom_generate=_take,
    )
    return found[0]
