"""Fill-mask: the best tokens for each mask of a text; and masked-language training, which adapts an encoder."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from warmstart.errors import CheckpointError, UsageError
from warmstart.features import Array, Batch, Feature, Pad
from warmstart.metrics import Measure
from warmstart.randomness import generator
from warmstart.rows import Field, Row
from warmstart.tasks.contract import Scores, checked_options, for_score, judged, text_of
from warmstart.tasks.position_head import logits_at
from warmstart.tokenization import Tokenizer

IGNORED = -100  # of a label: this token is not to be guessed. The value that transformers' losses leave out

# Of the tokens to be guessed, the shares that become the mask and another token; the rest stay as they are.
# J. Devlin et al., "BERT: Pre-training of deep bidirectional transformers", NAACL 2019, section 3.1.
MASKED, REPLACED = 0.8, 0.1


@dataclass(frozen=True)
class FilledMasks:
    """What fills a text's masks. `masks`: for each, in the order of the text, its candidates, the most probable first.

    A candidate has `score`, its probability; `token`, its id; `token_str`; and `sequence`, the text (of a long one, the
    window) with the mask filled by it.
    """

    masks: tuple[tuple[Mapping[str, Any], ...], ...]
    tokens: int
    truncated: bool
    flags: tuple[str, ...] = ()
    losses: Array | None = for_score()  # (guessed,): -log probability of each token that was to be guessed


@dataclass(frozen=True)
class FillMask:
    """`top_k` candidates a mask. `mask_share` of the tokens is guessed in training and evaluation.

    A text over the limit is covered by windows that share `stride` tokens, and a mask that stands in two of them is
    filled in the one where it has more context; or it is cut (`long_text="truncate"`).
    """

    tokenizer: Tokenizer
    top_k: int = 5
    mask_share: float = 0.15
    long_text: Literal["windows", "truncate"] = "windows"
    stride: int = 64

    name: ClassVar[str] = "fill-mask"
    auto_class: ClassVar[str] = "AutoModelForMaskedLM"
    trainable: ClassVar[bool] = True
    couples_rows: ClassVar[bool] = False
    prediction: ClassVar[type[FilledMasks]] = FilledMasks
    fields: ClassVar[tuple[Field, ...]] = (
        Field("text", ("sentence", "content", "review", "tweet"), doc="the text, with or without masks", text=True),
    )
    option_names: ClassVar[tuple[str, ...]] = ("top_k", "mask_share", "long_text", "stride")

    @property
    def pads(self) -> Mapping[str, Pad]:
        return {
            "input_ids": Pad(self.tokenizer.pad_id),
            "attention_mask": Pad(0),
            "token_type_ids": Pad(0),
            "labels": Pad(IGNORED),
        }

    @classmethod
    def from_checkpoint(
        cls, tokenizer: Tokenizer, config: Mapping[str, Any], folder: Path, options: Mapping[str, Any]
    ) -> FillMask:
        """Raises CheckpointError "mask-missing" for a checkpoint without a mask token."""
        known = {
            "top_k": (int,),
            "mask_share": (float,),
            "long_text": ("windows", "truncate"),
            "stride": (int,),
        }
        return cls(reading_mask(tokenizer, folder), **checked_options(cls, options, known))

    def learn(self, rows: Sequence[Row]) -> FillMask:
        return self

    def with_labels(self, labels: tuple[str, ...]) -> FillMask:
        raise UsageError("task-has-no-labels", "masks have no labels", value=labels, fix="leave labels out")

    def head(self) -> dict[str, Any]:
        return {}

    def encode(self, rows: Sequence[Row], *, train: bool = False) -> Iterator[Feature]:
        texts = [text_of(row, "text") or "" for row in rows]
        stride = self.stride if self.long_text == "windows" else None
        encoded = self.tokenizer.encode(texts, stride=stride, wheres=[row.where for row in rows])
        for index, code in enumerate(encoded):
            pieces = [(self.tokenizer.inputs(piece), piece) for piece in code.pieces]
            masked = any((inputs["input_ids"] == self._mask_id).any() for inputs, _ in pieces)
            flags = code.flags if masked else (*code.flags, "no-mask")
            for part, (inputs, piece) in enumerate(pieces):
                ids = inputs["input_ids"]
                places = tuple((int(i), piece.offsets[i][0]) for i in np.flatnonzero(ids == self._mask_id))
                meta = {"truncated": code.truncated, "flags": flags, "pieces": len(pieces), "places": places}
                targets = {"labels": np.where(np.isin(ids, self._words), ids, IGNORED)} if train else {}
                yield Feature(index, part, inputs, targets, meta, length=len(ids))

    def exam(self, rows: Sequence[Row]) -> Iterator[Feature]:
        """The features of evaluation: which tokens are to be guessed is a function of the text alone."""
        for feature in self.encode(rows, train=True):
            place = feature.inputs["input_ids"].tobytes().hex()
            yield self.vary(feature, generator(0, "exam", place))

    def vary(self, feature: Feature, rng: np.random.Generator) -> Feature:
        """Choose the tokens to be guessed, at least one; of these 80 % are masked, 10 % replaced, 10 % left."""
        if not feature.targets:
            return feature
        ids, labels = feature.inputs["input_ids"], feature.targets["labels"]
        chances = np.where(labels == IGNORED, 2.0, rng.random(len(ids)))
        if chances.min(initial=2.0) > 1:
            return feature  # there is nothing to guess
        chosen = chances < max(self.mask_share, np.nextafter(chances.min(), 1))
        fates, others = rng.random(len(ids)), rng.choice(self._words, len(ids))
        varied = np.where(chosen & (fates < MASKED), self._mask_id, ids)
        varied = np.where(chosen & (fates >= MASKED) & (fates < MASKED + REPLACED), others, varied)
        return dataclasses.replace(
            feature,
            inputs={**feature.inputs, "input_ids": varied},
            targets={"labels": np.where(chosen, labels, IGNORED)},
        )

    def forward(self, model: Any, batch: Batch) -> dict[str, Any]:
        return {"logits": logits_at(model, batch.inputs, batch.targets["labels"] != IGNORED)}  # (N, V)

    def infer(self, model: Any, batch: Batch) -> dict[str, Any]:
        """The best `top_k` at each mask, (B, T, k); of given targets, each one's loss too, (B, T). 0 elsewhere."""
        ids = batch.inputs["input_ids"]
        labels = batch.targets.get("labels")
        chosen = ids == self._mask_id if labels is None else labels != IGNORED
        logs = logits_at(model, batch.inputs, chosen).float().log_softmax(dim=-1)  # (N, V)
        best, tokens = logs.topk(min(self.top_k, logs.shape[-1]), dim=-1)
        shape = (*ids.shape, best.shape[-1])
        outputs = {
            "scores": best.new_zeros(shape).index_put((chosen,), best.exp()),
            "tokens": tokens.new_zeros(shape).index_put((chosen,), tokens),
        }
        if labels is not None:
            losses = -logs.gather(1, labels[chosen].unsqueeze(1)).squeeze(1)
            outputs["losses"] = losses.new_zeros(ids.shape).index_put((chosen,), losses)
        return outputs

    def loss(self, outputs: Mapping[str, Any], batch: Batch) -> tuple[Any, Any]:
        """Cross entropy, averaged over the feature's guessed tokens, whose number is its weight."""
        import torch.nn.functional as F

        labels = batch.targets["labels"]
        chosen = labels != IGNORED
        losses = F.cross_entropy(outputs["logits"].float(), labels[chosen], reduction="none")
        counts = chosen.sum(dim=1).to(losses.dtype)  # (B,)
        sums = losses.new_zeros(labels.shape).index_put((chosen,), losses).sum(dim=1)
        return sums / counts.clamp(min=1), counts

    def decode(self, row: Row, features: Sequence[Feature], outputs: Sequence[Mapping[str, Array]]) -> FilledMasks:
        if features[0].targets and "losses" not in outputs[0]:
            raise UsageError(
                "exam-without-model",
                "perplexity needs every token's probability, and an exported graph gives the best ones only",
                value=self.name,
                fix="evaluate the checkpoint it was exported from",
            )
        judged = [
            output["losses"][: feature.length][feature.targets["labels"] != IGNORED]
            for feature, output in zip(features, outputs, strict=True)
            if feature.targets
        ]
        several = len({start for feature in features for _, start in feature.meta["places"]}) > 1
        return FilledMasks(
            masks=() if judged else tuple(self._candidates(*place, several) for place in _places(features, outputs)),
            tokens=sum(feature.length for feature in features),
            truncated=features[0].meta["truncated"],
            flags=features[0].meta["flags"],
            losses=np.concatenate(judged) if judged else None,
        )

    def score(self, predictions: Sequence[FilledMasks], rows: Sequence[Row]) -> Scores:
        """Perplexity: e to the mean loss of all the tokens that were to be guessed. Weights are chosen by the loss."""
        losses = [np.zeros(0) if p.losses is None else p.losses.astype(np.float64) for p in predictions]
        sums, counts = np.array([each.sum() for each in losses]), np.array([len(each) for each in losses])
        return judged(
            {"loss": sums / np.maximum(counts, 1), "guessed": counts},
            {"perplexity": Measure("perplexity", ("loss", "guessed"))},
        )

    def _candidates(
        self, feature: Feature, output: Mapping[str, Array], place: int, several: bool
    ) -> tuple[Mapping[str, Any], ...]:
        candidates = []
        for score, token in zip(output["scores"][place].tolist(), output["tokens"][place].tolist(), strict=True):
            ids = feature.inputs["input_ids"].copy()
            ids[place] = token
            candidates.append(
                {
                    "score": score,
                    "token": token,
                    "token_str": self.tokenizer.rust.decode([token], skip_special_tokens=False),
                    "sequence": self.tokenizer.rust.decode(ids.tolist(), skip_special_tokens=not several),
                }
            )
        return tuple(candidates)

    @cached_property
    def _mask_id(self) -> int:
        return int(self.tokenizer.rust.token_to_id(self.tokenizer.mask))

    @cached_property
    def _words(self) -> Array:
        """The ids (W,) that are no special token: what can be guessed, and what stands in for it."""
        rust = self.tokenizer.rust
        special = {i for i, token in rust.get_added_tokens_decoder().items() if token.special} | {self._mask_id}
        return np.array(sorted(set(rust.get_vocab(with_added_tokens=True).values()) - special), dtype=np.int64)


