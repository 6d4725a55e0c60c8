"""Embeddings are those of sentence-transformers, read from the files that it writes."""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import warmstart as ws
from support.damage import copy_of, edit_json
from warmstart.errors import CheckpointError, UsageError

DATA = Path(__file__).parent.parent.parent.parent / "shared" / "data"
TEXTS = [
    "I love LangChain!",
    "a film",
    "",
    " leading and trailing space ",
    "naïve café e\u0301 — “quoted” … 日本語 \U0001f600",
    "tabs\tand\nnew lines",
    "the worst two hours of my life " * 3,
    "word " * 300,  # over every limit
]


@contextmanager
def reference(folder: Path) -> Iterator[Any]:
    """A sentence-transformers model over the folder; its progress bars and greetings are kept quiet."""
    import sentence_transformers

    level = logging.getLogger("sentence_transformers").level
    logging.getLogger("sentence_transformers").setLevel(logging.ERROR)
    try:
        yield sentence_transformers.SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    finally:
        logging.getLogger("sentence_transformers").setLevel(level)


def agree(folder: Path, texts: list[str]) -> ws.Pipeline:
    pipe = ws.load(folder, task="sentence-embedding", device="cpu")
    ours = np.array([prediction.embedding for prediction in pipe(texts)], dtype=np.float32)
    with reference(folder) as model:
        theirs = model.encode(texts, convert_to_numpy=True, show_progress_bar=False)
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    return pipe


# --- parity -----------------------------------------------------------------------------------------------------------


def test_the_real_encoder_is_that_of_sentence_transformers(encoder: Path) -> None:
    pipe = agree(encoder, TEXTS)
    assert pipe.task.tokenizer.limit == 256
    assert pipe.task.normalize  # type: ignore[attr-defined]
    [long] = pipe([TEXTS[-1]])
    assert (long.tokens, long.truncated) == (256, True)
    assert np.linalg.norm(long.embedding) == pytest.approx(1, abs=1e-6)
    assert len(long.embedding) == 384


@pytest.mark.real_data
def test_two_hundred_real_texts(encoder: Path) -> None:
    if not DATA.exists():
        pytest.skip("../shared/data is absent")
    texts = []
    for name in ("reviews", "intents"):
        with (DATA / name / "train.jsonl").open(encoding="utf-8") as lines:
            texts += [json.loads(line)["text"] for line in itertools.islice(lines, 100)]
    agree(encoder, texts)


