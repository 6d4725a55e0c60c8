"""BERT's layers written out: gradients beside float64's, dropout and its seed, and what they do not fit."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules.module import register_module_forward_hook
from torch.utils.checkpoint import checkpoint
from transformers import BertConfig, BertModel, PreTrainedModel

from support.unpadding import batch, gradients, kept, main_output, make, pair, relative_error, worst
from warmstart.engine import layer_training, packed_layer, products
from warmstart.engine.architectures import STACKS, WRITTEN_OUT, way_of, why_own_layers
from warmstart.engine.layer_inference import infer
from warmstart.engine.layer_weights import read
from warmstart.engine.packed_layer import PackedLayer, why_stock
from warmstart.engine.packing import Pack
from warmstart.engine.unpad import pad, unpad

# transformers 5.3, which we accept, has no other name for it.
pytestmark = pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")

HEADS = (
    "AutoModel",
    "AutoModelForSequenceClassification",
    "AutoModelForTokenClassification",
    "AutoModelForQuestionAnswering",
    "AutoModelForMaskedLM",
)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """One entry for each layer that ran written out: whether for first tokens only."""
    made: list[bool] = []
    apply = layer_training.TrainedLayer.apply

    def counted(x: Tensor, firsts: Tensor | None, *others: Any) -> Any:
        made.append(firsts is not None)
        return apply(x, firsts, *others)

    monkeypatch.setattr(layer_training.TrainedLayer, "apply", counted)
    return made


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("variant", sorted(WRITTEN_OUT))
def test_gradients_are_as_near_to_float64_as_the_stock_models(variant: str, head: str, calls: list[bool]) -> None:
    padded, unpadded = (model.train() for model in pair(variant, head))
    exact = gradients(make(variant, head).double().train(), batch())
    stock = relative_error(gradients(padded, batch()), exact)
    assert not calls
    assert relative_error(gradients(unpadded, batch()), exact) <= 2 * stock
    assert calls == [False, head == HEADS[1]]


@pytest.mark.parametrize("onednn", [True, False])
def test_either_library_multiplies(monkeypatch: pytest.MonkeyPatch, onednn: bool) -> None:
    monkeypatch.setattr(products, "_onednn_is_quicker", lambda: onednn)
    x, weight, bias = torch.randn(7, 5), torch.randn(5, 3).t(), torch.randn(3)
    torch.testing.assert_close(products.affine(x, weight, bias), x @ weight.t() + bias)
    torch.testing.assert_close(products.affine(x, weight, None), x @ weight.t())
    padded, unpadded = (model.train() for model in pair("bert", HEADS[1]))
    assert worst(gradients(padded, batch()), gradients(unpadded, batch())) <= 1e-5


def layer_of(drop: float) -> tuple[nn.Module, Pack, Tensor]:
    """A layer of width 8 in float64, a pack of rows of unlike lengths, and its tokens' states."""
    config = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 6, "num_hidden_layers": 1}
    model: Any = unpad(make("bert", **config).double())
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = drop
    pack = Pack.of(torch.tensor([[1, 1, 0], [1, 1, 1], [1, 0, 0], [1, 1, 0]]))
    states = torch.randn(1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return model.train().encoder.layer[0], pack, states


@pytest.mark.parametrize("drop", [0.0, 0.3])
@pytest.mark.parametrize("first_token", [False, True])
def test_once_and_twice_differentiated(drop: float, first_token: bool, calls: list[bool]) -> None:
    """Against finite differences, the same masks drawn each time."""
    layer, pack, states = layer_of(drop)
    forward = PackedLayer(layer.forward, layer, first_token=first_token)
    trained = [p.detach()[..., :2].clone().requires_grad_() for p in layer.parameters()]

    def run(states: Tensor, *changed: Tensor) -> Tensor:
        torch.manual_seed(3)
        whole = {
            name: torch.cat([some, p.detach()[..., 2:]], -1)
            for (name, p), some in zip(layer.named_parameters(), changed, strict=True)
        }
        shape, weights = read(layer, pack)
        names = {id(p): name for name, p in layer.named_parameters()}
        firsts = pack.firsts() if first_token else None
        output: Tensor = layer_training.TrainedLayer.apply(  # type: ignore[no-untyped-call]
            states[0], firsts, shape, *(whole[names[id(weight)]] for weight in weights)
        )
        return output

    inputs = (states.requires_grad_(), *trained)
    assert torch.autograd.gradcheck(run, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(run, inputs, fast_mode=True, atol=1e-4)
    torch.manual_seed(3)
    wanted = forward(states, pack=pack, first_token_only=first_token)
    torch.testing.assert_close(wanted[0], run(*inputs))
    assert calls


# --- without gradients ------------------------------------------------------------------------------------------------


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """One entry for each layer that ran written out without gradients: whether for first tokens only."""
    made: list[bool] = []

    def counted(x: Tensor, firsts: Tensor | None, shape: Any, weights: Any) -> Tensor:
        made.append(firsts is not None)
        return infer(x, firsts, shape, weights)

    monkeypatch.setattr(packed_layer, "infer", counted)
    return made


@pytest.mark.parametrize("onednn", [True, False])
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("variant", sorted(WRITTEN_OUT))
def test_answers_are_as_near_to_float64_as_the_stock_models(
    variant: str, head: str, onednn: bool, monkeypatch: pytest.MonkeyPatch, answers: list[bool]
) -> None:
    """Rows of many lengths, of one, a single one, numbers of tokens and of rows that are rounded up; frozen weights are
    no reason to run as before."""
    monkeypatch.setattr(products, "_onednn_is_quicker", lambda: onednn)
    padded, unpadded = (model.requires_grad_(False) for model in pair(variant, head))
    doubled = make(variant, head).double()
    for lengths in ((9, 1, 4, 4, 30), (5, 5), (7,), (40, 30, 2, 1), (2,) * 60 + (1,) * 7):
        inputs = batch(lengths)
        with torch.inference_mode():
            exact, stock, ours = (main_output(model(**inputs)).double() for model in (doubled, padded, unpadded))
        if head != HEADS[1]:
            exact, stock, ours = (kept(states, inputs["attention_mask"]) for states in (exact, stock, ours))
        assert (ours - exact).norm() <= 2 * (stock - exact).norm() + 1e-6
        torch.testing.assert_close(ours, stock, atol=1e-5, rtol=0)
    assert answers == [False, head == HEADS[1]] * 5


def test_a_frozen_layer_that_answers_is_no_layer_that_trains(calls: list[bool], answers: list[bool]) -> None:
    """With gradients switched on, as over a frozen encoder: only where one may be asked for is there a node for it."""
    padded, unpadded = pair("bert", HEADS[1])
    for frozen in (padded, unpadded):
        frozen.base_model.requires_grad_(False)  # type: ignore[union-attr, operator]
    ours, stock = (main_output(model(**batch())) for model in (unpadded, padded))
    torch.testing.assert_close(ours, stock, atol=1e-5, rtol=0)
    assert answers == [False, True] and not calls and ours.requires_grad
    unpadded.requires_grad_(True)
    main_output(unpadded(**batch())).sum().backward()
    assert calls == [False, True] and len(answers) == 2


@given(rows=st.integers(0, 10_000))
def test_products_recur_in_few_sizes(rows: int) -> None:
    with mock.patch.object(products, "_onednn_is_quicker", lambda: True):
        rounded = products.rounded_rows(torch.empty(rows, 1))
        assert rows <= rounded < rows + max(1, rows / 16) and (rounded == rows or rows >= 32)
        sizes = {products.rounded_rows(torch.empty(size, 1)) for size in range(1024, 2049)}
        assert len(sizes) == 17 and products.rounded_rows(torch.empty(rows, 1, dtype=torch.float64)) == rows


def test_products_with_gelu(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, bias = 3 * torch.randn(500, 5), torch.randn(64, 5), torch.randn(64)
    wanted = nn.functional.gelu(nn.functional.linear(x.double(), weight.double(), bias.double())).float()
    for onednn in (True, False):
        monkeypatch.setattr(products, "_onednn_is_quicker", lambda onednn=onednn: onednn)
        torch.testing.assert_close(products.affine_gelu(x, weight, bias), wanted, atol=1e-6, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")  # torch's own, for forward derivatives
def test_what_is_left_to_the_stock_layer_without_gradients(answers: list[bool]) -> None:
    """Another type of states, autocast, hooks, adapters, forward derivatives, what a call asks for beside, and dropout
    that somebody left on."""
    inputs = batch()
    with torch.inference_mode():
        for change in (wrap, hook):
            padded, unpadded = pair("bert", HEADS[1])
            change(padded), change(unpadded)
            torch.testing.assert_close(unpadded(**inputs).logits, padded(**inputs).logits, atol=1e-5, rtol=0)
            assert answers == [True]
            answers.clear()
        model: Any = pair("bert", HEADS[1])[1]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            model(**inputs)
        model(**inputs, output_hidden_states=True)
        model.bfloat16()(**inputs)
        model.float()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.5
                module.train()
        assert not torch.equal(model(**inputs).logits, model(**inputs).logits), "dropout is on"
    model.eval()
    embedded = model.get_input_embeddings()(inputs["input_ids"]).detach()
    with torch.no_grad(), forward_ad.dual_level():
        dual = forward_ad.make_dual(embedded, torch.ones_like(embedded))
        with pytest.raises(NotImplementedError, match="forward AD"):  # none is lost silently
            model(**{**inputs, "input_ids": None, "inputs_embeds": dual})
    assert not answers


def test_a_batch_without_padding_is_packed_where_that_is_quicker(answers: list[bool]) -> None:
    """Not where its layers are not written out: nothing is gained there."""
    inputs = {name: tensor[:1, :5] for name, tensor in batch((5, 5)).items()}
    with torch.inference_mode():
        pair("bert")[1](**inputs)
        assert answers == [False, False]
        answers.clear()
        for settings in ({}, {"hidden_act": "gelu_new"}):
            model: Any = pair("bert", **settings)[1]
            packs: list[bool] = []
            layer = model.encoder.layer[0]
            layer.register_forward_pre_hook(
                lambda module, args, kwargs, packs=packs: packs.append(kwargs.get("pack") is not None), with_kwargs=True
            )
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=not settings):
                model(**inputs)
            assert packs == [False]
    assert not answers


# --- dropout ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("drop", [0.1, 0.5])
def test_a_mask_keeps_its_share_in_all_places(drop: float) -> None:
    """Four numbers come from one word: each with its own share, and independent of the next."""
    torch.manual_seed(0)
    mask = layer_training._kept((250_000, 4), drop, torch.zeros(()))
    assert mask is not None and sorted(mask.unique().tolist()) == [0.0, pytest.approx(1 / (1 - drop), rel=1e-4)]
    dropped = (mask == 0).float()
    error = (drop * (1 - drop) / 250_000) ** 0.5
    assert ((dropped.mean(0) - drop).abs() < 5 * error).all()
    pairs = torch.corrcoef(dropped.t()) - torch.eye(4)
    assert pairs.abs().max() < 5 / 250_000**0.5
    assert mask.mean().item() == pytest.approx(1, abs=5 * error)
    assert layer_training._kept((3,), 0.0, torch.zeros(())) is None


@pytest.mark.parametrize("head", HEADS[:2])
def test_dropout_is_right_on_average(head: str, calls: list[bool]) -> None:
    """Mean and spread over many draws, of all dropouts together, beside the padded model's own."""
    inputs = batch((6, 2, 6, 4))
    copies = {name: tensor.repeat(400, 1) for name, tensor in inputs.items()}
    torch.manual_seed(0)

    def moments(model: PreTrainedModel) -> tuple[Tensor, Tensor]:
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.2
        draws = main_output(model.train()(**copies)).detach().unflatten(0, (400, 4))
        draws = draws[:, inputs["attention_mask"].bool()] if draws.ndim == 4 else draws
        return draws.mean(0), draws.std(0) / 400**0.5

    (wanted, error), (found, ours) = map(moments, pair("bert", head, num_hidden_layers=1))
    assert calls == [head == HEADS[1]]
    assert (ours.norm() / error.norm() - 1).abs() < 0.1
    deviation = (wanted - found) / (error**2 + ours**2).sqrt()
    assert 0.6 < deviation.std() < 1.4 and deviation.abs().max() < 6


def dropping(**settings: Any) -> PreTrainedModel:
    model: Any = unpad(make("bert", HEADS[1], **settings))
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.1
    return model.train()  # type: ignore[no-any-return]


def seeded(model: PreTrainedModel) -> dict[str, Tensor]:
    torch.manual_seed(7)
    return gradients(model, batch())


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def test_masks_are_a_function_of_torchs_seed(calls: list[bool]) -> None:
    model = dropping()
    before = seeded(model)
    assert same(before, seeded(model)) and same(before, seeded(copy.deepcopy(model))) and len(calls) == 6
    torch.manual_seed(8)
    assert not same(before, gradients(model, batch()))


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing(reentrant: bool, calls: list[bool]) -> None:
    """A person's own around the model computes the same twice; the model's own is the stock layer's."""
    model = dropping()
    before = seeded(model)
    inputs = {**batch(), "inputs_embeds": model.get_input_embeddings()(batch()["input_ids"]), "input_ids": None}

    def run(embedded: Tensor) -> Tensor:
        return main_output(model(**{**inputs, "inputs_embeds": embedded}))

    found = []
    for twice in (False, True):
        calls.clear()
        torch.manual_seed(7)
        embedded = inputs["inputs_embeds"].detach().requires_grad_()
        output = checkpoint(run, embedded, use_reentrant=reentrant) if twice else run(embedded)
        output.sin().sum().backward()
        found.append(embedded.grad)
        assert len(calls) == (4 if twice else 2)
    assert torch.equal(found[0], found[1])
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    calls.clear()
    assert not same(before, seeded(model)) and not calls


# --- what it does not fit ---------------------------------------------------------------------------------------------


class Wrapped(nn.Linear):
    """As an adapter wraps a linear layer."""


def wrap(model: Any) -> None:
    attention = model.base_model.encoder.layer[0].attention.self
    wrapped = Wrapped(32, 32)
    wrapped.load_state_dict(attention.query.state_dict())
    attention.query = wrapped


def freeze(model: Any) -> None:
    for parameter in model.base_model.encoder.layer[0].parameters():
        parameter.requires_grad_(False)


def hook(model: Any) -> None:
    model.base_model.encoder.layer[0].output.dense.register_forward_hook(lambda module, args, output: None)


@pytest.mark.parametrize(
    ("change", "why"),
    [(wrap, "attention.self.query is a Wrapped"), (freeze, "is frozen"), (hook, "output.dense has a hook")],
)
def test_one_layer_runs_as_before(change: Callable[[Any], None], why: str, calls: list[bool]) -> None:
    """And gives the padded model's gradients; the other layer is written out still."""
    padded, unpadded = (model.train() for model in pair("bert", HEADS[1]))
    change(padded), change(unpadded)
    assert worst(gradients(padded, batch()), gradients(unpadded, batch())) <= 1e-5
    assert calls == [True]
    first: Any = unpadded.base_model.encoder.layer[0]  # type: ignore[union-attr, index]
    reason = why_stock(first, torch.zeros(1, 1, 32))
    assert reason is not None and why in reason


def test_other_layers_and_calls_run_as_before(calls: list[bool]) -> None:
    inputs = batch()
    for settings in ({"hidden_act": "gelu_new"}, {"hidden_act": "relu"}):
        padded, unpadded = (model.train() for model in pair("bert", **settings))
        assert worst(gradients(padded, inputs), gradients(unpadded, inputs)) <= 1e-5
    model: Any = unpad(make("bert", HEADS[1])).train()
    with torch.no_grad():
        model.eval()(**inputs)
    model.train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(**inputs)
    handle = register_module_forward_hook(lambda module, args, output: None)
    try:
        model(**inputs)
    finally:
        handle.remove()
    model(**inputs, output_hidden_states=True)
    model(**{name: tensor[:, :1] for name, tensor in inputs.items()}, output_attentions=True)
    weights = dict(model.named_parameters())
    torch.func.grad(lambda w: torch.func.functional_call(model, w, (), inputs).logits.sum())(weights)
    pad(model)
    model(**inputs)
    assert not calls


def test_a_base_that_gets_its_head_later(calls: list[bool]) -> None:
    """Unpadded first as a base model, then with its head: the last layer still computes first tokens alone."""
    padded, model = make("bert", HEADS[1]).train(), make("bert", HEADS[1]).train()
    unpad(model.base_model)
    model(**batch())
    assert calls == [False, False]
    unpad(model)
    calls.clear()
    assert worst(gradients(padded, batch()), gradients(model, batch())) <= 1e-5
    assert calls == [False, True]
    assert not any("forward" in vars(module) for module in pad(model).modules())


def test_rows_without_tokens_and_without_padding(calls: list[bool]) -> None:
    padded, unpadded = (model.train() for model in pair("bert", HEADS[1]))
    for lengths in ((4, 4, 4), (1,), (9, 1)):
        assert worst(gradients(padded, batch(lengths)), gradients(unpadded, batch(lengths))) <= 1e-5
    assert len(calls) == 6
    empty = batch((5, 3))
    empty["attention_mask"][1] = 0
    padded, unpadded = (model.train() for model in pair("bert"))
    one, other = (kept(main_output(model(**empty)), empty["attention_mask"]) for model in (padded, unpadded))
    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("settings", "own"),
    [
        ({}, False),
        ({"hidden_act": "gelu_python"}, False),
        ({"hidden_act": "relu"}, True),
        ({"hidden_act": "gelu_new"}, True),
        ({"hidden_dropout_prob": 1.0}, True),
        ({"attention_probs_dropout_prob": 1.0}, True),
        ({"is_decoder": True, "add_cross_attention": True}, True),
    ],
)
def test_what_inspect_says_of_a_config_is_what_its_layers_do(settings: dict[str, Any], own: bool) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    model: Any = BertModel(BertConfig(vocab_size=16, **sizes, **settings))
    first = model.encoder.layer[0]
    assert (why_stock(first, torch.zeros(1, 1, 32)) is not None) is own
    assert (why_own_layers(model.config.to_dict()) is not None) is own
    assert ("written out" in way_of("bert", model.config.to_dict())) is not own


def test_what_inspect_says() -> None:
    assert STACKS.keys() >= WRITTEN_OUT
    said = {family: way_of(family) for family in ("roberta", "ernie", "llama", "mpnet", "longformer")}
    assert said == {
        "roberta": "no padding; layers written out",
        "ernie": "no padding",
        "llama": "no padding",
        "mpnet": "bands of like length (CPU only)",
        "longformer": "padded batches of like length",
    }
