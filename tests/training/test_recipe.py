"""A run's config.toml is a whole recipe, and comes back as what was written."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import warmstart as ws
from warmstart.training.config import TrainConfig
from warmstart.training.recipe import Recipe, read_recipe

names = st.none() | st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)


@given(
    st.builds(
        Recipe,
        model=names,
        data=names,
        validation=names | st.floats(0.01, 0.99),
        task=names,
        columns=st.dictionaries(st.sampled_from(["text", "label"]), st.text(st.characters(codec="utf-8"), max_size=5)),
        options=st.dictionaries(st.sampled_from(["max_length", "stride"]), st.integers(1, 99)),
        config=st.builds(TrainConfig, epochs=st.floats(0.1, 9), clip=st.none() | st.just(0.5), seed=st.integers(0, 9)),
    )
)
def test_a_recipe_comes_back(recipe: Recipe) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.toml"
        path.write_text(recipe.text(), encoding="utf-8")
        assert read_recipe(path) == recipe


def test_settings_lie_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text('model = "m"\n[train]\nepochs = 2\nseed = 4\n')
    recipe = read_recipe(path, ["seed=7"])
    assert (recipe.config.epochs, recipe.config.seed, recipe.model, recipe.data) == (2, 7, "m", None)


@pytest.mark.parametrize(
    ("text", "code", "field"),
    [
        ("model = 3", "config-value", "model"),
        ("validation = true", "config-value", "validation"),
        ("columns = 3", "config-value", "columns"),
        ("[columns]\ntext = 3", "config-value", "columns"),
        ("options = []", "config-value", "options"),
        ("train = 3", "config-unknown-key", "train"),
        ("modle = 'x'", "config-unknown-key", "modle"),
        ("[train]\nepoch = 3", "config-unknown-key", "epoch"),
        ("model = ", "config-not-toml", None),
    ],
)
def test_g101_what_is_wrong_is_named(text: str, code: str, field: str | None, tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(text)
    with pytest.raises(ws.UsageError) as caught:
        read_recipe(path)
    assert caught.value.code == code and caught.value.where.source == str(path)
    assert field is None or caught.value.where.field == field
