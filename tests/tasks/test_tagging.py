"""Schemes: spans written as tags and read back are the same spans, in every scheme."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from warmstart.errors import DataError, Where
from warmstart.tasks.tagging import Run, Tagging, runs, scheme_labels

TYPES = ("LOC", "PER")
SCHEMES = {
    "BIO": {"B-PER", "I-PER", "O"},
    "BILOU": {"U-PER", "O"},
    "BIOES": {"S-PER", "E-PER", "O"},
    "IO": {"PER", "LOC", "O"},
}


@st.composite
def apart(draw: st.DrawFn) -> tuple[int, list[Run]]:
    """A length and spans in it, by position, without overlap."""
    at, found = 0, []
    for gap, size, name in draw(
        st.lists(st.tuples(st.integers(0, 2), st.integers(1, 3), st.sampled_from(TYPES)), max_size=5)
    ):
        found.append((name, at + gap, at + gap + size))
        at += gap + size
    return at + draw(st.integers(0, 2)), found


@pytest.mark.parametrize("scheme", SCHEMES)
@given(apart())
def test_written_and_read_is_the_same(scheme: str, case: tuple[int, list[Run]]) -> None:
    length, spans = case
    tagging = Tagging(scheme_labels(SCHEMES[scheme], TYPES))
    assert tagging.outside is not None
    ids = [tagging.outside] * length
    for name, first, last in spans:
        ids[first:last] = tagging.write(name, last - first)
    read = runs([tagging.tags[i] for i in ids])
    if scheme == "IO":  # without a prefix, neighbours of one type are one
        joined: list[Run] = []
        for name, first, last in spans:
            if joined and joined[-1][0] == name and joined[-1][2] == first:
                joined[-1] = (name, joined[-1][1], last)
            else:
                joined.append((name, first, last))
        spans = joined
    assert read == spans


@pytest.mark.parametrize(
    ("tags", "labels"),
    [
        (set(), ("O", "B-PER", "I-PER")),
        ({"O"}, ("O", "B-PER", "I-PER")),
        ({"B-PER", "O"}, ("O", "B-PER", "I-PER")),
        ({"I-PER", "O"}, ("O", "B-PER", "I-PER")),
        ({"B-PER", "L-PER", "O"}, ("O", "B-PER", "I-PER", "L-PER", "U-PER")),
        ({"B-PER", "E-PER", "O"}, ("O", "B-PER", "I-PER", "E-PER", "S-PER")),
        ({"PER", "O"}, ("O", "PER")),
        ({"PER"}, ("PER",)),  # parts of speech: everything has a tag
    ],
)
def test_the_table_to_train_follows_the_tags_of_the_data(tags: set[str], labels: tuple[str, ...]) -> None:
    assert scheme_labels(tags, ["PER"]) == labels


def test_a_tag_is_read_in_any_scheme_by_any_table() -> None:
    bio, io = Tagging(("O", "B-PER", "I-PER")), Tagging(("O", "PER", "E-mail"))
    assert [bio.read(tag, Where())[0] for tag in ("O", "B-PER", "M-PER", "E-PER", "S-PER", " L-per ")] == list("OBILUL")
    assert bio.read("PER", Where()) == ("I", "PER")
    assert bio.read(1, Where()) == ("B", "PER")
    assert io.read("B-PER", Where()) == ("B", "PER")
    assert io.read("E-mail", Where()) == ("I", "E-mail")  # a name with a hyphen, not the end of a mail
    assert Tagging(("NOUN", "VERB")).outside is None


@pytest.mark.parametrize(
    ("tag", "code"),
    [
        ("B-LOC", "label-unknown"),
        ("", "tag-unusable"),
        (None, "tag-unusable"),
        (9, "tags-are-ids"),
        (-1, "tags-are-ids"),
    ],
)
def test_what_is_no_tag(tag: object, code: str) -> None:
    with pytest.raises(DataError) as caught:
        Tagging(("O", "B-PER", "I-PER")).read(tag, Where(row=4, field="tags"))
    assert (caught.value.code, caught.value.where) == (code, Where(row=4, field="tags"))


def test_a_table_that_lacks_a_tag_writes_the_next_best() -> None:
    tagging = Tagging(("O", "B-PER"))
    assert [tagging.labels[i] for i in tagging.write("PER", 3)] == ["B-PER"] * 3
    inside = Tagging(("O", "I-PER"))
    assert [inside.labels[i] for i in inside.write("PER", 2)] == ["I-PER", "I-PER"]
