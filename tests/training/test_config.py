"""One schema for keyword arguments, `--set` and the TOML file of a run; every wrong setting is named."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

import warmstart as ws
from warmstart.training.config import make_config, plain, read_config
from warmstart.training.recipes import RECIPES
from warmstart.training.settings import without_none


def _refused(code: str, field: str | None, call: Any) -> ws.UsageError:
    start = time.perf_counter()
    with pytest.raises(ws.UsageError) as caught:
        call()
    assert time.perf_counter() - start < 1
    error: ws.UsageError = caught.value
    assert error.code == code and error.where.field == field, str(error)
    assert error.exit_code == 2 and len(error.fix) > 5
    return error


def test_there_are_at_most_twenty_settings_and_each_says_what_it_is() -> None:
    fields = dict(ws.TrainConfig.model_fields)
    assert all(field.description for field in fields.values())
    recipes = {name: fields.pop(name) for name in RECIPES}
    assert all(recipe.default is None for recipe in recipes.values())
    assert len(fields) <= 20
    promised = """epochs max_steps batch_size max_tokens accumulate learning_rate weight_decay warmup schedule clip seed
    patience evaluate_every save_every keep precision device workers
    gradient_checkpointing"""
    assert list(fields) == promised.split()


def test_a_config_is_a_value() -> None:
    config = ws.TrainConfig(epochs=2)
    assert config == ws.TrainConfig(epochs=2.0) and hash(config) == hash(ws.TrainConfig(epochs=2.0))
    with pytest.raises(ValueError, match="frozen"):
        config.epochs = 5


@pytest.mark.parametrize("make", [lambda **values: ws.TrainConfig(**values), lambda **values: make_config(values)])
def test_g101_an_unknown_setting_is_refused_with_the_nearest_name(make: Any) -> None:
    error = _refused("config-unknown-key", "learning_rat", lambda: make(learning_rat=1e-4))
    assert error.fix == "did you mean learning_rate?"
    assert "learning_rate" in _refused("config-unknown-key", "lr", lambda: make(lr=1e-4)).fix
    assert make(learning_rate=1e-4).learning_rate == 1e-4  # the healthy twin


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0),
        ("epochs", -1),
        ("epochs", float("nan")),
        ("epochs", float("inf")),
        ("epochs", 1e12),
        ("epochs", "three"),
        ("max_steps", 0),
        ("batch_size", 0),
        ("batch_size", 2.5),
        ("batch_size", None),
        ("max_tokens", -1),
        ("accumulate", 0),
        ("learning_rate", 0),
        ("learning_rate", float("inf")),
        ("learning_rate", -1e-4),
        ("weight_decay", -0.1),
        ("warmup", 1.0),
        ("warmup", -0.1),
        ("schedule", "polynomial"),
        ("clip", 0),
        ("seed", -1),
        ("seed", "a"),
        ("patience", 0),
        ("evaluate_every", 0),
        ("save_every", 0),
        ("keep", 0),
        ("precision", "fp8"),
        ("device", None),
        ("workers", -1),
        ("gradient_checkpointing", "maybe"),
    ],
)
def test_r77_a_value_that_cannot_be_is_refused_before_anything_else(field: str, value: Any) -> None:
    error = _refused("config-value", field, lambda: ws.TrainConfig(**{field: value}))
    assert repr("none" if value is None else value) in str(error) and field in error.fix


def test_a_config_that_is_no_config_is_refused(tmp_path: Path) -> None:
    error = _refused("config-not-config", None, lambda: ws.train("x", [], output=tmp_path / "r", config={"epochs": 1}))
    assert "ws.TrainConfig(" in error.fix
    _refused("config-value", None, lambda: ws.TrainConfig.model_validate(3))


def test_settings_of_the_command_line_are_typed_and_laid_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('[train]\nepochs = 5\nclip = "none"\nseed = 7\n')
    config = read_config(file, ["epochs=0.5", " batch_size = 16 ", "max_steps=none", "schedule=cosine"])
    assert (config.epochs, config.batch_size, config.max_steps) == (0.5, 16, None)
    assert (config.clip, config.seed, config.schedule) == (None, 7, "cosine")
    assert read_config(None, ["clip=None"]).clip is None  # as Python writes it
    file.write_text("epochs = 2\n")  # a file of settings alone needs no table
    assert read_config(file).epochs == 2
    assert read_config(None) == ws.TrainConfig()


@pytest.mark.parametrize(
    ("setting", "code", "field"),
    [
        ("epochs", "config-setting", None),
        ("", "config-setting", None),
        ("=3", "config-unknown-key", ""),
        ("epoch=3", "config-unknown-key", "epoch"),
        ("epochs=", "config-value", "epochs"),
        ("device=none", "config-value", "device"),
        ("batch_size=1e2x", "config-value", "batch_size"),
    ],
)
def test_g101_a_malformed_setting_is_named(setting: str, code: str, field: str | None) -> None:
    _refused(code, field, lambda: read_config(None, [setting]))


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"epochs = ", "config-not-toml"),
        (b"\xff\xfe\x00", "config-not-toml"),
        (b"epochs = 1\nepochs = 2", "config-not-toml"),
        (b"x = " + b"[" * 50_000, "config-not-toml"),
        (b"train = 5", "config-unknown-key"),
        (b"[[train]]\nepochs = 1", "config-unknown-key"),
        (b"[lora]\nr = 8", "config-unknown-key"),
        (b"[train]\nepochs = inf", "config-value"),
        (b"[train.epochs]\nvalue = 1", "config-value"),
        (b"modle = 'x'", "config-unknown-key"),
    ],
)
def test_g102_a_damaged_or_hostile_file_names_itself(tmp_path: Path, content: bytes, code: str) -> None:
    file = tmp_path / "run.toml"
    file.write_bytes(content)
    with pytest.raises(ws.UsageError) as caught:
        read_config(file)
    assert caught.value.code == code and caught.value.where.source == str(file)


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.toml", tmp_path):
        with pytest.raises(ws.UsageError) as caught:
            read_config(path)
        assert caught.value.code == "config-not-toml" and str(path) in str(caught.value)


def test_what_a_runs_file_says_beside_its_settings_is_not_dropped_in_silence(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "config.toml"
    file.write_text('model = "m"\n[options]\nlong_text = "windows"\n[train]\nepochs = 1\n')
    with caplog.at_level(logging.WARNING, logger="warmstart"):
        assert read_config(file).epochs == 1
    assert "model and options not taken from there" in caplog.text


@pytest.mark.parametrize(
    ("setting", "code", "field"),
    [
        ("lora.rnk=3", "config-unknown-key", "lora.rnk"),
        ("lora.rank=0", "config-value", "lora.rank"),
        ("lora.rank=x", "config-value", "lora.rank"),
        ("lora=true", "config-value", "lora"),
        ("lora.=3", "config-unknown-key", "lora."),
        ("epochs.x=3", "config-value", "epochs"),
        ("nothing.x=3", "config-unknown-key", "nothing"),
        ("loss.class_weights=balance", "config-value", "loss.class_weights"),
        ("loss.class_weights.POSITIVE=0", "config-value", "loss.class_weights"),
        ("loss.label_smoothing=1", "config-value", "loss.label_smoothing"),
        ("layer_decay.factor=1.1", "config-value", "layer_decay.factor"),
        ("ema.decay=1", "config-value", "ema.decay"),
        ("top_layers.layers=-1", "config-value", "top_layers.layers"),
        ("top_layers.cache=gpu", "config-value", "top_layers.cache"),
    ],
)
def test_g101_a_wrong_setting_of_a_recipe_is_named(setting: str, code: str, field: str) -> None:
    _refused(code, field, lambda: read_config(None, [setting]))


def test_settings_of_recipes_are_laid_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('[train]\nepochs = 5\n[train.lora]\nrank = 4\nalpha = 4.0\n[train.loss.class_weights]\n"a.b" = 2\n')
    settings = ["lora.rank=2", "lora.targets=query,value", "loss.class_weights.c=3", "ema.decay=0.5", "top_layers=none"]
    config = read_config(file, settings)
    assert config.lora == ws.LoRA(rank=2, alpha=4, targets=("query", "value"))
    assert config.loss == ws.Loss(class_weights={"a.b": 2.0, "c": 3.0})
    assert (config.ema, config.top_layers, config.layer_decay) == (ws.WeightAverage(decay=0.5), None, None)
    assert read_config(file, ["lora=none"]).lora is None
    file.write_text("[train.top_layers]\n")  # all of its defaults
    assert read_config(file).top_layers == ws.TopLayers()


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: ws.LoRA(rank=0), "lora.rank"),
        (lambda: ws.Loss(label_smoothing=-0.1), "loss.label_smoothing"),
        (lambda: ws.WeightAverage(decay="x"), "ema.decay"),
        (lambda: ws.LayerDecay(factor=0), "layer_decay.factor"),
        (lambda: ws.TopLayers(layers=1.5), "top_layers.layers"),
        (lambda: ws.TrainConfig(lora=8), "lora"),
    ],
)
def test_g101_a_recipe_that_cannot_be_is_refused_where_it_is_made(make: Any, field: str) -> None:
    _refused("config-value", field, make)


_VALUES = {
    "epochs": st.floats(0.01, 50),
    "max_steps": st.none() | st.integers(1, 10**6),
    "learning_rate": st.none() | st.floats(1e-9, 10),
    "clip": st.none() | st.floats(1e-3, 100),
    "seed": st.integers(0, 2**40),
    "schedule": st.sampled_from(["linear", "cosine", "constant"]),
    "warmup": st.floats(0, 0.99),
    "patience": st.none() | st.integers(1, 9),
    "gradient_checkpointing": st.booleans(),
    "loss": st.none()
    | st.builds(
        ws.Loss,
        class_weights=st.none() | st.just("balanced") | st.dictionaries(st.text(min_size=1), st.floats(0.1, 9)),
        label_smoothing=st.floats(0, 0.9),
    ),
    "layer_decay": st.none() | st.builds(ws.LayerDecay, factor=st.floats(0.1, 1)),
    "ema": st.none() | st.builds(ws.WeightAverage, decay=st.floats(0.1, 0.99)),
    "lora": st.none()
    | st.builds(ws.LoRA, rank=st.integers(1, 64), targets=st.none() | st.just(("query",)) | st.just(("q", "v"))),
    "top_layers": st.none() | st.builds(ws.TopLayers, cache=st.sampled_from(["memory", "disk", "off"])),
}


@given(st.fixed_dictionaries({}, optional=_VALUES))
def test_a_config_survives_toml(values: dict[str, Any]) -> None:
    import tomllib

    config = ws.TrainConfig(**values)
    assert make_config(tomllib.loads(tomli_w.dumps(without_none(plain(config))))) == config
