"""Text-to-text: a text is rewritten as another one, its summary or its translation, by an encoder-decoder."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from warmstart.errors import DataError, UsageError
from warmstart.features import Array, Batch, Feature, Pad
from warmstart.metrics import Measure, bleu_counts, chrf_counts, chrf_scores, rouge_scores
from warmstart.rows import Field, Row
from warmstart.tasks.class_loss import IGNORED
from warmstart.tasks.contract import Scores, checked_options, for_score, judged, text_of
from warmstart.tasks.decoding import Answer, answer_of, beam_search, generate, stacked
from warmstart.tasks.encoder_decoder import EncoderDecoderSteps
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
from warmstart.tasks.option_rules import Rule
from warmstart.tasks.processors import say_not_followed
from warmstart.tokenization import Tokenizer

log = logging.getLogger("warmstart")

MAX_NEW_TOKENS = 256  # where the checkpoint's settings do not say how long an answer may be


@dataclass(frozen=True)
class NewText:
    """What a text was rewritten as.

    `finish_reason`: "end" where the model ended it, "stop" before a text of the option `stop`, "length" where it was
    cut off after `max_new_tokens`. `new_tokens`: tokens of the answer. `tokens` are those of the source.
    """

    text: str
    finish_reason: str
    new_tokens: int
    tokens: int
    truncated: bool
    flags: tuple[str, ...] = ()
    losses: Array | None = for_score()  # (2,): the target's summed loss, and its tokens


@dataclass(frozen=True)
class TextToText:
    """`prefix` is put before each source ("summarize: "); `tasks.generation_options.Generation` tells what the options
    of generating mean. Those that nobody gives are the checkpoint's own: beams, length penalty, shortest and longest
    answer of its generation settings. A source over the limit is cut, or is an error (`long_text="error"`).
    """

    tokenizer: Tokenizer
    prefix: str = ""
    long_text: Literal["truncate", "error"] = "truncate"
    max_new_tokens: int = MAX_NEW_TOKENS
    min_new_tokens: int = 0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    beams: int = 1
    length_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int = 0
    cache_megabytes: int = 2048
    end_ids: tuple[int, ...] = ()
    bytes_a_token: int = 0  # that one token of one row takes in the decoder's cache
    positions: int | None = None  # tokens the decoder has places for; None: any number

    name: ClassVar[str] = "text-to-text"
    auto_class: ClassVar[str] = "AutoModelForSeq2SeqLM"
    trainable: ClassVar[bool] = True
    couples_rows: ClassVar[bool] = False
    prediction: ClassVar[type[NewText]] = NewText
    fields: ClassVar[tuple[Field, ...]] = (
        Field(
            "source", ("text", "document", "article", "dialogue", "input", "en"), doc="the text to rewrite", text=True
        ),
        Field(
            "target",
            ("summary", "translation", "highlights", "output", "de"),
            required=False,
            target=True,
            doc="what it should become",
        ),
    )
    option_names: ClassVar[tuple[str, ...]] = ("prefix", "long_text", *GENERATION_OPTIONS)

    def __post_init__(self) -> None:
        _ = self.how  # options that do not go together are an error now, not at the first row

    @property
    def pads(self) -> Mapping[str, Pad]:
        return {"input_ids": Pad(self.tokenizer.pad_id), "attention_mask": Pad(0), "labels": Pad(IGNORED)}

    @classmethod
    def from_checkpoint(
        cls, tokenizer: Tokenizer, config: Mapping[str, Any], folder: Path, options: Mapping[str, Any]
    ) -> TextToText:
        known = {
            "prefix": Rule(lambda value: isinstance(value, str), "a text"),
            "long_text": ("truncate", "error"),
            **GENERATION_RULES,
        }
        chosen = checked_options(cls, options, known)
        settings = {**config, **stored_settings(folder)}
        say_not_followed(settings)
        positions = _positions(config)
        if "max_new_tokens" in chosen and positions is not None and chosen["max_new_tokens"] > positions:
            raise UsageError(
                "option-value",
                f"max_new_tokens is more than the {positions} tokens that the decoder has places for",
                value=chosen["max_new_tokens"],
                fix=f"set max_new_tokens to {positions} or less",
            )
        chosen = _defaults(settings, chosen, positions) | chosen
        return cls(
            tokenizer,
            **{**chosen, "stop": stops(chosen.get("stop", ()))},
            end_ids=end_ids_of(config, folder),
            bytes_a_token=cache_bytes_a_token(config),
            positions=positions,
        )

    def learn(self, rows: Sequence[Row]) -> TextToText:
        return self

    def with_labels(self, labels: tuple[str, ...]) -> TextToText:
        raise UsageError("task-has-no-labels", "texts have no labels", value=labels, fix="leave labels out")

    def head(self) -> dict[str, Any]:
        return {}

    @cached_property
    def how(self) -> Generation:
        """The options of generating, together. Raises UsageError "option-conflict", "option-value"."""
        return generation_of(vars(self), self.tokenizer, self.end_ids)

    @property
    def prompt_limit(self) -> int:
        """Source and answer do not share a limit."""
        return self.tokenizer.limit

    def rows_at_most(self, longest: int) -> int:
        """How many rows of at most `longest` tokens have caches that fit into `cache_megabytes`."""
        tokens = longest + self.max_new_tokens  # the decoder keeps what it reads of the source, and what it said
        return rows_at_most(tokens, self.how, bytes_a_token=self.bytes_a_token, megabytes=self.cache_megabytes)

    def encode(self, rows: Sequence[Row], *, train: bool = False) -> Iterator[Feature]:
        """Raises DataError "text-too-long" with `long_text="error"`; "cache-too-large", but not with `train`."""
        return self._features(rows, train=train)

    def exam(self, rows: Sequence[Row]) -> Iterator[Feature]:
        """The features of evaluation: the targets' loss is judged beside the texts that are generated. What is cut is
        not said again: the rows were encoded to be checked before."""
        return self._features(rows, train=True, exam=True)

    def _features(self, rows: Sequence[Row], *, train: bool, exam: bool = False) -> Iterator[Feature]:
        said = train and not exam
        sources = [text_of(row, "source") or "" for row in rows]
        texts = [self.prefix + source for source in sources]
        every_target = self._labels(rows, said=said) if train else [{}] * len(rows)
        encoded = self.tokenizer.encode(texts, wheres=[row.where for row in rows])
        over = [row for row, code in zip(rows, encoded, strict=True) if code.truncated]
        if over and said and self.long_text == "truncate":
            log.warning(
                "%s of %s sources are longer than %s tokens and are cut: first at %s; long_text=error refuses them",
                *(f"{number:,}" for number in (len(over), len(rows), self.tokenizer.limit)),
                over[0].where,
            )
        for index, (code, targets) in enumerate(zip(encoded, every_target, strict=True)):
            if code.truncated and self.long_text == "error":
                raise DataError(
                    "text-too-long",
                    f"the text has more than the {self.tokenizer.limit} tokens that the model reads",
                    where=rows[index].where,
                    value=f"{len(texts[index]):,} characters",
                    fix='shorten or split it, or accept that it is cut: long_text="truncate"',
                )
            inputs = self.tokenizer.inputs(code.pieces[0])
            empty = () if sources[index].strip() or "empty-text" in code.flags else ("empty-text",)
            meta = {"truncated": code.truncated, "flags": (*empty, *code.flags)}
            lengths = [len(inputs["input_ids"]), *map(len, targets.values())]
            # A batch that is run is as wide as its longest feature says: no wider than the encoder has places.
            length = max(lengths) if exam else sum(lengths)
            if (exam or not train) and not self.rows_at_most(length):
                raise cache_too_large(
                    *(rows[index], length, self.max_new_tokens, self.how),
                    bytes_a_token=self.bytes_a_token,
                    megabytes=self.cache_megabytes,
                )
            yield Feature(index, 0, inputs, targets, meta, length=length)

    def _labels(self, rows: Sequence[Row], *, said: bool) -> list[dict[str, Array]]:
        """The targets' tokens, with one that ends them. One over the limit is learned up to there, and not as if it
        ended there."""
        limit = min(self.tokenizer.limit, self.positions or self.tokenizer.limit)
        tokenizer = dataclasses.replace(self.tokenizer, limit=limit)
        encoded = tokenizer.encode([text_of(row, "target") or "" for row in rows])
        over = [row for row, code in zip(rows, encoded, strict=True) if code.truncated]
        if over and said:
            log.warning(
                "%s of %s targets are longer than %s tokens, and learned and judged up to there: first at %s",
                *(f"{len(over):,}", f"{len(rows):,}", limit, over[0].where),
            )
        every = []
        for code in encoded:
            piece = code.pieces[0]
            ids = self.tokenizer.inputs(piece)["input_ids"]
            if code.truncated:
                after = list(reversed(piece.special_tokens_mask)).index(0)
                ids = ids[: len(ids) - after]
            elif self.end_ids and not np.isin(ids, self.end_ids).any():
                ids = np.append(ids, self.end_ids[0])
            every.append({"labels": ids})
        return every

    def vary(self, feature: Feature, rng: np.random.Generator) -> Feature:
        return feature

    def forward(self, model: Any, batch: Batch) -> dict[str, Any]:
        # Given labels, the model itself makes the decoder's inputs of them, each family in its own way.
        labels = batch.targets["labels"]
        return {"logits": model(**batch.inputs, labels=labels, use_cache=False).logits}  # (B, T, V)

    def loss(self, outputs: Mapping[str, Any], batch: Batch) -> tuple[Any, Any]:
        """Each row's mean cross entropy over its target's tokens; a row weighs as many as these are."""
        import torch
        from torch.nn.functional import cross_entropy

        logits, labels = outputs["logits"], batch.targets["labels"]  # (B, T, V), (B, T)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        losses = cross_entropy(logits.transpose(1, 2), labels, ignore_index=IGNORED, reduction="none")
        counts = (labels != IGNORED).sum(dim=1)
        return losses.sum(dim=1) / counts.clamp(min=1), counts.to(losses.dtype)

    def infer(self, model: Any, batch: Batch) -> dict[str, Any]:
        """`tokens` (B, N) and `finish` (B,) of the answers; of given targets their mean losses too, `loss` (B,)."""
        *_, answers = self._answers(model, batch)
        outputs = stacked(answers, batch.inputs["input_ids"])
        if batch.targets:
            outputs["loss"], _ = self.loss(self.forward(model, batch), batch)
        return outputs

    def stream(self, model: Any, batch: Batch) -> Iterator[Sequence[Answer]]:
        """Raises UsageError "stream-with-beams"."""
        if self.beams > 1:
            raise UsageError(
                "stream-with-beams", "a search knows its text at its end only", value=self.beams, fix="set beams=1"
            )
        return self._answers(model, batch)

    def _answers(self, model: Any, batch: Batch) -> Iterator[Sequence[Answer]]:
        most, seed = self.max_new_tokens, self.how.seed
        keys = [feature.inputs["input_ids"].tobytes().hex() for feature in batch.features]
        together = self.tokenizer.together
        answers = [
            Answer(self.how, most=most, key=key, seed=seed, decode=self._text_of, together=together) for key in keys
        ]
        if self.beams > 1:
            return beam_search(model, batch.inputs, answers, self.how)
        steps = EncoderDecoderSteps(model, batch.inputs, self.how, most)
        return generate(steps, answers, self.how, batch.features)

    def _text_of(self, tokens: list[int]) -> str:
        return str(self.tokenizer.rust.decode(tokens, skip_special_tokens=True))

    def decode(self, row: Row, features: Sequence[Feature], outputs: Sequence[Mapping[str, Array]]) -> NewText:
        [feature], [output] = features, outputs
        text, new_tokens, finish = answer_of(output, self.how, self._text_of)
        losses = None
        if "loss" in output:
            count = len(feature.targets["labels"])
            losses = np.array([float(output["loss"]) * count, count])
        return NewText(
            text=text,
            finish_reason=finish,
            new_tokens=new_tokens,
            tokens=len(feature.inputs["input_ids"]),
            truncated=feature.meta["truncated"],
            flags=feature.meta["flags"],
            losses=losses,
        )

    def score(self, predictions: Sequence[NewText], rows: Sequence[Row]) -> Scores:
        """chrF, BLEU, ROUGE-1, -2 and -L of the texts, and perplexity of the targets' tokens."""
        given, wanted = [p.text for p in predictions], [text_of(row, "target") or "" for row in rows]
        losses = np.array([(np.nan, 0.0) if p.losses is None else p.losses for p in predictions])  # (N, 2)
        per_example: dict[str, Array] = {
            "loss": losses[:, 0] / np.maximum(losses[:, 1], 1),
            "learned": losses[:, 1],
            "chrf": chrf_scores(given, wanted),
            **rouge_scores(given, wanted),
            "chrf_counts": chrf_counts(given, wanted),
            "bleu_counts": bleu_counts(given, wanted),
        }
        measures = {"chrf": Measure("chrf", ("chrf_counts",)), "bleu": Measure("bleu", ("bleu_counts",))}
        measures |= {name: Measure("mean", (name,)) for name in ("rouge1", "rouge2", "rougeL")}
        if not np.isnan(losses).any():
            measures["perplexity"] = Measure("perplexity", ("loss", "learned"))
        return judged(per_example, measures, primary="chrf")


