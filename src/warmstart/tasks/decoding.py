"""Token by token: the loop that turns a model's next-token logits into answers, for a batch of rows at once.

    steps.first() ─▶ logits ──choose──▶ a token for each row ──Answer.add──▶ rows that go on ──steps.next──▶ logits …

`Steps` is what a kind of model brings: how its prompt is read, and how one more token is. Tensors are handled by their
own methods, so that nothing here imports torch. A row's answer is a function of the row alone: rows that are done leave
the batch, and each draws from a stream of its own.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from warmstart.features import Array, Feature
from warmstart.randomness import generator
from warmstart.tasks.generation_options import Generation
from warmstart.tasks.processors import ProcessedPrompts, ends, prepared

LOST = "lost"  # no reason to end, but NaN
NOTHING = -1  # stands in an array of tokens after the last
HALF = "\N{REPLACEMENT CHARACTER}"  # stands in a text for bytes that are no character, or not yet
FINISHES = ("end", "stop", "length")  # a token that ends the text, a stop text, or the most tokens it may have


_BEHIND = 16  # tokens that are decoded again with a new one


class Steps(Protocol):
    """A batch of rows in a model that generates, with its key-value cache, which is gone with this object."""

    def first(self) -> Any:
        """Logits (B, V) of each row's first new token."""
        ...

    def next(self, tokens: Any) -> Any:
        """Logits (B, V) of the token after `tokens` (B,)."""
        ...

    def keep(self, rows: Any) -> None:
        """Go on with these rows (b,) alone."""
        ...


class Answer:
    """One row's answer while it grows. `finish` is one of FINISHES when it is done; the end token is no part of it."""

    def __init__(
        self,
        how: Generation,
        *,
        most: int,
        key: str,
        seed: int,
        decode: Callable[[list[int]], str],
        together: frozenset[int] = frozenset(),
    ) -> None:
        """`most`: tokens it may have; `key` and `seed`: what it draws by; `decode` makes text of tokens, of a run of
        those in `together` (`Tokenizer.together`) as of one."""
        self.tokens: list[int] = []
        self.finish: str | None = None
        self.most = most
        self._how, self._decode, self._together = how, decode, together
        self._text, self._read = "", 0  # what the first so many tokens say
        self._run = 0  # where the last run begins, which is the end if there is none
        self._before, self._kept = "", 0  # what the tokens before a run say, and how many they are
        self._draws = generator(seed, "sample", key) if how.temperature else None

    def add(self, token: int) -> None:
        """Take the next token, and see whether the answer is done."""
        if token in self._how.end_ids:
            self.finish = "end"
            return
        self.tokens.append(token)
        if token not in self._together:
            self._run = len(self.tokens)
        if self._how.stop and _cut(self._grown(), self._how.stop) is not None:
            self.finish = "stop"
        elif len(self.tokens) >= self.most:
            self.finish = "length"

    def lose(self) -> None:
        """The model gave no number to go on by; `decode_row` will name the row."""
        self.finish = LOST

    def finish_with(self, tokens: Sequence[int]) -> None:
        """Take all tokens of a search, which pads behind the end."""
        for token in tokens:
            if self.finish is None:
                self.add(token)
        self.finish = self.finish or "length"

    def draw(self) -> float:
        """The next number from 0 to 1 of this row's stream."""
        assert self._draws is not None, "greedy answers draw nothing"
        return float(self._draws.random())

    @property
    def text(self) -> str:
        """The answer without a stop text."""
        text = self._grown()
        cut = _cut(text, self._how.stop)
        return text if cut is None else text[:cut]

    @property
    def settled(self) -> str:
        """The part of the text that further tokens cannot change: no half character, no beginning of a stop text, no
        run of bytes that may go on."""
        if self.finish is not None:
            return self.text
        text = self._apart().rstrip(HALF)
        longest = max((len(stop) for stop in self._how.stop), default=1) - 1
        for size in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-size:]) for stop in self._how.stop):
                return text[:-size]
        return text

    def _apart(self) -> str:
        """What the tokens before the last run say. It is kept while the run grows."""
        if self._run == len(self.tokens):
            self._before, self._kept = self._grown(), self._run
        elif self._kept != self._run:
            self._before, self._kept = self._decode(self.tokens[: self._run]), self._run
        return self._before

    def _grown(self) -> str:
        """What all tokens say. Of a long answer its end alone is decoded, with and without what is new: a decoder may
        treat the first token and half a character otherwise, and where it might, all is decoded."""
        start, text = self._read - _BEHIND, None
        if len(self.tokens) == self._read:
            return self._text
        if start > 0:
            before, after = self._decode(self.tokens[start : self._read]), self._decode(self.tokens[start:])
            if before.strip() and self._text.endswith(before) and after.startswith(before) and HALF not in after:
                text = self._text + after[len(before) :]
        self._text, self._read = self._decode(self.tokens) if text is None else text, len(self.tokens)
        return self._text

    def outputs(self, width: int | None = None) -> dict[str, Array]:
        """What `decode` reads: `tokens` (width,), NOTHING after the last, and `finish` (), a place in FINISHES, or NaN
        where the model answered with it."""
        assert self.finish is not None, "an answer has outputs when it is done"
        tokens = np.full(len(self.tokens) if width is None else width, NOTHING, dtype=np.int64)
        tokens[: len(self.tokens)] = self.tokens
        return {
            "tokens": tokens,
            "finish": np.array(math.nan if self.finish == LOST else float(FINISHES.index(self.finish))),
        }


