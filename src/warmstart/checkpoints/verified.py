"""Everything that can be known about a checkpoint folder without building a model, checked before one is built."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from warmstart.checkpoints import config as config_file
from warmstart.checkpoints import tokenizer_file
from warmstart.checkpoints.exported import is_export, source_needed
from warmstart.checkpoints.files import find_file, read_json
from warmstart.checkpoints.labels import read_labels
from warmstart.checkpoints.manifest import check_manifest
from warmstart.checkpoints.safetensors_file import TensorInfo, nonfinite_tensors
from warmstart.checkpoints.tokenizer_config import unsafe_tokenizer_keys
from warmstart.checkpoints.weights import adapter_refused, read_weights
from warmstart.errors import CheckpointError

logger = logging.getLogger("warmstart")

_ENTRIES_LIMIT = 20_000
_LOADED = frozenset({".json", ".txt", ".model", ".jinja", ".safetensors"})
SCAN_LIMIT = 4 << 30  # bytes of weights that are looked through for NaN; about 1 GB a second

# By the end of the architecture's name.
_TASKS = {
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "ForMaskedLM": "fill-mask",
    "ForCausalLM": "text-generation",
    "LMHeadModel": "text-generation",
    "ForImageClassification": "image-classification",
    "ForAudioClassification": "audio-classification",
    "ForCTC": "automatic-speech-recognition",
    "ForSpeechSeq2Seq": "automatic-speech-recognition",
}
_TEXT_TO_TEXT = frozenset(
    {"t5", "mt5", "umt5", "bart", "mbart", "pegasus", "marian", "m2m_100", "led", "longt5", "nllb-moe", "blenderbot"}
)
_GENERATING = ("ForConditionalGeneration", "MTModel", "WithLMHeadModel")  # the last two: Marian's, and T5's at first
_AUDIO = frozenset(
    {"wav2vec2", "wav2vec2-bert", "wav2vec2-conformer", "hubert", "wavlm", "unispeech", "unispeech-sat", "sew", "sew-d"}
)
# The last weight of the head, whose rows are the scores, by task.
_HEADS = {
    "text-classification": (
        "classifier.weight",
        "classifier.out_proj.weight",
        "classification_head.out_proj.weight",
        "score.weight",
        "logits_proj.weight",
        "sequence_summary.summary.weight",
    ),
    "token-classification": ("classifier.weight", "score.weight"),
    "image-classification": ("classifier.weight", "classifier.1.weight"),
    "audio-classification": ("classifier.weight", "classifier.dense.weight"),
    "question-answering": ("qa_outputs.weight", "classifier.weight"),  # the second is ModernBERT's
}
# A masked language model's head, by how the names of its weights begin, over the families.
_MASK_HEAD = re.compile(r"(cls|decoder|generator_\w+|head|lm_head|lm_predictions|pred_layer|predictions|vocab_\w+)\..+")
_LABELLED = frozenset(_HEADS) - {"question-answering"}  # there, rows are start and end
_EMBEDDING = re.compile(r"(.*\.)?(word_embeddings|wte|embed_tokens|tok_embeddings|shared|word_embedding)\.weight")


@dataclass(frozen=True, slots=True)
class Verified:
    """A checkpoint folder that passed. Every later step reads this instead of the files' own word."""

    folder: Path  # resolved
    config: Mapping[str, Any]  # config.json without the keys that are never obeyed
    tensors: Mapping[str, TensorInfo]  # every tensor of the weights, from checked headers
    labels: tuple[str, ...] | None  # in the order of the logits; as stored, so escape them before printing
    task: str | None  # a task name, where the checkpoint says what it is for
    max_positions: int | None  # tokens a text may have, special tokens included
    embedding_rows: int | None  # tokens the model has a vector for: ids from 0 up to here
    purpose: str | None  # the task of the architecture's head; None for a bare model
    has_head: bool  # whether the weights of that head are there
    findings: tuple[str, ...]  # what was dropped or looks wrong, one sentence each

    @property
    def weights(self) -> tuple[Path, ...]:
        """The safetensors files, in the order of their names."""
        return tuple(sorted({tensor.file for tensor in self.tensors.values()}))

    @property
    def model_type(self) -> str:
        return str(self.config["model_type"])


def verify(folder: Path) -> Verified:
    """Check a checkpoint folder. Imports neither torch nor transformers, builds nothing, runs nothing of the folder's.

    Raises CheckpointError: `folder-missing`, `folder-too-large`, `exported-has-no-model`, `adapter-unsupported`,
    `distributed-unsupported`, and those of `config.read_config`, `weights.read_weights`, `config.check_sizes`,
    `labels.read_labels`, `tokenizer_file.check_tokenizer` and `manifest.check_manifest`.

    >>> verified = verify(find("starter-encoder").folder)  # doctest: +SKIP
    >>> verified.task, verified.max_positions, len(verified.tensors)  # doctest: +SKIP
    ('sentence-embedding', 512, 103)
    """
    folder = _resolve(folder)
    if is_export(folder):
        raise source_needed(folder)
    _check_entries(folder)
    config, dropped = config_file.read_config(folder)
    findings = [*dropped, *check_manifest(folder), *_code_files(folder)]
    tensors = read_weights(folder)
    config_path = folder / config_file.NAME
    config_file.check_sizes(config, config_path, tensors)
    purpose = _purpose(config)
    head_rows = _head_rows(purpose, tensors)
    labels = read_labels(config, config_path, head_rows if purpose in _LABELLED else None)
    findings += _unsafe_tokenizer_keys(folder)
    embedding_rows = _embedding_rows(config, tensors)
    findings += tokenizer_file.check_tokenizer(folder, embedding_rows)
    findings += _check_finite(folder, tensors)
    return Verified(
        folder=folder,
        config=config,
        tensors=tensors,
        labels=labels,
        task=_task(folder) or purpose,
        max_positions=config_file.max_positions(config),
        embedding_rows=embedding_rows,
        purpose=purpose,
        has_head=_has_head(purpose, head_rows, tensors),
        findings=tuple(findings),
    )


