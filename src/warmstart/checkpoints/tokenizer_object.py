"""The tokenizer object of transformers, with a padding token and without what its files may not ask for."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from pathlib import Path

import transformers
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from warmstart.checkpoints.config_object import load_config
from warmstart.checkpoints.files import find_file, read_json
from warmstart.checkpoints.quiet import quiet_transformers
from warmstart.checkpoints.tokenizer_config import NAME as CONFIG_NAME
from warmstart.checkpoints.tokenizer_config import unsafe_tokenizer_keys
from warmstart.checkpoints.verified import Verified
from warmstart.errors import CheckpointError

logger = logging.getLogger("warmstart")

_VOCABULARIES = (
    *("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model"),
    *("spm.model", "source.spm", "tekken.json", "bpe.codes"),
)


def load_tokenizer(verified: Verified) -> PreTrainedTokenizerBase:
    """The very tokenizer that AutoTokenizer gives for this folder, with a padding token in every case.

    A checkpoint without one (GPT-2) is given its end-of-text token, as the attention mask hides padding anyway; this
    is said at INFO level, and `load_model` sets `config.pad_token_id` to the same.

    Raises CheckpointError `tokenizer-missing`, `tokenizer-invalid`, `tokenizer-vocab-too-large`, `pad-token-missing`.
    """
    folder = verified.folder
    _check_vocabulary(folder)
    config = load_config(verified)
    unsafe = unsafe_tokenizer_keys(folder)
    try:
        with quiet_transformers():
            tokenizer = _tokenizer_without(folder, unsafe, config) if unsafe else _auto_tokenizer(folder, config)
    except CheckpointError:
        raise
    except BaseException as error:
        # A panic of the Rust library derives from BaseException only.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise _tokenizer_error(folder, error) from error
    _check_ids(tokenizer, verified)
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise CheckpointError(
                "pad-token-missing",
                "the tokenizer has neither a padding token nor an end-of-text token",
                where=str(folder / CONFIG_NAME),
                fix='add "pad_token" to tokenizer_config.json: a token of the vocabulary that no text contains',
            )
        tokenizer.pad_token = tokenizer.eos_token
        logger.info("%s: no padding token; %s pads", folder.name, tokenizer.eos_token)
    return tokenizer


def _check_ids(tokenizer: PreTrainedTokenizerBase, verified: Verified) -> None:
    """Tokens that tokenizer_config.json and its like add come after the vocabulary, where the model may have no row."""
    rows = verified.embedding_rows
    added = tokenizer.added_tokens_decoder  # id -> token
    highest = max([len(tokenizer) - 1, *added])  # of N different ids one is at least N - 1
    if rows is None or highest < rows:
        return
    beyond = [str(token) for number, token in sorted(added.items()) if number >= rows]
    raise CheckpointError(
        "tokenizer-vocab-too-large",
        f"the tokenizer gives ids up to {highest}, the model has vectors for 0 to {rows - 1}",
        where=str(verified.folder / CONFIG_NAME),
        value=", ".join(beyond[:5]) or highest,
        fix="take the tokens that were added out of tokenizer_config.json, or save the model after "
        "model.resize_token_embeddings(len(tokenizer))",
    )


def _auto_tokenizer(folder: Path, config: PreTrainedConfig) -> PreTrainedTokenizerBase:
    return transformers.AutoTokenizer.from_pretrained(
        str(folder), config=config, local_files_only=True, trust_remote_code=False
    )


def _tokenizer_without(folder: Path, unsafe: tuple[str, ...], config: PreTrainedConfig) -> PreTrainedTokenizerBase:
    """Load from a copy of the tokenizer's files in which the unsafe keys are not there to be obeyed."""
    settings = read_json(folder / CONFIG_NAME)
    with tempfile.TemporaryDirectory(prefix="warmstart-tokenizer-") as staged:
        for path in sorted(folder.iterdir()):
            if path.suffix in {".json", ".txt", ".model", ".jinja", ".bpe", ".vocab"} and find_file(folder, path.name):
                shutil.copyfile(path, Path(staged) / path.name)
        kept = {key: value for key, value in settings.items() if key not in unsafe}
        (Path(staged) / CONFIG_NAME).write_text(json.dumps(kept), encoding="utf-8")
        tokenizer = _auto_tokenizer(Path(staged), config)
    tokenizer.name_or_path = str(folder)
    return tokenizer


def has_vocabulary(folder: Path) -> bool:
    """Whether any file that a tokenizer can be built from is in the folder."""
    return any((folder / name).exists() for name in _VOCABULARIES)


def _check_vocabulary(folder: Path) -> None:
    """From a folder without one, transformers 5 builds an empty tokenizer and says nothing."""
    if not has_vocabulary(folder):
        raise CheckpointError(
            "tokenizer-missing",
            "the folder has no tokenizer",
            where=str(folder),
            fix="save it beside the model (tokenizer.save_pretrained(folder)), or copy its tokenizer.json there",
        )


def _tokenizer_error(folder: Path, error: BaseException) -> CheckpointError:
    return CheckpointError(
        "tokenizer-invalid",
        f"transformers cannot load the tokenizer: {str(error).strip()[:300] or type(error).__name__}",
        where=str(folder),
        fix="get the tokenizer's files from the checkpoint's publisher again",
    )
