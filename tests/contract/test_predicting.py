"""What every task's predictions must be: functions of the row alone, whatever stands beside it and however it came."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import CASES, Loaded

from warmstart.batching import collate
from warmstart.cli.main import run
from warmstart.errors import DataError, UsageError
from warmstart.evaluation import read_predictions
from warmstart.features import Feature
from warmstart.randomness import generator
from warmstart.rows import Row
from warmstart.tasks import TASKS, as_dict, from_dict, prediction_fields
from warmstart.tasks.contract import Generates
from warmstart.verbs.evaluate import is_judged


def close(left: Any, right: Any, tolerance: float = 1e-5) -> bool:
    """Equal, numbers up to `tolerance`."""
    if isinstance(left, float) and isinstance(right, float):
        return math.isclose(left, right, abs_tol=tolerance)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(close(left[key], right[key], tolerance) for key in left)
    if isinstance(left, list):
        return len(left) == len(right) and all(close(a, b, tolerance) for a, b in zip(left, right, strict=True))
    return bool(left == right)


def dicts(predictions: Any) -> list[dict[str, Any]]:
    return [as_dict(prediction) for prediction in predictions]


def inputs_of(loaded: Loaded) -> list[Row]:
    """The rows as a person predicts for them: without a label."""
    targets = {field.name for field in loaded.pipe.task.fields if field.target}
    return [Row({name: value for name, value in row.items() if name not in targets}) for row in loaded.rows]


def same_bytes(left: Feature, right: Feature) -> bool:
    return (
        (left.row, left.part, left.length) == (right.row, right.part, right.length)
        and left.meta.keys() == right.meta.keys()
        and all(np.array_equal(left.meta[name], right.meta[name]) for name in left.meta)
        and left.inputs.keys() == right.inputs.keys()
        and all(left.inputs[name].tobytes() == right.inputs[name].tobytes() for name in left.inputs)
        and all(left.inputs[name].dtype == right.inputs[name].dtype for name in left.inputs)
    )


def reads_windows(loaded: Loaded) -> bool:
    """Whether long texts are covered by windows: some tasks do so unless told otherwise."""
    return vars(loaded.pipe.task).get("long_text") == "windows"


# --- the row alone ------------------------------------------------------------------------------------------------


def test_batch_size_does_not_matter(loaded: Loaded) -> None:
    alone = dicts(loaded.pipe(inputs_of(loaded), max_tokens=1))
    assert len(alone) == len(loaded.rows)
    for budget in (40, 100, 10**6):
        assert close(dicts(loaded.pipe(inputs_of(loaded), max_tokens=budget)), alone)


def test_order_does_not_matter(loaded: Loaded) -> None:
    rows = inputs_of(loaded)
    forward, backward = dicts(loaded.pipe(rows)), dicts(loaded.pipe(rows[::-1]))
    assert close(forward, backward[::-1])
    assert not close(forward, backward)  # or the check above would hold for a constant


def test_one_row_is_a_list_of_one(loaded: Loaded) -> None:
    for row in inputs_of(loaded)[:3]:
        [in_list] = loaded.pipe([row])
        [in_stream] = loaded.pipe(iter([row]))
        assert as_dict(loaded.pipe(row)) == as_dict(in_list) == as_dict(in_stream)


def test_the_same_twice(loaded: Loaded) -> None:
    rows = inputs_of(loaded)
    assert dicts(loaded.pipe(rows)) == dicts(loaded.pipe(rows))


def test_labels_do_not_leak_into_encoding(loaded: Loaded) -> None:
    task = loaded.pipe.task
    with_label, without = list(task.encode(loaded.rows)), list(task.encode(inputs_of(loaded)))
    assert len(with_label) == len(without) >= len(loaded.rows)
    assert all(same_bytes(a, b) for a, b in zip(with_label, without, strict=True))
    assert all(feature.targets == {} for feature in with_label)


def test_features_are_what_the_contract_says(loaded: Loaded) -> None:
    task = loaded.pipe.task
    features = list(task.encode(inputs_of(loaded)))
    parts: dict[int, int] = {}
    for feature in features:
        assert feature.part == parts.get(feature.row, 0)  # in order, without a gap
        parts[feature.row] = feature.part + 1
        assert feature.length == len(feature.inputs["input_ids"]) <= task.tokenizer.limit
        assert feature.inputs.keys() <= task.pads.keys()
    assert list(parts) == list(range(len(loaded.rows)))
    batch = collate(features, task.pads)
    assert all(array.shape[0] == len(features) for array in batch.inputs.values())
    assert batch.tokens == sum(feature.length for feature in features) == batch.inputs["attention_mask"].sum()


def test_tokens_and_truncation_are_reported(loaded: Loaded) -> None:
    task, rows = loaded.pipe.task, inputs_of(loaded)
    features = list(task.encode(rows))
    predictions = loaded.pipe(rows)
    for i, prediction in enumerate(predictions):
        assert prediction.tokens == sum(feature.length for feature in features if feature.row == i) > 0
        assert prediction.flags == ()
    short = "max_length" in loaded.case.options
    windows = reads_windows(loaded)
    assert any(prediction.truncated for prediction in predictions) == (short and not windows)
    if windows and short:
        assert len(features) > len(list(dataclasses.replace(task, long_text="truncate").encode(rows)))  # type: ignore[type-var]


def test_varying_is_a_function_of_the_generator(loaded: Loaded) -> None:
    task = loaded.pipe.task
    for feature in task.encode(inputs_of(loaded)[:2]):
        once, again = (task.vary(feature, generator(7, "vary", feature.row, feature.part)) for _ in range(2))
        assert same_bytes(once, again)


# --- the form -----------------------------------------------------------------------------------------------------


def test_predictions_survive_json(loaded: Loaded) -> None:
    kind = loaded.pipe.task.prediction
    for prediction in loaded.pipe(inputs_of(loaded)):
        assert type(prediction) is kind
        line = json.dumps(as_dict(prediction), allow_nan=False)
        assert from_dict(kind, json.loads(line)) == prediction
        assert tuple(as_dict(prediction)) == prediction_fields(kind)


def test_predictions_are_frozen_and_have_the_common_fields(loaded: Loaded) -> None:
    prediction = loaded.pipe(inputs_of(loaded)[0])
    assert {"tokens", "truncated", "flags"} < {item.name for item in dataclasses.fields(prediction)}
    with pytest.raises(dataclasses.FrozenInstanceError):
        prediction.tokens = 0


def test_options_are_fields_and_are_checked(loaded: Loaded) -> None:
    task = loaded.pipe.task
    kind = type(task)
    names = {item.name for item in dataclasses.fields(task)}
    assert set(kind.option_names) <= names
    config = json.loads((loaded.folder / "config.json").read_text())
    with pytest.raises(UsageError) as unknown:
        kind.from_checkpoint(task.tokenizer, config, loaded.folder, {"long_txt": "windows"})
    assert unknown.value.code == "option-unknown"
    for name in kind.option_names:
        for wrong in (None, -1, "sideways", True, [], float("nan")):
            if wrong in loaded.case.takes.get(name, ()):
                continue
            with pytest.raises(UsageError) as caught:
                kind.from_checkpoint(task.tokenizer, config, loaded.folder, {name: wrong})
            assert caught.value.code == "option-value"
            assert name in caught.value.fix
    assert kind.from_checkpoint(task.tokenizer, config, loaded.folder, {}).name == kind.name


def test_a_bad_row_names_its_index_and_field(loaded: Loaded) -> None:
    for field in loaded.pipe.task.fields:
        if field.target or not any(field.name in row for row in loaded.rows):
            continue
        for wrong in (3, b"bytes", [3] if field.many else ["a"] if field.text else [["a"]]):
            rows = inputs_of(loaded)[:4]
            rows[2] = Row(dict(rows[2]) | {field.name: wrong})
            with pytest.raises(DataError) as caught:
                loaded.pipe(rows)
            assert (caught.value.where.row, caught.value.where.field) == (2, field.name)
            assert caught.value.code.startswith("field-not-text" if field.text else "field-not-")
        if field.required:
            rows = inputs_of(loaded)[:4]
            rows[1] = Row({"other": "x"})
            with pytest.raises(DataError) as caught:
                loaded.pipe(rows)
            assert (caught.value.code, caught.value.where.row) == ("field-missing", 1)


def test_what_is_no_row_is_refused(loaded: Loaded) -> None:
    for wrong in (["a text", 3], [None], [("a", "b", "c")], [{1: "a"}]):
        with pytest.raises(DataError) as caught:
            loaded.pipe(wrong)
        assert caught.value.code == "row-not-object"
        assert caught.value.where.row == len(wrong) - 1
    for wrong in (3, None, b"bytes"):
        with pytest.raises(DataError) as caught:
            loaded.pipe(wrong)
        assert caught.value.code == "data-not-rows"


def test_a_pair_is_read_whole_or_refused(loaded: Loaded) -> None:
    """A task of one text must not drop the second of a pair in silence."""
    names = [field.name for field in loaded.pipe.task.fields if field.text and not field.target]
    if len(names) > 1:
        row = dict(zip(names, ("a", "b"), strict=False))
        assert as_dict(loaded.pipe(("a", "b"))) == as_dict(loaded.pipe(row))
    else:
        with pytest.raises(DataError) as caught:
            loaded.pipe(("a", "b"))
        assert caught.value.code == "row-not-object"


# --- T50 to T54, as every task meets them ---------------------------------------------------------------------------

_HOSTILE = {
    "t50_empty": ("", {"empty-text"}),
    "t50_space": (" \t\n\u3000", {"empty-text"}),
    "t51_surrogates": ("a \udc80 film \ud800", {"surrogates-replaced"}),
    "t52_combining": ("Z" + "\u0351\u0317" * 300, set()),
    "t52_no_space": ("x" * 20_000, set()),
    "t52_directions": ("\u202egood\u202c \U0001f468\u200d\U0001f469\u200d\U0001f467 cafe\u0301 caf\u00e9 \0", set()),
    "t53_special_tokens": ("[CLS] a [SEP] </s> <|endoftext|> <s> [MASK] <pad>", {"special-tokens-as-text"}),
    "t54_long": ("a good film " * 400, set()),
}


@pytest.mark.parametrize("item", _HOSTILE)
def test_hostile_texts(loaded: Loaded, item: str) -> None:
    text, flags = _HOSTILE[item]
    rows = inputs_of(loaded)
    calm = dicts(loaded.pipe(rows))
    task, windows = loaded.pipe.task, reads_windows(loaded)
    fields = task.fields
    names = [name for name in rows[0] if name in {field.name for field in fields if field.text}]
    names = names or [next(field.name for field in fields if field.text)]  # these rows have none, but could
    hostile = Row(dict.fromkeys(names, text))
    if windows and len(names) > 1:  # a window has no room beside a long first text: that error has its own test
        hostile[names[0]] = text[:3]
    predictions = dicts(loaded.pipe([*rows[:2], hostile, *rows[2:]]))
    found = predictions.pop(2)
    assert close(predictions, calm)  # the neighbours do not notice
    json.dumps(found, allow_nan=False)  # no NaN, no surrogate
    assert flags <= set(found["flags"])
    assert flags or not set(found["flags"]) - {"unknown-tokens-only", "no-mask"}
    if item == "t54_long":
        assert found["truncated"] != windows
        pieces = len(list(loaded.pipe.task.encode([hostile])))
        # A prompt that is cut leaves room for what is generated.
        most = task.prompt_limit if isinstance(task, Generates) else task.tokenizer.limit
        assert windows or found["tokens"] == pieces * most


# --- the command line, and what is imported -------------------------------------------------------------------------


def test_the_command_line_is_the_library(loaded: Loaded, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = inputs_of(loaded)
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    options = [part for name, value in loaded.case.options.items() for part in ("--option", f"{name}={value}")]
    common = ["-m", str(loaded.folder), "--task", loaded.case.task, "--device", "cpu", *options]
    assert run(["predict", "-i", str(data), *common]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    expected = dicts(loaded.pipe(rows))
    assert [{name: line[name] for name in expected[0]} for line in lines] == expected
    for line, row in zip(lines, rows, strict=True):
        assert {name: line[f"input_{name}" if name in expected[0] else name] for name in row} == row


def test_a_task_imports_neither_torch_nor_transformers() -> None:
    for kind in TASKS.values():
        tree = ast.parse(Path(inspect.getfile(kind)).read_text(encoding="utf-8"))
        named = {
            alias.name.partition(".")[0]
            for node in ast.walk(tree)
            if isinstance(node, ast.Import | ast.ImportFrom)
            for alias in (node.names if isinstance(node, ast.Import) else [ast.alias(node.module or "")])
            if node in tree.body
        }
        assert not named & {"torch", "transformers"}
    code = "import sys, warmstart.tasks, warmstart.pipeline; print({'torch', 'transformers'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_every_task_has_a_case() -> None:
    assert {case.task for case in CASES} == set(TASKS)
    assert all(kind.name == name for name, kind in TASKS.items())
    assert len({case.name for case in CASES}) == len(CASES)


def test_a_task_that_only_predicts_says_so(predicting: Loaded, tmp_path: Path) -> None:
    import warmstart as ws

    task = predicting.pipe.task
    calls = [
        lambda: task.learn(predicting.rows),
        lambda: task.loss({}, collate(list(task.encode(predicting.rows)), task.pads)),
        lambda: ws.batches(predicting.case.rows(), task),
        lambda: ws.train(predicting.folder, predicting.case.rows(), output=tmp_path / "run", task=task.name),
    ]
    if not is_judged(task):
        calls += [
            lambda: list(task.encode(predicting.rows, train=True)),
            lambda: task.score(predicting.pipe(predicting.rows), predicting.rows),
        ]
    for call in calls:
        with pytest.raises(UsageError) as caught:
            call()
        assert caught.value.code == "task-not-trainable"
    assert not (tmp_path / "run").exists()


def test_a_task_that_only_predicts_is_judged_if_it_has_a_target(predicting: Loaded) -> None:
    import warmstart as ws

    if not is_judged(predicting.pipe.task):
        with pytest.raises(UsageError) as caught:
            ws.evaluate(predicting.pipe, predicting.case.rows())
        assert caught.value.code == "task-without-metrics"
        return
    alone = list(predicting.pipe.judge_rows(predicting.rows, max_tokens=1))
    result = ws.evaluate(predicting.pipe, predicting.case.rows())
    scores = predicting.pipe.task.score(alone, predicting.rows)
    assert scores.per_example["loss"].shape == (len(predicting.rows),)
    assert math.isclose(float(scores.per_example["loss"].mean()), result.loss, rel_tol=1e-5)
    assert result.metrics.keys() == scores.metrics.keys() != set()
    [target] = [field.name for field in predicting.pipe.task.fields if field.target]
    rows = predicting.case.rows()
    rows[3] = rows[3] | {target: {"a": 1}}
    with pytest.raises(DataError) as bad:
        ws.evaluate(predicting.pipe, rows)
    assert (bad.value.where.row, bad.value.where.field) == (3, target)


def test_what_an_evaluation_stores_gives_its_metrics_again(predicting: Loaded, tmp_path: Path) -> None:
    """From the file alone, for any rows: `ws.compare` needs nothing else."""
    import warmstart as ws

    rows = predicting.case.rows()
    if not is_judged(predicting.pipe.task):
        with pytest.raises(UsageError):
            ws.evaluate(predicting.pipe, rows)
        return
    result = ws.evaluate(predicting.pipe, rows)
    result.write(tmp_path)
    back = read_predictions(tmp_path)
    assert back.metrics == result.metrics
    assert {name: measure.of(back.per_example) for name, measure in back.measures.items()} == {
        name: result.metrics.get(name) for name in result.measures
    }
    found = ws.compare(tmp_path, ws.evaluate(predicting.pipe, rows[::-1]))
    assert found.rows == len(rows) and set(found.metrics) >= set(result.measures) & set(result.metrics)
    for each in found.metrics.values():
        assert each.lo <= each.difference <= each.hi and abs(each.difference) < 1e-3