def answer_of(output: Mapping[str, Array], how: Generation, decode: Callable[[list[int]], str]) -> tuple[str, int, str]:
    """Text, number of tokens, and finish of what `Answer.outputs` holds."""
    tokens = output["tokens"][output["tokens"] != NOTHING].tolist()
    text = decode(tokens)
    cut = _cut(text, how.stop)
    return text if cut is None else text[:cut], len(tokens), FINISHES[int(output["finish"])]


def stacked(answers: Sequence[Answer], like: Any) -> dict[str, Any]:
    """The outputs of a batch's answers as tensors beside `like`: tokens (B, N), finish (B,)."""
    width = max(1, *(len(answer.tokens) for answer in answers)) if answers else 1
    rows = [answer.outputs(width) for answer in answers]
    return {
        "tokens": like.new_tensor([row["tokens"].tolist() for row in rows]),
        "finish": like.float().new_tensor([float(row["finish"]) for row in rows]),
    }


def generate(
    steps: Steps, answers: Sequence[Answer], how: Generation, features: Sequence[Feature]
) -> Iterator[Sequence[Answer]]:
    """Let all answers grow by a token at a time until each is done, or its feature is wanted no more; yields them after
    every token.

    The key-value cache lives in `steps`: whoever stops early closes this iterator and lets go of it.
    """
    live = list(answers)
    logits = steps.first()
    while True:
        tokens = choose(logits, live, how)
        lost = logits.isnan().any(dim=-1).tolist()
        for answer, token, is_lost in zip(live, tokens.tolist(), lost, strict=True):
            if is_lost:
                answer.lose()
            else:
                answer.add(token)
        yield answers
        for answer, feature in zip(answers, features, strict=True):
            if answer.finish is None and not feature.wanted():
                answer.finish = "length"  # which nobody reads
        going = [place for place, answer in enumerate(live) if answer.finish is None]
        if not going:
            return
        if len(going) < len(live):
            rows = tokens.new_tensor(going)
            steps.keep(rows)
            tokens, live = tokens[rows], [live[place] for place in going]
        logits = steps.next(tokens)


def choose(logits: Any, answers: Sequence[Answer], how: Generation) -> Any:
    """The next token of each row (B,), from logits (B, V)."""
    if not how.temperature:
        return logits.argmax(dim=-1)
    # Double precision: a draw must not fall on another token because a batch of other size rounds otherwise.
    ranked, order = (logits.double() / how.temperature).sort(dim=-1, descending=True, stable=True)
    ranked = ranked[:, : how.top_k or None]
    upto = ranked.softmax(dim=-1).cumsum(dim=-1)  # (B, K) the probability of each token and all before it
    kept = (upto < how.top_p).sum(dim=-1).clamp(max=ranked.shape[-1] - 1)  # the last that may be drawn
    whole = upto.gather(1, kept[:, None])
    draws = whole.new_tensor([answer.draw() for answer in answers])[:, None] * whole
    place = (upto <= draws).sum(dim=-1, keepdim=True).minimum(kept[:, None])
    return order.gather(1, place)[:, 0]