def reading_mask(tokenizer: Tokenizer, folder: Path) -> Tokenizer:
    """The tokenizer, but for one token: a mask that a text spells out is the mask. `folder` is the checkpoint's.

    Raises CheckpointError "mask-missing" where there is no mask token.
    """
    if tokenizer.mask is None or tokenizer.rust.token_to_id(tokenizer.mask) is None:
        raise CheckpointError(
            "mask-missing",
            "the checkpoint's tokenizer has no mask token",
            where=str(folder),
            fix="use a masked language model, such as BERT or RoBERTa",
        )
    content = json.loads(tokenizer.rust.to_str())
    for token in content["added_tokens"]:
        if token["content"] == tokenizer.mask:
            token["special"] = False  # it is matched in texts then, with its own rules for spaces beside it
    rust = Tokenizer.from_json(json.dumps(content), limit=tokenizer.limit).rust
    return dataclasses.replace(tokenizer, rust=rust, specials=tokenizer.specials - {tokenizer.mask})


def _places(
    features: Sequence[Feature], outputs: Sequence[Mapping[str, Array]]
) -> list[tuple[Feature, Mapping[str, Array], int]]:
    """Each mask of the text once, in order: the feature that has it with the most context, its outputs, the place."""
    best: dict[int, tuple[int, Feature, Mapping[str, Array], int]] = {}
    for feature, output in zip(features, outputs, strict=True):
        for place, start in feature.meta["places"]:
            context = min(place, feature.length - 1 - place)
            if start not in best or context > best[start][0]:
                best[start] = (context, feature, output, place)
    return [best[start][1:] for start in sorted(best)]
