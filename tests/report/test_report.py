"""The report of a run: complete, self-contained, inert (C23, G103), no crash over a missing or damaged part."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import time
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from warmstart.errors import UsageError
from warmstart.report import render_run, write_report
from warmstart.report.predictions import judge
from warmstart.report.records import read_records
from warmstart.report.sections import best_evaluation

VOID = {"meta", "br"}
MARKUP = ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>']
HOSTILE = [*MARKUP, "\x1b[31mred\x1b[0m", "a\u202eb", "line\nbreak"]


class Page(HTMLParser):
    """The tags, attributes and visible text of a page; refuses one whose tags do not match up."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open[-1:] != ["style"]:
            self.text += data


def step(i: int, **more: float) -> dict[str, float]:
    return {"step": i, "epoch": i / 10, "loss": 1 / i, "learning_rate": 1e-4, "grad_norm": 2.0, "tokens": 100,
            "rows": 8, "seconds": 0.5, **more}  # fmt: skip


def evaluation(i: int, loss: float, accuracy: float) -> dict[str, Any]:
    metric = {"value": accuracy, "lo": accuracy - 0.02, "hi": accuracy + 0.02}
    return {"step": i, "epoch": i / 10, "validation": {"loss": loss, "accuracy": metric}}


def make_run(
    folder: Path,
    *,
    lines: Sequence[Mapping[str, Any]] | None = None,
    columns: Mapping[str, Sequence[Any]] | None = None,
    config: str = 'model = "starter-encoder"\n[train]\nepochs = 3\n',
) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text(config)
    (folder / "provenance.json").write_text(json.dumps({"task": "text-classification", "data": {"rows": 12}}))
    lines = lines or [*(step(i) for i in range(1, 31)), evaluation(10, 0.5, 0.8), evaluation(30, 0.6, 0.9)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if columns is not None:
        pq.write_table(pa.table(dict(columns)), folder / "predictions.parquet")
    return folder


def classified(labels: Sequence[str], true: Sequence[int], predicted: Sequence[int]) -> dict[str, list[Any]]:
    n = len(true)
    predictions = [
        {"label": labels[p], "score": 0.9, "scores": {label: 0.9 if i == p else 0.05 for i, label in enumerate(labels)}}
        for p in predicted
    ]
    return {
        "row": list(range(n)),
        "text": [f"text number {i}" for i in range(n)],
        "label": [labels[t] for t in true],
        "prediction": [json.dumps(prediction) for prediction in predictions],
        "loss": [float(i) for i in range(n)],
        "correct": [t == p for t, p in zip(true, predicted, strict=True)],
    }


def assert_self_contained(html: str) -> Page:
    page = Page(html)
    assert not {"script", "img", "link", "iframe", "object", "embed", "form", "base", "a"} & set(page.tags)
    names = {name for name, _ in page.attributes}
    assert not {"src", "href", "style", "srcset", "action"} & names
    assert not [name for name in names if name.startswith("on")]
    assert "url(" not in html and "@import" not in html
    policy = re.search(r'Policy" content="([^"]*)"', html)
    assert policy is not None
    style = re.search(r"<style>(.*?)</style>", html, re.DOTALL)
    assert style is not None
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert policy[1] == f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    return page


def test_a_whole_run_shows_everything(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", columns=classified(["NEGATIVE", "POSITIVE"], [0, 0, 1, 1], [0, 1, 1, 1]))
    path = write_report(run)
    assert path == run / "report.html"
    page = assert_self_contained(path.read_text(encoding="utf-8"))
    for expected in (
        "Run a", "0.900", "0.880 – 0.920", "after step 30", "Learning rate", "Gradient norm", "Validation accuracy",
        "95 % interval", "Confusion", "NEGATIVE", "text number 3", "epochs", "starter-encoder", "data.rows",
    ):  # fmt: skip
        assert expected in page.text, expected
    assert page.tags.count("svg") >= 5
    assert page.text.index("text number 3") < page.text.index("text number 0")  # largest loss first
    assert "Left out" not in page.text
    assert [file.name for file in run.iterdir() if file.name.startswith(".")] == []


def test_the_same_records_give_the_same_bytes(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", columns=classified(["x", "y"], [0, 1], [0, 1]))
    assert render_run(run) == render_run(str(run))
    before = write_report(run).read_bytes()
    assert write_report(run).read_bytes() == before


def test_confusion_counts_stand_in_the_matrix(tmp_path: Path) -> None:
    html = render_run(make_run(tmp_path / "a", columns=classified(["no", "yes"], [0] * 7 + [1] * 5, [0] * 4 + [1] * 8)))
    matrix = html[html.index('class="matrix"') : html.index("</table>", html.index('class="matrix"'))]
    assert re.findall(r"<td class=\"(\w+) h(\d)\">(\S+?)</td>", matrix) == [
        ("hit", "5", "4"), ("miss", "4", "3"), ("miss", "0", "·"), ("hit", "8", "5"),
    ]  # fmt: skip
    assert ">0.571</td>" in html  # recall of "no"


def test_many_labels_show_the_most_confused_pairs(tmp_path: Path) -> None:
    labels = [f"intent_{i}" for i in range(40)]
    true = [*range(40), 3, 3, 3]
    html = render_run(make_run(tmp_path / "a", columns=classified(labels, true, [*range(40), 5, 5, 7])))
    page = assert_self_contained(html)
    assert 'class="matrix"' not in html
    pairs = page.text[page.text.index("Most confused labels") :]
    assert "intent_3intent_520.500" in pairs
    assert "lowest F1" in pairs


def test_data_labels_meet_the_models_names(tmp_path: Path) -> None:
    columns = classified(["NEGATIVE", "POSITIVE"], [0, 1, 1, 0], [0, 1, 1, 0])
    columns["label"] = ["negative", "1", " POSITIVE ", "NEGATIVE"]
    html = render_run(make_run(tmp_path / "a", columns=columns))
    matrix = html[html.index('class="matrix"') : html.index("</table>", html.index('class="matrix"'))]
    assert matrix.count('scope="row"') == 2
    assert re.findall(r">(\d)</td>", matrix) == ["2", "2"]


@pytest.mark.parametrize(
    ("labels", "written", "expected"),
    [
        (["1", "2"], ["1.0", " 2"], [[1, 0], [0, 1]]),  # whole numbers however they are written
        (["1 star", "2 stars"], ["1 star", "2 stars"], [[1, 0], [0, 1]]),
        (["neg", "pos"], ["0", "POS"], [[1, 0], [0, 1]]),  # an id, another case
    ],
)
def test_labels_are_read_as_evaluation_reads_them(
    tmp_path: Path, labels: list[str], written: list[str], expected: list[list[int]]
) -> None:
    columns = classified(labels, [0, 1], [0, 1]) | {"label": written}
    judged = judge(make_run(tmp_path / "a", columns=columns) / "predictions.parquet")
    assert judged is not None
    assert [[judged.pairs[true, given] for given in labels] for true in labels] == expected
    assert sum(judged.pairs.values()) == 2


@pytest.mark.parametrize("label", ["1", "9" * 5000, "", "\ud800".encode("utf-8", "replace").decode()])
def test_a_label_that_the_model_does_not_have_is_its_own_row(tmp_path: Path, label: str) -> None:
    columns = classified(["1 star", "2 stars"], [0, 1], [0, 1]) | {"label": [label, "2 stars"]}
    judged = judge(make_run(tmp_path / "a", columns=columns) / "predictions.parquet")
    assert judged is not None and judged.note == ""
    assert judged.pairs == {(label, "1 star"): 1, ("2 stars", "2 stars"): 1}


def test_the_best_evaluation_is_the_one_that_training_kept(tmp_path: Path) -> None:
    lines = [
        evaluation(1, 0.4, 0.9),
        evaluation(2, 0.3, 0.8),
        evaluation(3, 0.2, 0.9),
        evaluation(4, 0.2, 0.9),
    ]
    run = make_run(tmp_path / "a", columns=classified(["x", "y"], [0, 1], [0, 1]))
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    assert "after step 3:" in Page(render_run(run)).text  # the highest accuracy, then the smaller loss, then the first
    best = best_evaluation(read_records(run))
    assert best is not None and best["step"] == 3
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines[:2]), encoding="utf-8")
    best = best_evaluation(read_records(run))
    assert best is not None and best["step"] == 1  # although the loss of step 2 is smaller


def test_regression_and_several_labels(tmp_path: Path) -> None:
    n = 3000
    regression = {
        "row": list(range(n)),
        "sentence1": ["a"] * n,
        "sentence2": ["b"] * n,
        "label": [json.dumps(i / n) for i in range(n)],
        "prediction": [json.dumps({"label": "score", "score": i / n, "scores": {"score": 0.1}}) for i in range(n)],
        "loss": np.linspace(0, 1, n).tolist(),
    }
    html = render_run(make_run(tmp_path / "a", columns=regression))
    page = assert_self_contained(html)
    assert "Predicted over true" in page.text and "Confusion" not in page.text
    assert 700 < html.count("dot faint") <= 1510
    several = {
        "row": [0, 1],
        "text": ["a", "b"],
        "label": ['["red", "round"]', "[]"],
        "prediction": [json.dumps({"label": ["red"], "score": 0.9, "scores": {"red": 0.9, "round": 0.2}})] * 2,
        "loss": [0.5, 0.1],
    }
    page = assert_self_contained(render_run(make_run(tmp_path / "b", columns=several)))
    assert "several labels" in page.text
    assert "red0.5001.0000.6671" in page.text
    assert "round0.0000.0000.0001" in page.text


def test_a_prediction_without_a_label_shows_its_own_fields(tmp_path: Path) -> None:
    answer = {"answer": "the <b>rain</b>", "start": 4, "tokens": 9, "truncated": False, "flags": []}
    columns = {"row": [0], "question": ["What falls?"], "prediction": [json.dumps(answer)], "loss": [2.5]}
    page = Page(write_report(make_run(tmp_path / "run", columns=columns)).read_text())
    assert '{"answer": "the <b>rain</b>", "start": 4}' in page.text
    assert "What falls?" in page.text


def test_c23_hostile_labels_and_texts_are_inert(tmp_path: Path) -> None:
    n = len(HOSTILE)
    columns = classified(HOSTILE, list(range(n)), [*range(1, n), 0])
    columns["text"] = HOSTILE
    columns["<b>column</b>"] = HOSTILE
    run = make_run(tmp_path / "<i>run", columns=columns, config='"<script>" = "</style><script>alert(1)</script>"\n')
    html = render_run(run)
    page = assert_self_contained(html)
    assert page.tags.count("i") == 0
    assert "<script>alert(1)</script>" in page.text  # shown, as text
    assert "\x1b" not in html and "\u202e" not in html
    assert "\\x1b[31mred" in page.text and "a\\u202eb" in page.text


def test_c23_healthy_labels_stay_as_they_are(tmp_path: Path) -> None:
    labels = ["très bien", "好", "R&D"]
    page = Page(render_run(make_run(tmp_path / "a", columns=classified(labels, [0, 1, 2], [0, 1, 1]))))
    assert all(label in page.text for label in labels)


def test_g103_secrets_do_not_reach_the_page(tmp_path: Path) -> None:
    secret = "hf_" + "aB3" * 11
    columns = classified(["x", "y"], [0], [1])
    columns["text"] = [f"my key is {secret}"]
    config = f'hub_token = "hunter2"\nmodel = "https://me:hunter2@host/m"\nseed = 7\n[hub]\ntoken = "{secret}"\n'
    html = render_run(make_run(tmp_path / "a", columns=columns, config=config))
    assert secret not in html
    assert "hunter2" not in html
    assert "<code>7</code>" in html


@pytest.mark.parametrize("missing", ["config.toml", "provenance.json", "metrics.jsonl", "predictions.parquet"])
@pytest.mark.parametrize("damage", ["absent", "empty", "garbage", "torn", "folder"])
def test_a_part_that_is_missing_or_damaged_is_a_sentence(tmp_path: Path, missing: str, damage: str) -> None:
    run = make_run(tmp_path / "a", columns=classified(["no", "yes"], [0, 1], [0, 0]))
    path = run / missing
    whole = path.read_bytes()
    path.unlink()
    if damage == "folder":
        path.mkdir()
    elif damage != "absent":
        path.write_bytes({"empty": b"", "garbage": b"\xff\x00{[\n" * 9, "torn": whole[:-3]}[damage])
    start = time.monotonic()
    page = assert_self_contained(render_run(run))
    assert time.monotonic() - start < 2
    if damage != "empty" or missing in {"provenance.json", "predictions.parquet"}:
        assert missing in page.text, page.text[-300:]
    if missing != "predictions.parquet":
        assert "text number 1" in page.text  # the healthy parts are there


def test_a_run_that_has_only_begun(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", lines=[step(1)])
    page = assert_self_contained(render_run(run))
    assert "No evaluation has been recorded yet." in page.text
    assert "predictions.parquet is not there" in page.text


def test_numbers_that_are_none_are_left_out(tmp_path: Path) -> None:
    lines = [step(1), step(2, loss=float("nan")), step(3, grad_norm=float("inf")), step(4, loss=10**400)]
    lines.append(evaluation(4, 0.1, 0.5))
    html = render_run(make_run(tmp_path / "a", lines=lines))
    assert not re.search(r'[" ](nan|inf)', html)
    assert "0.500" in html


def test_no_run_here(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        render_run(tmp_path / "absent")
    assert caught.value.code == "run-not-found"
    with pytest.raises(UsageError) as caught:
        write_report(tmp_path)
    assert caught.value.code == "run-empty"
    assert list(tmp_path.iterdir()) == []


def test_a_long_run_stays_small_and_fast(tmp_path: Path) -> None:
    lines = [step(i) for i in range(1, 50_001)] + [evaluation(i, 1 / i, 0.5) for i in range(500, 50_001, 500)]
    lines[30_000]["grad_norm"] = 777.0
    n = 30_000
    rng = np.random.default_rng(0)
    columns = classified(["a", "b", "c"], rng.integers(0, 3, n).tolist(), rng.integers(0, 3, n).tolist())
    run = make_run(tmp_path / "a", lines=lines, columns=columns)
    start = time.monotonic()
    html = render_run(run)
    assert time.monotonic() - start < 5
    assert len(html) < 400_000
    assert ">800</text>" in html or ">750</text>" in html  # the one spike still sets the axis
