"""An encoder-decoder that generates, as the loop of `decoding` drives it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from warmstart.tasks.generation_options import Generation
from warmstart.tasks.processors import Processed, ends


class EncoderDecoderSteps:
    """Rows in an encoder-decoder: the source is read once, and the decoder's cache grows by a token at a time.

    transformers prepares it, so that whatever the checkpoint's generation settings do to logits (a forced first token,
    tokens that may not be said, n-grams that may not be repeated) is done here too.
    """

    def __init__(self, model: Any, inputs: Mapping[str, Any], how: Generation, most: int) -> None:
        """`inputs`: `input_ids` and `attention_mask`, (B, T) each; `most`: tokens an answer may have."""
        self._model, self._inputs, self._how, self._most = model, inputs, how, most
        self._mask = inputs["attention_mask"]
        self._rows = self._mask.new_ones(len(self._mask)).cumsum(dim=0) - 1  # which of the batch's rows go on

    def first(self) -> Any:
        # The encoder runs in here, and not before the first step, which is taken in eval mode.
        arguments = ends(self._how, self._most, after=1, decoder=False)
        first = self._model.generate(
            **self._inputs, **arguments, num_beams=1, do_sample=False, custom_generate=self._take
        )
        return self._run(first)

    def _take(
        self,
        model: Any,
        input_ids: Any,
        *,
        logits_processor: Any,
        encoder_outputs: Any,
        past_key_values: Any,
        **others: Any,
    ) -> Any:
        """Stands where a decoding method of transformers would: it keeps what was prepared, and decodes nothing.

        `input_ids` (B, 1): the token that decoding starts with."""
        self._processed = Processed(logits_processor, input_ids, self._most, self._how.pad_id)
        self._encoded, self._cache = encoder_outputs, past_key_values
        return input_ids

    def next(self, tokens: Any) -> Any:
        self._processed.add(self._rows, tokens)
        return self._run(tokens[:, None])

    def keep(self, rows: Any) -> None:
        self._rows, self._mask = self._rows[rows], self._mask[rows]
        self._encoded.last_hidden_state = self._encoded.last_hidden_state[rows]
        self._cache.batch_select_indices(rows)

    def _run(self, last: Any) -> Any:
        outputs = self._model(
            decoder_input_ids=last,
            encoder_outputs=self._encoded,
            attention_mask=self._mask,
            past_key_values=self._cache,
            use_cache=True,
        )
        self._cache = outputs.past_key_values
        return self._processed(self._rows, outputs.logits[:, -1].float())