@pytest.mark.parametrize("mode", ["mean", "cls", "max", "mean_sqrt_len_tokens", "lasttoken"])
@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_every_pooling_in_the_files_of_today(tiny: Callable[..., Path], tmp_path: Path, mode: str, family: str) -> None:
    """Saved by sentence-transformers itself."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    source = tiny(family, "base")
    modules = [Transformer(str(source), max_seq_length=20), Pooling(32, pooling_mode=mode)]
    if family == "bert":
        modules.append(Normalize())
    SentenceTransformer(modules=modules, device="cpu").save(str(tmp_path / "model"), create_model_card=False)
    pipe = agree(tmp_path / "model", TEXTS)
    assert pipe.task.tokenizer.limit == 20
    assert pipe.task.normalize == (family == "bert")  # type: ignore[attr-defined]


MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
]
SWITCHES = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")


@pytest.fixture
def folder(tiny: Callable[..., Path], tmp_path: Path) -> Path:
    """A checkpoint as sentence-transformers wrote it for years; the healthy twin of what follows."""
    made = copy_of(tiny("bert", "base"), tmp_path / "checkpoint")
    write(made, "modules.json", MODULES)
    write(made, "1_Pooling/config.json", pooling("mean_tokens"))
    write(made, "sentence_bert_config.json", {"max_seq_length": 24, "do_lower_case": False})
    write(made, "config_sentence_transformers.json", {"prompts": {}, "default_prompt_name": None})
    return made


def write(folder: Path, name: str, content: Any) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


def pooling(*on: str, **more: Any) -> dict[str, Any]:
    return {"word_embedding_dimension": 32} | {f"pooling_mode_{name}": name in on for name in SWITCHES} | more


@pytest.mark.parametrize("mode", ["cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "lasttoken"])
def test_every_pooling_in_the_files_of_old(folder: Path, mode: str) -> None:
    write(folder, "1_Pooling/config.json", pooling(mode))
    assert agree(folder, TEXTS).task.tokenizer.limit == 24


def test_a_checkpoint_without_these_files_is_the_mean(tiny: Callable[..., Path]) -> None:
    pipe = agree(tiny("bert", "base"), TEXTS)
    assert pipe.task.tokenizer.limit == 128


def test_a_default_prompt_is_read_before_every_text(folder: Path) -> None:
    prompts = {"query": "good film: ", "passage": "bad "}
    plain = ws.load(folder, task="sentence-embedding", device="cpu")("a story")
    write(folder, "config_sentence_transformers.json", {"prompts": prompts, "default_prompt_name": "query"})
    pipe = agree(folder, [text for text in TEXTS if text])
    assert pipe("a story").embedding != plain.embedding
    assert pipe("a story").tokens > plain.tokens


def test_older_names_of_the_limits_file(folder: Path) -> None:
    (folder / "sentence_bert_config.json").rename(folder / "sentence_roberta_config.json")
    assert ws.load(folder, task="sentence-embedding", device="cpu").task.tokenizer.limit == 24


@pytest.mark.parametrize("limit", [None, 10**6])
def test_a_limit_beyond_the_models_is_the_models(folder: Path, limit: int | None) -> None:
    write(folder, "sentence_bert_config.json", {"max_seq_length": limit})
    assert ws.load(folder, task="sentence-embedding", device="cpu").task.tokenizer.limit == 128


def test_lower_casing_that_the_tokenizer_does_anyway(folder: Path) -> None:
    write(folder, "sentence_bert_config.json", {"max_seq_length": 24, "do_lower_case": True})
    agree(folder, ["A Film", "a film"])


# --- windows ----------------------------------------------------------------------------------------------------------


def test_windows_are_averaged_by_their_tokens(folder: Path) -> None:
    write(folder, "modules.json", [*MODULES, {"path": "2_Normalize", "type": "sentence_transformers.models.Normalize"}])
    pipe = ws.load(folder, task="sentence-embedding", options={"long_text": "windows", "stride": 4}, device="cpu")
    text = "good film and warm words " * 20
    found = pipe(text)
    [encoded] = pipe.task.tokenizer.encode([text], stride=4)
    assert len(encoded.pieces) > 3
    assert found.tokens == sum(map(len, encoded.pieces))
    assert not found.truncated
    assert np.linalg.norm(found.embedding) == pytest.approx(1, abs=1e-6)
    assert found.embedding != pytest.approx(ws.load(folder, task="sentence-embedding", device="cpu")(text).embedding)


# --- faults -----------------------------------------------------------------------------------------------------------


def refused(folder: Path, code: str, place: str) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        ws.load(folder, task="sentence-embedding", device="cpu")
    assert caught.value.code == code, str(caught.value)
    assert place in str(caught.value.where), str(caught.value)
    assert caught.value.exit_code == 4
    return caught.value


NAMES = ("modules.json", "1_Pooling/config.json", "sentence_bert_config.json", "config_sentence_transformers.json")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("content", ["", "{", "\ufeffnot json", "[" * 100_000, "3", '"text"', "null"])
def test_damaged_files(folder: Path, name: str, content: str) -> None:
    write(folder, name, content)
    refused(folder, "embedding-config-unusable", name)


@pytest.mark.parametrize("name", NAMES)
def test_a_file_that_is_no_text(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"\xff\xfe\x00\x80")
    refused(folder, "embedding-config-unusable", name)


@pytest.mark.parametrize("path", ["../other", "/etc", "..", ".", "", "a/../../b", "a\\b", "\0"])
def test_a_module_outside_the_folder(folder: Path, path: str) -> None:
    write(folder, "modules.json", [MODULES[0], MODULES[1] | {"path": path}])
    refused(folder, "embedding-config-unusable", "modules.json")


@pytest.mark.parametrize("limit", [0, -1, "24", 1.5, True, [24]])
def test_a_limit_that_is_none(folder: Path, limit: object) -> None:
    write(folder, "sentence_bert_config.json", {"max_seq_length": limit})
    refused(folder, "embedding-config-unusable", "sentence_bert_config.json")


@pytest.mark.parametrize("kind", ["Dense", "CNN", "WordEmbeddings", ""])
def test_a_module_this_version_does_not_run(folder: Path, kind: str) -> None:
    write(folder, "modules.json", [*MODULES, {"path": "2_X", "type": f"sentence_transformers.models.{kind}"}])
    assert refused(folder, "embedding-module-unknown", "modules.json").value == {
        "path": "2_X",
        "type": f"sentence_transformers.models.{kind}",
    }


@pytest.mark.parametrize(
    "config",
    [
        pooling(),
        pooling("weightedmean_tokens"),
        pooling("cls_token", "mean_tokens"),
        {"pooling_mode": "weightedmean"},
        {"pooling_mode": ["mean", "cls"]},
        {"pooling_mode": {"a": 1}},
    ],
    ids=["none", "weighted", "two", "weighted now", "two now", "odd"],
)
def test_a_pooling_this_version_does_not_do(folder: Path, config: dict[str, Any]) -> None:
    write(folder, "1_Pooling/config.json", config)
    refused(folder, "embedding-pooling-unknown", "1_Pooling")


@pytest.mark.parametrize("prompts", [{}, None, {"other": "x"}, {"query": 3}, ["query"]])
def test_a_default_prompt_that_is_none(folder: Path, prompts: object) -> None:
    write(folder, "config_sentence_transformers.json", {"prompts": prompts, "default_prompt_name": "query"})
    refused(folder, "embedding-config-unusable", "config_sentence_transformers.json")


def test_a_prompt_that_pooling_leaves_out_is_refused(folder: Path) -> None:
    write(folder, "1_Pooling/config.json", pooling("mean_tokens", include_prompt=False))
    ws.load(folder, task="sentence-embedding", device="cpu")  # without a prompt it changes nothing
    write(folder, "config_sentence_transformers.json", {"prompts": {"q": "x: "}, "default_prompt_name": "q"})
    refused(folder, "embedding-config-unusable", "1_Pooling")


def test_lower_casing_that_nobody_does_is_refused(tiny: Callable[..., Path], tmp_path: Path) -> None:
    made = copy_of(tiny("roberta", "base"), tmp_path / "cased")
    write(made, "sentence_bert_config.json", {"do_lower_case": True})
    assert "do_lower_case" in refused(made, "embedding-config-unusable", "cased").what


def test_labels_are_not_for_embeddings(folder: Path) -> None:
    with pytest.raises(UsageError) as caught:
        ws.load(folder, task="sentence-embedding", labels=("a", "b"), device="cpu")
    assert caught.value.code == "task-has-no-labels"


def test_the_task_needs_no_head(tiny: Callable[..., Path], tmp_path: Path) -> None:
    """A classifier's encoder embeds as well."""
    made = copy_of(tiny("bert"), tmp_path / "classifier")
    edit_json(made / "config.json", {})
    assert len(ws.load(made, task="feature-extraction", device="cpu")("a film").embedding) == 32
