"""The fault catalogue, D38 to D41: columns missing or renamed, labels of many spellings, splits that cannot train."""

from __future__ import annotations

import logging
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest

from warmstart.errors import DataError, UsageError, Where
from warmstart.rows import Field, Labels, check_training_labels, hold_out, infer_problem, number, read, unseen
from warmstart.rows.row import Row

FIELDS = (
    Field("text", ("sentence", "sentence1", "premise"), text=True),
    Field(
        "text_pair",
        ("sentence2", "hypothesis"),
        required=False,
        text=True,
        partner="text",
        partner_aliases=("sentence1", "premise"),
    ),
    Field("label", ("labels", "category", "score"), target=True),
)


def refusal(data: Any, **options: Any) -> DataError:
    start = time.process_time()
    with pytest.raises(DataError) as caught:
        list(read(data, fields=FIELDS, **options))
    assert time.process_time() - start < 2
    return caught.value


# D38: columns


def test_d38_missing_column_lists_what_is_there_and_offers_the_nearest(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"sentense": "a", "id": 1}\n')
    error = refusal(path)
    assert (error.code, error.where.source, error.where.line, error.where.field) == (
        "column-missing",
        str(path),
        1,
        "text",
    )
    assert "'sentense', 'id'" in str(error.value)
    assert "did you mean sentense?" in error.fix
    assert list(read(path, fields=FIELDS, columns={"text": "sentense"})) == [{"text": "a", "id": 1}]


def test_d38_missing_target_is_refused_only_where_targets_are_needed() -> None:
    data = [{"text": "a", "labell": "x"}]
    error = refusal(data, targets=True)
    assert (error.code, error.where.field) == ("column-missing", "label")
    assert "labell" in error.fix
    assert list(read(data, fields=FIELDS)) == data


def test_d38_pins_are_checked() -> None:
    error = refusal([{"text": "a", "body": "b"}], columns={"text": "boddy"})
    assert (error.code, error.where.field) == ("column-missing", "text")
    assert "did you mean body?" in error.fix
    with pytest.raises(UsageError) as caught:
        read([{"text": "a"}], fields=FIELDS, columns={"txt": "text"})
    assert caught.value.code == "field-unknown"
    assert "did you mean text?" in caught.value.fix


def test_d38_extra_columns_are_kept_and_late_ones_are_noticed(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "warmstart")
    stream = read([{"sentence1": "a", "id": 7}, {"sentence1": "b", "sentence2": "c"}], fields=FIELDS)
    assert list(stream) == [{"text": "a", "id": 7}, {"text": "b", "text_pair": "c"}]
    assert stream.columns == {"text": "sentence1", "text_pair": "sentence2"}
    assert any("'sentence2'" in sentence for sentence in stream.guessed)
    assert caplog.text.count("'sentence2'") == 1