class CausalSteps:
    """Rows in a decoder. Whatever side they are padded on, they are laid to the right here, so that new tokens follow
    their prompts without a hole. What the checkpoint's generation settings do to logits is done here too."""

    def __init__(self, model: Any, input_ids: Any, attention_mask: Any, how: Generation, mosts: Sequence[int]) -> None:
        """(B, T) each; `mosts`: tokens each row's answer may have."""
        self._model, self._how, self._mosts = model, how, mosts
        self._ids, self._mask = to_the_right(input_ids, attention_mask)
        self._rows = self._mask.new_ones(len(self._mask)).cumsum(dim=0) - 1  # which of the batch's rows go on
        self._takes_positions = "position_ids" in _arguments(model)
        self._cache: Any = None

    def first(self) -> Any:
        self._processed = ProcessedPrompts(self._model, self._ids, self._mask, self._how, self._mosts)
        positions = (self._mask.cumsum(dim=1) - 1).clamp(min=0)
        return self._run(self._ids, positions)

    def next(self, tokens: Any) -> Any:
        self._processed.add(self._rows, tokens)
        self._mask = _with_column(self._mask)
        return self._run(tokens[:, None], self._mask.sum(dim=1, keepdim=True) - 1)

    def keep(self, rows: Any) -> None:
        self._rows, self._mask = self._rows[rows], self._mask[rows]
        self._cache.batch_select_indices(rows)

    def _run(self, ids: Any, positions: Any) -> Any:
        more = {"position_ids": positions} if self._takes_positions else {}
        outputs = self._model(
            input_ids=ids,
            attention_mask=self._mask,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
            **more,
        )
        self._cache = outputs.past_key_values
        return self._processed(self._rows, outputs.logits[:, -1].float())


def beam_search(
    model: Any, inputs: Mapping[str, Any], answers: Sequence[Answer], how: Generation
) -> Iterator[Sequence[Answer]]:
    """Give each answer the text that transformers' beam search finds; yields them once, at the end.

    A search has one limit for all its rows, so rows that may have another number of tokens are searched apart; and so
    are a decoder's prompts of other lengths where the checkpoint's settings would count their padding.
    """
    # An encoder-decoder gives the token that decoding starts with, a decoder the whole prompt.
    decoder = not model.config.is_encoder_decoder
    lengths = [0] * len(answers)
    if decoder and prepared(model, inputs["input_ids"][:1], how, answers[0].most):
        lengths = inputs["attention_mask"].sum(dim=1).tolist()
    keys = [(answer.most, length) for answer, length in zip(answers, lengths, strict=True)]
    for key in sorted(set(keys)):
        places = [place for place, own in enumerate(keys) if own == key]
        most, length = key
        given = {name: tensor[places, -length:] for name, tensor in inputs.items()}
        start = given["input_ids"].shape[1] if decoder else 1
        numbers = _Numbers(len(places))
        found = model.generate(
            **given,
            logits_processor=[numbers],
            **ends(how, most, after=start, decoder=decoder),
            num_beams=how.beams,
            do_sample=False,
            length_penalty=how.length_penalty,
        )
        for place, tokens, is_lost in zip(places, found[:, start:].tolist(), numbers.lost, strict=True):
            if is_lost:
                answers[place].lose()
            else:
                answers[place].finish_with(tokens)
    yield answers


class _Numbers:
    """A processor of logits that changes none: it finds the rows of a search whose logits hold NaN."""

    def __init__(self, rows: int) -> None:
        self.lost = [False] * rows

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """`scores` (rows * beams, V): the beams of a row stand together."""
        lost = scores.isnan().any(dim=-1).view(len(self.lost), -1).any(dim=1)
        self.lost = [before or now for before, now in zip(self.lost, lost.tolist(), strict=True)]
        return scores


def to_the_right(input_ids: Any, attention_mask: Any) -> tuple[Any, Any]:
    """The same rows (B, T), padded on the left: what follows a row then stands right behind it."""
    width = input_ids.shape[1]
    places = attention_mask.new_ones(1, width).cumsum(dim=1) - 1
    # Where each token comes from: the first kept place of its row, and on from there, around the end.
    first = attention_mask.long().argmax(dim=1, keepdim=True)
    shift = width - attention_mask.sum(dim=1, keepdim=True)
    come_from = (places + first - shift) % width
    return input_ids.gather(1, come_from), attention_mask.gather(1, come_from)


def _cut(text: str, stop: Sequence[str]) -> int | None:
    """Where the first stop text begins."""
    places = [place for each in stop if (place := text.find(each)) >= 0]
    return min(places, default=None)


def _with_column(mask: Any) -> Any:
    """A mask (B, T) with one more column of ones."""
    wider = mask.new_ones(mask.shape[0], mask.shape[1] + 1)
    wider[:, :-1] = mask
    return wider


def _arguments(model: Any) -> Mapping[str, Any]:
    return inspect.signature(model.forward).parameters