def _defaults(settings: Mapping[str, Any], chosen: Mapping[str, Any], positions: int | None) -> dict[str, Any]:
    """Options as the checkpoint has them, where they go together with the chosen ones."""
    longest = min(_tokens(settings, "max") or MAX_NEW_TOKENS, positions or MAX_NEW_TOKENS * 100)
    found: dict[str, Any] = {"max_new_tokens": longest}
    found["min_new_tokens"] = min(_tokens(settings, "min"), chosen.get("max_new_tokens", longest))
    if type(beams := settings.get("num_beams")) is int and not (chosen.get("temperature") or chosen.get("stop")):
        found["beams"] = max(1, beams)
    penalty = settings.get("length_penalty")
    if isinstance(penalty, int | float) and not isinstance(penalty, bool) and 0 <= penalty <= 100:
        found["length_penalty"] = penalty
    return found


def _positions(config: Mapping[str, Any]) -> int | None:
    """T5's `n_positions` is no limit: its positions are relative."""
    names = ("max_decoder_position_embeddings", "max_position_embeddings")
    return next((config[name] for name in names if type(config.get(name)) is int), None)


def _tokens(settings: Mapping[str, Any], which: str) -> int:
    """Tokens of an answer, of which the older setting counts the one that decoding starts with."""
    if type(new := settings.get(f"{which}_new_tokens")) is int:
        return new
    return max(0, length - 1) if type(length := settings.get(f"{which}_length")) is int else 0
