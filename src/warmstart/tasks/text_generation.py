"""Text generation: the text that follows a prompt, or the answer in a conversation; and training on such texts."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from warmstart.errors import UsageError
from warmstart.features import Array, Batch, Feature, Pad
from warmstart.metrics import Measure
from warmstart.rows import Field, Row
from warmstart.tasks.chat import Chat
from warmstart.tasks.class_loss import IGNORED
from warmstart.tasks.contract import Scores, checked_options, for_score, judged
from warmstart.tasks.decoding import Answer, CausalSteps, answer_of, beam_search, generate, stacked, to_the_right
from warmstart.tasks.generated_rows import asked, learned
from warmstart.tasks.generation_options import (
    GENERATION_OPTIONS,
    GENERATION_RULES,
    Generation,
    cache_bytes_a_token,
    cache_too_large,
    end_ids_of,
    generation_of,
    rows_at_most,
    stops,
    stored_settings,
)
from warmstart.tasks.position_head import logits_at
from warmstart.tasks.processors import say_not_followed
from warmstart.tokenization import Tokenizer

log = logging.getLogger("warmstart")

_ROOM = 4  # at most one part in so many of the context is kept free for the answer to a long prompt


@dataclass(frozen=True)
class GeneratedText:
    """What follows a prompt. `finish_reason`: "end" where the model ended its text, "stop" before a text of `stop`,
    "length" where it was cut after `max_new_tokens`, or where the context was full (then with a flag)."""

    generated_text: str
    finish_reason: str
    new_tokens: int
    tokens: int
    truncated: bool
    flags: tuple[str, ...] = ()
    losses: Array | None = for_score()  # (learned,): -log probability of each token that was to be learned


@dataclass(frozen=True)
class TextGeneration:
    """Generates greedily unless told otherwise; the options are those of `Generation`.

    A prompt that leaves too little room for an answer, and a row over the limit in training, loses its beginning, which
    is reported (`long_text="truncate"`), or is an error ("error").
    """

    tokenizer: Tokenizer
    chat: Chat | None = None  # a checkpoint's chat template; None: it has none
    end_ids: tuple[int, ...] = ()
    bytes_a_token: int = 0  # of the key-value cache
    max_new_tokens: int = 128
    min_new_tokens: int = 0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    beams: int = 1
    length_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int = 0
    cache_megabytes: int = 2048
    long_text: Literal["truncate", "error"] = "truncate"

    name: ClassVar[str] = "text-generation"
    auto_class: ClassVar[str] = "AutoModelForCausalLM"
    trainable: ClassVar[bool] = True
    couples_rows: ClassVar[bool] = False
    prediction: ClassVar[type[GeneratedText]] = GeneratedText
    fields: ClassVar[tuple[Field, ...]] = (
        Field("prompt", ("text", "instruction"), doc="the text to go on with", text=True, instead="messages"),
        Field("messages", ("conversation",), required=False, doc="a conversation: role and content of each message"),
        Field("completion", ("response", "output"), False, True, "what shall follow", optional=True, text=True),
        Field("seed", (), required=False, whole=True, doc="a whole number: another draw for this row"),
    )
    option_names: ClassVar[tuple[str, ...]] = (*GENERATION_OPTIONS, "long_text")

    def __post_init__(self) -> None:
        _ = self.how  # options that do not go together are an error now, not at the first row

    @property
    def pads(self) -> Mapping[str, Pad]:
        return {"input_ids": Pad(self.tokenizer.pad_id), "attention_mask": Pad(0), "labels": Pad(IGNORED)}

    @classmethod
    def from_checkpoint(
        cls, tokenizer: Tokenizer, config: Mapping[str, Any], folder: Path, options: Mapping[str, Any]
    ) -> TextGeneration:
        """Raises UsageError "option-conflict", and those of `checked_options`."""
        chosen = checked_options(cls, options, {**GENERATION_RULES, "long_text": ("truncate", "error")})
        if "stop" in chosen:
            chosen["stop"] = stops(chosen["stop"])
        settings = stored_settings(folder)
        say_not_followed(settings)
        fewest = settings.get("min_new_tokens")
        if type(fewest) is int and fewest > 0:
            chosen.setdefault("min_new_tokens", min(fewest, chosen.get("max_new_tokens", cls.max_new_tokens)))
        return cls(
            tokenizer,
            Chat.from_folder(tokenizer, folder),
            end_ids_of(config, folder),
            cache_bytes_a_token(config),
            **chosen,
        )

    def learn(self, rows: Sequence[Row]) -> TextGeneration:
        return self

    def with_labels(self, labels: tuple[str, ...]) -> TextGeneration:
        raise UsageError("task-has-no-labels", "generated text has no labels", value=labels, fix="leave labels out")

    def head(self) -> dict[str, Any]:
        return {}

    @property
    def prompt_limit(self) -> int:
        """The most tokens of a prompt: the context without room for an answer, which is at most a quarter of it."""
        return self.tokenizer.limit - min(self.max_new_tokens, self.tokenizer.limit // _ROOM)

    def rows_at_most(self, longest: int) -> int:
        grown = longest + self._most(longest)
        return rows_at_most(grown, self.how, bytes_a_token=self.bytes_a_token, megabytes=self.cache_megabytes)

    def encode(self, rows: Sequence[Row], *, train: bool = False) -> Iterator[Feature]:
        """A prompt is one feature. With `train` a text over the limit is as many as it takes; other rows lose their
        beginning. Raises DataError "cache-too-large" for a prompt, and those of `asked` or `learned`."""
        if train:
            yield from self._learned(rows)
            return
        for index, told in enumerate(asked(rows, self.tokenizer, self._chat, self.prompt_limit, self.long_text)):
            length = len(told.ids)
            if not self.rows_at_most(length):
                raise cache_too_large(
                    *(rows[index], length, self._most(length), self.how),
                    bytes_a_token=self.bytes_a_token,
                    megabytes=self.cache_megabytes,
                )
            inputs = {"input_ids": told.ids, "attention_mask": np.ones_like(told.ids)}
            shortened = self._most(length) < self.max_new_tokens
            flags = (*told.flags, "answer-shortened") if shortened else told.flags
            meta = {"truncated": told.truncated, "flags": flags, "key": told.key, "seed": told.seed}
            yield Feature(index, 0, inputs, meta=meta, length=length)

    def exam(self, rows: Sequence[Row]) -> Iterator[Feature]:
        """The features of evaluation: the texts that training would learn."""
        return self._learned(rows, exam=True)

    def vary(self, feature: Feature, rng: np.random.Generator) -> Feature:
        return feature

    def forward(self, model: Any, batch: Batch) -> dict[str, Any]:
        """The logits (N, V) at the places before each token to be learned."""
        chosen = _next(batch.targets["labels"]) != IGNORED
        return {"logits": logits_at(model, {**batch.inputs, "use_cache": False}, chosen)}

    def infer(self, model: Any, batch: Batch) -> dict[str, Any]:
        """The new tokens (B, N) and why they ended (B,); of given targets, each one's loss at the place before it
        (B, T), 0 elsewhere."""
        ids = batch.inputs["input_ids"]
        if "labels" not in batch.targets:
            *_, answers = self._answers(model, batch)
            return stacked(answers, ids)
        following = _next(batch.targets["labels"])
        chosen = following != IGNORED
        logs = self.forward(model, batch)["logits"].float().log_softmax(dim=-1)
        losses = -logs.gather(1, following[chosen].unsqueeze(1)).squeeze(1)
        return {"losses": losses.new_zeros(ids.shape).index_put((chosen,), losses)}

    def stream(self, model: Any, batch: Batch) -> Iterator[Sequence[Answer]]:
        """Raises UsageError "stream-with-beams"."""
        if self.beams > 1:
            raise UsageError(
                "stream-with-beams", "a search knows its text at its end only", value=self.beams, fix="set beams=1"
            )
        return self._answers(model, batch)

    def loss(self, outputs: Mapping[str, Any], batch: Batch) -> tuple[Any, Any]:
        """Cross entropy, averaged over the feature's learned tokens, whose number is its weight."""
        import torch.nn.functional as F

        following = _next(batch.targets["labels"])
        chosen = following != IGNORED
        losses = F.cross_entropy(outputs["logits"].float(), following[chosen], reduction="none")
        counts = chosen.sum(dim=1).to(losses.dtype)  # (B,)
        sums = losses.new_zeros(following.shape).index_put((chosen,), losses).sum(dim=1)
        return sums / counts.clamp(min=1), counts

    def decode(self, row: Row, features: Sequence[Feature], outputs: Sequence[Mapping[str, Array]]) -> GeneratedText:
        meta = features[0].meta
        tokens = sum(feature.length for feature in features)
        if features[0].targets:
            losses = [
                output["losses"][: feature.length - 1][feature.targets["labels"][1:] != IGNORED]
                for feature, output in zip(features, outputs, strict=True)
            ]
            return GeneratedText(
                "", "", 0, tokens, meta["truncated"], meta["flags"], losses=np.concatenate(losses).astype(np.float64)
            )
        text, new_tokens, finish = answer_of(outputs[0], self.how, self._text)
        return GeneratedText(text, finish, new_tokens, tokens, meta["truncated"], meta["flags"])

    def score(self, predictions: Sequence[GeneratedText], rows: Sequence[Row]) -> Scores:
        """Perplexity: e to the mean loss of all tokens that training would learn. Weights are chosen by the loss."""
        losses = [np.zeros(0) if p.losses is None else p.losses for p in predictions]
        sums, counts = np.array([each.sum() for each in losses]), np.array([len(each) for each in losses])
        return judged(
            {"loss": sums / np.maximum(counts, 1), "learned": counts},
            {"perplexity": Measure("perplexity", ("loss", "learned"))},
        )

    @cached_property
    def how(self) -> Generation:
        """The options together. Raises UsageError "option-conflict", "option-value"."""
        return generation_of(vars(self), self.tokenizer, self.end_ids)

    @cached_property
    def _chat(self) -> Chat:
        return self.chat or Chat(self.tokenizer)

    def _most(self, length: int) -> int:
        """Tokens that the answer to a prompt of `length` may have."""
        return min(self.max_new_tokens, self.tokenizer.limit - length)

    def _answers(self, model: Any, batch: Batch) -> Iterator[Sequence[Answer]]:
        answers = [
            Answer(
                self.how,
                most=self._most(feature.length),
                key=feature.meta["key"],
                seed=feature.meta["seed"] if feature.meta["seed"] is not None else self.how.seed,
                decode=self._text,
                together=self.tokenizer.together,
            )
            for feature in batch.features
        ]
        if self.beams == 1:
            mosts = [answer.most for answer in answers]
            steps = CausalSteps(model, batch.inputs["input_ids"], batch.inputs["attention_mask"], self.how, mosts)
            return generate(steps, answers, self.how, batch.features)
        ids, mask = to_the_right(batch.inputs["input_ids"], batch.inputs["attention_mask"])
        return beam_search(model, {"input_ids": ids, "attention_mask": mask}, answers, self.how)

    def _learned(self, rows: Sequence[Row], *, exam: bool = False) -> Iterator[Feature]:
        """Rows as texts with labels. A row with nothing to learn (a single token) is given in an exam only; and what
        happens to rows is said outside of one only, as an exam's rows were encoded to be checked before."""
        empty, cut, lost = 0, list[Row](), 0
        for index, told in enumerate(learned(rows, self.tokenizer, self._chat, self.end_ids[:1], self.long_text)):
            cut += [rows[index]] if told[0].truncated else []
            lost += told[0].lost > 0
            if not exam and not any((part.labels[1:] != IGNORED).any() for part in told):
                empty += 1
                continue
            for number, part in enumerate(told):
                labels = np.where(np.arange(len(part.labels)) == 0, IGNORED, part.labels)  # nothing stands before it
                inputs = {"input_ids": part.ids, "attention_mask": np.ones_like(part.ids)}
                meta = {"truncated": part.truncated, "flags": part.flags}
                yield Feature(index, number, inputs, {"labels": labels}, meta, length=len(part.ids))
        if exam:
            return
        if empty:
            log.warning("%d of %d rows have nothing to learn and are left out", empty, len(rows))
        if cut:
            log.warning(
                "%s of %s rows are longer than %s tokens and lose their beginning, %s of them some of what was to be "
                "learned: first at %s; long_text=error refuses such rows",
                *(f"{number:,}" for number in (len(cut), len(rows), self.tokenizer.limit, lost)),
                cut[0].where,
            )
        if not self.end_ids and any(row.get("completion") is not None for row in rows):
            log.warning(
                "the checkpoint names no token that ends a text (eos_token_id): completions are learned without an "
                "end, and answers will go on to max_new_tokens"
            )

    def _text(self, tokens: list[int]) -> str:
        return str(self.tokenizer.rust.decode(tokens, skip_special_tokens=True))


def _next(labels: Any) -> Any:
    """At each place, the label of the token after it: (B, T)."""
    following = labels.new_full(labels.shape, IGNORED)
    following[:, :-1] = labels[:, 1:]
    return following