def _resolve(folder: Path) -> Path:
    try:
        resolved = folder.resolve(strict=True)
        entries = sorted(entry.name for entry in resolved.iterdir())
    except (OSError, RuntimeError) as error:
        raise CheckpointError(
            "folder-missing",
            f"the checkpoint folder cannot be opened: {error.strerror if isinstance(error, OSError) else error}",
            where=str(folder),
            fix="give the folder that holds config.json, and check that you may read it",
        ) from None
    if "adapter_config.json" in entries:
        raise adapter_refused(resolved)
    if ".metadata" in entries or any(name.endswith(".distcp") for name in entries):
        raise CheckpointError(
            "distributed-unsupported",
            "this is a torch distributed checkpoint, whose metadata is a pickle",
            where=str(resolved),
            fix="consolidate it to safetensors where you trust it (save_pretrained of the full model)",
        )
    return resolved


def _check_entries(folder: Path) -> None:
    """Every file that a loader may open is a regular file inside the folder: nothing hangs, nothing leads outside."""
    for number, path in enumerate(chain(folder.glob("*"), folder.glob("*/*"))):
        if number >= _ENTRIES_LIMIT:
            raise CheckpointError(
                "folder-too-large",
                f"the folder has more than {_ENTRIES_LIMIT:,} entries",
                where=str(folder),
                fix="give the checkpoint's own folder, not one that holds it",
            )
        if path.suffix in _LOADED:
            find_file(folder, path.relative_to(folder).as_posix())


def _unsafe_tokenizer_keys(folder: Path) -> tuple[str, ...]:
    findings = tuple(f"tokenizer_config.json: {key} is never obeyed; dropped" for key in unsafe_tokenizer_keys(folder))
    for finding in findings:
        logger.warning("%s: %s", folder.name, finding)
    return findings


def _code_files(folder: Path) -> tuple[str, ...]:
    names = sorted(path.name for path in folder.glob("*.py"))
    if not names:
        return ()
    finding = f"code files are in the folder and are never imported: {', '.join(names[:5])}"
    logger.warning("%s: %s", folder.name, finding)
    return (finding,)


def _purpose(config: Mapping[str, Any]) -> str | None:
    """The task of the architecture's head; None for a base model."""
    architecture = (config.get("architectures") or [""])[0]
    model_type = config["model_type"]
    if architecture.endswith(_GENERATING) and model_type in _TEXT_TO_TEXT:
        return "text-to-text"
    if model_type == "whisper" and architecture.endswith("ForConditionalGeneration"):
        return "automatic-speech-recognition"
    task = next((task for suffix, task in _TASKS.items() if architecture.endswith(suffix)), None)
    return "audio-classification" if task == "text-classification" and model_type in _AUDIO else task


def _task(folder: Path) -> str | None:
    """What the folder itself says it is for: our own record first, then the files of sentence-transformers."""
    if record := find_file(folder, "warmstart.json"):
        task = read_json(record).get("task")
        if isinstance(task, str) and re.fullmatch(r"[a-z][a-z0-9-]{0,63}", task):
            return task
    return "sentence-embedding" if find_file(folder, "modules.json") else None


def _head_rows(purpose: str | None, tensors: Mapping[str, TensorInfo]) -> int | None:
    for name in _HEADS.get(purpose or "", ()):
        if name in tensors and tensors[name].shape:
            return tensors[name].shape[0]
    return None


def _has_head(purpose: str | None, head_rows: int | None, tensors: Mapping[str, TensorInfo]) -> bool:
    if purpose == "fill-mask":  # sentence-transformers keeps this architecture's name, and not its head
        return any(map(_MASK_HEAD.fullmatch, tensors))
    return purpose is not None and (purpose not in _HEADS or head_rows is not None)


def _embedding_rows(config: Mapping[str, Any], tensors: Mapping[str, TensorInfo]) -> int | None:
    """Rows of the token embedding: of the tensor where its name is known, else what the config says."""
    for name, tensor in tensors.items():
        if len(tensor.shape) == 2 and _EMBEDDING.fullmatch(name):
            return tensor.shape[0]
    vocab_size = config.get("vocab_size")
    return vocab_size if isinstance(vocab_size, int) else None


def _check_finite(folder: Path, tensors: Mapping[str, TensorInfo]) -> tuple[str, ...]:
    size = sum(tensor.stop - tensor.start for tensor in tensors.values())
    if size > SCAN_LIMIT:
        return (f"the weights ({size / 1e9:.1f} GB) were not looked through for NaN and infinity",)
    names = sorted(nonfinite_tensors(tensors))
    if not names:
        return ()
    finding = f"the weights hold NaN or infinity in: {', '.join(names[:5])}{' …' if len(names) > 5 else ''}"
    logger.warning("%s: %s; its predictions may be NaN", folder.name, finding)
    return (finding,)