def test_d38_column_that_vanishes_is_a_row_error(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n{"txet": "b"}\n{"text": null}\n{"text": 3}\n{"text": "c"}\n')
    assert (refusal(path).code, refusal(path).where.line) == ("field-missing", 2)
    stream = read(path, fields=FIELDS, on_error="skip")
    assert [row["text"] for row in stream] == ["a", "c"]
    assert [(error.code, error.where.line) for error in stream.errors] == [
        ("field-missing", 2),
        ("field-missing", 3),
        ("field-not-text", 4),
    ]
    assert "did you mean txet?" in stream.errors[0].fix
    assert stream.errors[2].value == 3


def test_d38_skipping_does_not_hide_that_every_row_lacks_the_column() -> None:
    assert refusal([{"txet": "b"}] * 1000, on_error="skip").code == "column-missing"
    stream = read([{"version": 1}, {"text": "a"}], fields=FIELDS, on_error="skip")
    assert (list(stream), stream.skipped) == ([{"text": "a"}], 1)


@pytest.mark.parametrize("missing", [None, float("nan"), ""])
def test_d38_empty_target_is_a_row_error(missing: object) -> None:
    data = [{"text": "a", "label": "x"}, {"text": "b", "label": missing}]
    error = refusal(data, targets=True)
    assert (error.code, error.where.row, error.where.field) == ("field-missing", 1, "label")
    assert len(list(read(data, fields=FIELDS))) == 2


# D39: labels


@pytest.mark.parametrize("value", [pandas.NA, pandas.NaT, np.datetime64("NaT"), np.float32("nan")])
def test_d39_every_missing_value_of_pandas_and_numpy_is_a_row_error(value: object) -> None:
    error = refusal([{"text": "a", "label": value}], targets=True)
    assert (error.code, error.where.row, error.where.field) == ("field-missing", 0, "label")
    assert infer_problem([value, 0.5]) == "regression"
    assert len(list(read([{"text": "a", "label": value}], fields=FIELDS))) == 1


def test_d39_arrays_as_data_frames_hold_them_are_lists_of_labels_and_no_texts() -> None:
    frame = pandas.DataFrame({"text": ["a"], "label": [np.array(["x", "y"])]})
    (row,) = read(frame, fields=FIELDS, targets=True)
    assert Labels(("x", "y")).vector(row["label"]) == (1, 1)
    error = refusal([{"text": np.array(["a", "b"])}])
    assert (error.code, error.where.field) == ("field-not-text", "text")


def test_d39_places_and_values_are_as_many() -> None:
    with pytest.raises(ValueError, match="shorter"):  # a caller's mistake, which would lose labels
        Labels.learn(["a", "b"], [None])


@pytest.mark.parametrize("value", [" pos", "pos\n", "POS", "Pos", "\u2003pos"])
def test_d39_spellings_of_one_label_are_one_class(value: str) -> None:
    labels = Labels(("neg", "pos"))
    assert labels.index(value) == 1
    assert Labels.learn(["pos", "pos", "neg", value]).names == ("neg", "pos")


@pytest.mark.parametrize("value", [1, 1.0, "1", "1.0", " 1 ", np.int64(1), np.float32(1), np.str_("1")])
def test_d39_whole_numbers_are_one_class_however_typed(value: object) -> None:
    assert Labels(("0", "1", "2")).index(value) == 1
    assert Labels.learn([0, "2", value]).names == ("0", "1", "2")


@pytest.mark.parametrize("value", [None, float("nan"), "", "  ", np.float64("nan")])
def test_d39_missing_labels_are_refused_where_they_stand(value: object) -> None:
    where = Where("train.csv", line=7, field="label")
    for call in (
        lambda: Labels(("a", "b")).index(value, where),
        lambda: Labels.learn(["a", value], [Where(), where]),
    ):
        with pytest.raises(DataError) as caught:
            call()
        assert (caught.value.code, caught.value.where) == ("label-missing", where)


@pytest.mark.parametrize("value", [{"a": 1}, b"pos", object(), float("inf")])
def test_d39_what_is_no_label_is_refused(value: object) -> None:
    for call in (lambda: Labels(("a", "b")).index(value), lambda: Labels.learn(["a", value])):
        with pytest.raises(DataError) as caught:
            call()
        assert caught.value.code == "label-unusable"


def test_d39_bools_match_only_true_and_false() -> None:
    assert [Labels(("False", "True")).index(value) for value in (False, True, np.True_)] == [0, 1, 1]
    assert Labels.learn([True, True, False, "TRUE"]).names == ("false", "true")
    for names in (("0", "1"), ("neg", "pos")):
        with pytest.raises(DataError) as caught:
            Labels(names).index(True)
        assert caught.value.code == "label-unknown"


def test_d39_ids_address_classes_only_where_no_name_is_a_number(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "warmstart")
    labels = Labels(("neg", "pos"))
    assert [labels.index(value) for value in (0, 1, "1", 1.0)] == [0, 1, 1, 1]
    assert len([record for record in caplog.records if "class ids" in record.message]) == 1
    for names, value in ((("neg", "pos"), 2), (("neg", "pos"), -1), (("5", "7"), 0), (("1 star", "2 stars"), 1)):
        with pytest.raises(DataError) as caught:
            Labels(names).index(value)
        assert caught.value.code == "label-unknown"


def test_d39_case_variants_merge_into_the_most_frequent_in_any_order(caplog: pytest.LogCaptureFixture) -> None:
    values = ["POS"] * 2 + ["Pos"] * 3 + ["neg"] + ["e\u0301"] + ["é"]
    for seed in range(5):
        random.Random(seed).shuffle(values)
        labels = Labels.learn(values)
        assert labels.names == ("Pos", "neg", "é")
        assert labels.said == ("label 'POS' (2) is counted as 'Pos' (3): they differ in case only",)
    assert labels.said[0] in caplog.text
    assert Labels.learn(["b", "a", "a"]).said == ()


def test_d39_learned_names_are_sorted_by_number_if_all_are_numbers() -> None:
    assert Labels.learn(["10", 9, 1.0]).names == ("1", "9", "10")
    assert Labels.learn(["10", "9", "x"]).names == ("10", "9", "x")
    assert Labels.learn(["007", "7"]).names == ("007", "7")  # a code with zeros is a name of its own


def test_d39_explicit_names_that_differ_in_case_stay_apart() -> None:
    labels = Labels(("US", "us"))
    assert (labels.index("US"), labels.index("us")) == (0, 1)
    with pytest.raises(DataError):
        labels.index("Us")
    with pytest.raises(DataError) as caught:
        Labels(("a", " a"))
    assert caught.value.code == "label-duplicate"


@pytest.mark.parametrize("value", [None, "", "abc", True, float("nan"), "inf", "3,5", "1_000", [1.0], 10**400])
def test_d39_regression_targets_are_finite_numbers_or_refused(value: object) -> None:
    where = Where("a.csv", line=3, field="score")
    with pytest.raises(DataError) as caught:
        number(value, where)
    assert (caught.value.code, caught.value.where) == ("target-not-number", where)


def test_d39_healthy_twin_numbers_and_problems() -> None:
    assert [number(value) for value in (3, " 3.5 ", "-1e-2", np.float32(0.5))] == [3.0, 3.5, -0.01, 0.5]
    assert infer_problem(["5.0", "3.8"]) == infer_problem([1, 2.5, None]) == "regression"
    assert infer_problem(["1.0", 2, True]) == infer_problem(["a", 0.5]) == infer_problem([]) == "single"
    assert infer_problem([["a"], [], np.array([0, 1])]) == "multi"
    with pytest.raises(DataError) as caught:
        infer_problem([["a"], "b"])
    assert caught.value.code == "label-mixed"


def test_d39_multi_label_values() -> None:
    labels = Labels.learn([["b", "a"], [], ["A ", "a"]])
    assert labels.names == ("a", "b")
    assert labels.vector(["B"]) == labels.vector([0, 1]) == labels.vector(np.array([0.0, 1.0])) == (0, 1)
    assert labels.vector([]) == (0, 0)
    assert Labels.learn([[0, 1, 1], [1, 0, 0]]).names == ("0", "1", "2")
    assert Labels.learn([[0, 1], [2]]).names == ("0", "1", "2")
    for value, code in (("a", "label-unusable"), (["c"], "label-unknown"), ([None], "label-missing")):
        with pytest.raises(DataError) as caught:
            labels.vector(value)
        assert caught.value.code == code


# D40: labels that were not trained


def test_d40_unknown_label_is_refused_with_the_nearest() -> None:
    where = Where("test.csv", line=12, field="label")
    with pytest.raises(DataError) as caught:
        Labels(("card_arrival", "lost_card")).index("card_arival", where)
    error = caught.value
    assert (error.code, error.where, error.value) == ("label-unknown", where, "card_arival")
    assert "did you mean card_arrival?" in error.fix


def test_d40_unknown_labels_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    labels = Labels(("a", "b"))
    assert unseen(labels, ["a", "B", "oos", " oos", ["a", "new"]]) == {"oos": 2, "new": 1}
    assert "3 rows" in caplog.text
    with pytest.raises(DataError) as caught:
        unseen(labels, ["a", "oos"], [Where(row=0), Where(row=1)], refuse=True)
    assert (caught.value.code, caught.value.where.row) == ("label-unknown", 1)


def test_d40_healthy_twin_counts_nothing(caplog: pytest.LogCaptureFixture) -> None:
    assert unseen(Labels(("a", "b")), ["a", "b ", "A"]) == {}
    assert not caplog.records


def test_d40_many_classes_stay_fast() -> None:
    labels = Labels(tuple(f"class {n:04}" for n in range(2000)))
    start = time.process_time()
    with pytest.raises(DataError) as caught:
        labels.index("klass 0001")
    assert time.process_time() - start < 2
    assert len(caught.value.fix) < 2000


# D41: splits that cannot be trained on


@pytest.mark.parametrize(
    ("values", "code"),
    [
        ([], "split-empty"),
        (["a"], "label-one-class"),
        (["a", " A", "a"], "label-one-class"),
        ([f"text {n}" for n in range(30)], "label-every-row-differs"),
    ],
)
def test_d41_split_that_cannot_train_is_refused(values: list[object], code: str) -> None:
    with pytest.raises(DataError) as caught:
        check_training_labels(values, source="train.csv")
    assert caught.value.code == code
    assert "train.csv" in caught.value.what


def test_d41_class_with_one_row_is_said_and_trained(caplog: pytest.LogCaptureFixture) -> None:
    assert check_training_labels(["a", "a", "b"]) == ("class 'b' has one row only in the training rows",)
    assert "one row only" in caplog.text
    said = check_training_labels(["a", "a", "b", "b"], Labels(("a", "b", "c")))
    assert said == ("class 'c' has no row in the training rows",)


def test_d41_bad_label_in_the_split_is_named() -> None:
    with pytest.raises(DataError) as caught:
        check_training_labels(["a", None], wheres=[Where(row=0), Where(row=1)])
    assert (caught.value.code, caught.value.where.row) == ("label-missing", 1)


def test_d41_healthy_twin_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    assert check_training_labels(["a", "b"] * 10) == ()
    assert not caplog.records


def test_d41_holding_out_never_empties_a_part() -> None:
    for count in (2, 3, 5):
        for fraction in (0.001, 0.5, 0.999):
            rows = [Row({"text": f"text {n}"}) for n in range(count)]
            train, held = hold_out(rows, fraction)
            assert train and held and len(train) + len(held) == count
    assert hold_out([Row({"text": "same"})] * 5, 0.9) == ([{"text": "same"}] * 5, [])
    with pytest.raises(UsageError):
        hold_out([], 1.0)
