"""`warmstart predict`: every way in, every way out."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import warmstart as ws

SHAPE = ["text", "label", "score", "scores", "tokens", "truncated", "flags"]


@pytest.fixture
def model(tiny: Callable[..., Path]) -> Path:
    return tiny("bert")


def test_texts_give_one_json_line_each_and_nothing_else_on_stdout(warmstart: Any, model: Path) -> None:
    done = warmstart("predict", "-m", model, "a great film", "the worst plot")
    assert done.code == 0 and [line["text"] for line in done.lines] == ["a great film", "the worst plot"]
    for line, prediction in zip(done.lines, ws.load(model)(["a great film", "the worst plot"]), strict=True):
        assert list(line) == SHAPE and line["label"] == prediction.label
        assert line["score"] == pytest.approx(prediction.score) and line["scores"] == pytest.approx(prediction.scores)
    assert done.out.isascii()


def test_the_starter_knows_what_is_positive(warmstart: Any, encoder: Path) -> None:
    done = warmstart("predict", "I love LangChain!", "--json")
    assert done.code == 0
    [line] = done.lines
    assert line["label"] == "POSITIVE" and set(line["scores"]) == {"NEGATIVE", "POSITIVE"}
    assert line["score"] == max(line["scores"].values()) > 0.5


@pytest.mark.parametrize(
    ("stdin", "texts"),
    [
        (b"good film\nbad film\n", ["good film", "bad film"]),
        (b'{"text": "good film"}\n{"text": "bad film"}\n', ["good film", "bad film"]),
        (b"review,stars\ngood film,5\nbad film,1\n", ["good film", "bad film"]),
        ("ünïcode 🙂\n".encode(), ["ünïcode 🙂"]),
        (gzip.compress(b"good film\n"), ["good film"]),
    ],
    ids=["text", "jsonl", "csv", "unicode", "gzip"],
)
def test_stdin_is_read_as_what_it_is(warmstart: Any, model: Path, stdin: bytes, texts: list[str]) -> None:
    for arguments in ([], ["-i", "-"]):
        done = warmstart("predict", "-m", model, *arguments, stdin=stdin)
        assert done.code == 0, done.err
        assert [line.get("text", line.get("review")) for line in done.lines] == texts


def test_a_file_goes_round_with_its_rows_in_order_and_its_fields_under_their_names(
    warmstart: Any, model: Path, files: Path
) -> None:
    with (files / "reviews.csv").open() as file:
        given = list(csv.DictReader(file))
    for name in ("out.jsonl", "out.csv", "out.tsv", "out.parquet", "out.jsonl.gz"):
        done = warmstart("predict", "-m", model, "-i", "reviews.csv", "-o", name)
        assert done.code == 0 and done.out == "", done.err
        rows = _read(files / name)
        assert [(row["id"], row["review"], row["input_label"]) for row in rows] == [
            (row["id"], row["review"], row["label"]) for row in given
        ]
        assert {row["label"] for row in rows} <= {"NEGATIVE", "POSITIVE"}


def _read(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
        return rows
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    if ".jsonl" in path.name:
        return [json.loads(line) for line in data.decode().splitlines()]
    return list(csv.DictReader(data.decode().splitlines(), delimiter="\t" if path.suffix == ".tsv" else ","))


def test_a_pinned_column_comes_back_under_its_own_name(warmstart: Any, model: Path, files: Path) -> None:
    (files / "odd.jsonl").write_text('{"text": "decoy", "body": "good film"}\n')
    done = warmstart("predict", "-m", model, "-i", "odd.jsonl", "--column", "text=body")
    [line] = done.lines
    assert done.code == 0 and line["body"] == "good film" and line["tokens"] == 4
    assert "decoy" in line.values()


def test_skipped_rows_are_counted_named_and_give_code_5(warmstart: Any, model: Path, files: Path) -> None:
    rows = ['{"text": "good"}', '{"text": 5}', "{broken", '{"text": "bad"}']
    (files / "rows.jsonl").write_text("\n".join(rows) + "\n")
    done = warmstart("predict", "-m", model, "-i", "rows.jsonl", "--skip-errors", "-o", "out.jsonl")
    assert done.code == 5 and "2 rows were skipped" in done.err
    assert "rows.jsonl:2" in done.err and "rows.jsonl:3" in done.err
    assert [row["text"] for row in _read(files / "out.jsonl")] == ["good", "bad"]
    strict = warmstart("predict", "-m", model, "-i", "rows.jsonl", "-o", "strict.jsonl")
    assert strict.code == 3 and "rows.jsonl:2" in strict.err and not (files / "strict.jsonl").exists()
    healthy = warmstart("predict", "-m", model, "-i", "reviews.csv", "--skip-errors")
    assert healthy.code == 0 and len(healthy.lines) == 8


def test_options_and_budget_reach_the_task(warmstart: Any, model: Path) -> None:
    text = "wonderful story " * 100
    cut = warmstart("predict", "-m", model, text)
    assert cut.lines[0]["truncated"] and "1 of 1 texts were longer" in cut.err
    whole = warmstart("predict", "-m", model, text, "--option", "long_text=windows", "--option", "stride=8")
    assert not whole.lines[0]["truncated"] and whole.lines[0]["tokens"] > 200
    short = warmstart("predict", "-m", model, text, "--option", "max_length=16", "--max-tokens", "1")
    assert short.lines[0]["tokens"] == 16


def test_embeddings_are_predicted_too(warmstart: Any, tiny: Callable[..., Path]) -> None:
    done = warmstart("predict", "-m", tiny("bert", "base"), "--task", "feature-extraction", "good")
    assert done.code == 0 and len(done.lines[0]["embedding"]) == 32


def test_t50_a_text_without_words_is_flagged(warmstart: Any, model: Path) -> None:
    done = warmstart("predict", "-m", model, "", "   ")
    assert done.code == 0 and [line["flags"] for line in done.lines] == [["empty-text"], ["empty-text"]]


# --- a terminal -----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("terminal")
def test_a_terminal_gets_a_table_with_bars(warmstart: Any, model: Path) -> None:
    done = warmstart("predict", "-m", model, "a great film")
    assert done.code == 0 and "a great film" in done.out and "█" in done.out
    assert "NEGATIVE" in done.out and "POSITIVE" in done.out and "\x1b[32m" in done.out and "tokens" in done.out
    as_json = warmstart("predict", "-m", model, "a great film", "--json")
    assert list(as_json.lines[0]) == SHAPE


@pytest.mark.usefixtures("terminal")
def test_no_color_and_a_dumb_terminal_get_no_escapes(
    warmstart: Any, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "dumb")
    assert "\x1b" not in warmstart("predict", "-m", model, "good").out
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in warmstart("predict", "-m", model, "good").out


@pytest.mark.usefixtures("terminal")
@pytest.mark.parametrize("columns", ["10", "1", "0", "40", "wide"])
def test_g104_a_narrow_terminal_is_no_trouble(
    warmstart: Any, model: Path, monkeypatch: pytest.MonkeyPatch, columns: str
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("NO_COLOR", "1")
    done = warmstart("predict", "-m", model, "a great film " * 20)
    assert done.code == 0 and "POSITIVE" in done.out
    if columns == "40":
        assert max(map(len, done.out.splitlines())) <= 40


@pytest.mark.usefixtures("terminal")
def test_c23_hostile_labels_and_texts_are_shown_and_never_obeyed(warmstart: Any, tiny: Callable[..., Path]) -> None:
    labels = ("\x1b[2J\x1b]0;owned\x07bad", "good\u202etxt\nnext")
    done = warmstart("predict", "-m", tiny("bert", labels=labels), "text \x1b[31m\u202e\r done")
    assert done.code == 0
    shown = done.out.replace("\x1b[1m", "").replace("\x1b[2m", "").replace("\x1b[32m", "").replace("\x1b[0m", "")
    assert "\x1b" not in shown and "\u202e" not in shown and "\x07" not in shown and "\r" not in shown
    assert "\\x1b[2J" in shown and "\\u202e" in shown
    piped = warmstart("predict", "-m", tiny("bert", labels=labels), "text", "--json")
    assert set(piped.lines[0]["scores"]) == set(labels)  # for a program they are what they are


@pytest.mark.usefixtures("terminal")
def test_only_the_chosen_label_is_green(warmstart: Any, tiny: Callable[..., Path]) -> None:
    """ "POS" is a part of "POSITIVE", and not chosen with it."""
    done = warmstart("predict", "-m", tiny("bert", labels=("NEG", "NEGATIVE", "POS", "POSITIVE")), "good")
    assert done.out.count("\x1b[32m") == 1


@pytest.mark.usefixtures("terminal")
def test_a_number_and_an_embedding_are_shown(warmstart: Any, tiny: Callable[..., Path]) -> None:
    done = warmstart("predict", "-m", tiny("bert", labels=("stars",)), "good")
    assert done.code == 0 and "stars" in done.out
    done = warmstart("predict", "-m", tiny("bert", "base"), "--task", "sentence-embedding", "good")
    assert done.code == 0 and "32 values" in done.out
