"""Training without padding: backward passes that interleave, checkpointing, dropout, a person's own loop, ws.train."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from transformers import PreTrainedModel

import warmstart as ws
from support.models import FAMILIES
from support.runs import reviews
from support.unpadding import LENGTHS, PAD, batch, counted, gradients, main_output, make, pair, tokens_per_pass, worst
from warmstart.engine.first_token import reads_first_token_alone
from warmstart.verbs.fitting import Progress

# transformers 5.3, which we accept, has no other name for it.
pytestmark = pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")


def two_forwards(model: PreTrainedModel, one: dict[str, Tensor], other: dict[str, Tensor]) -> dict[str, Tensor]:
    """The gradients of a loss over two batches, as contrastive training has it."""
    model.zero_grad()
    first, second = (main_output(model(**inputs))[:, 0] for inputs in (one, other))
    (first @ second.T).logsumexp(1).sum().backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


@pytest.mark.parametrize(
    ("variant", "checkpointing"),
    [
        *((variant, how) for variant in ("bert", "modernbert-cls", "llama", "deberta") for how in (None, True, False)),
        ("mpnet", None),  # supports no checkpointing
        ("deberta-v2", None),
        ("deberta-v2", False),  # the padded one fails with the reentrant kind
    ],
)
def test_two_forwards_before_one_backward(variant: str, checkpointing: bool | None) -> None:
    """Of other lengths and shapes: recomputing one must not find the other's."""
    padded, unpadded = (model.train() for model in pair(variant))
    one, other = batch(), batch((3, 9, 1, 12), seed=1)
    wanted = two_forwards(padded, one, other)
    if checkpointing is not None:
        for model in (padded, unpadded):
            model.gradient_checkpointing_enable({"use_reentrant": checkpointing})
    with counted(unpadded) as feed_forward:
        found = two_forwards(unpadded, one, other)
    assert worst(wanted, found) <= 1e-5
    kept = tokens_per_pass(unpadded) + tokens_per_pass(unpadded, (3, 9, 1, 12))
    layers = unpadded.config.num_hidden_layers
    assert feed_forward.tokens == kept * layers * (1 if checkpointing is None else 2)  # recomputed in backward
    assert worst(wanted, two_forwards(padded, one, other)) <= 1e-5


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpointed_classifier(reentrant: bool) -> None:
    """Its last layer, of one token a row, may be kept instead of recomputed: transformers 5.23 asks at the layer's
    class, 5.3 at the call."""
    padded, unpadded = (model.train() for model in pair("bert", "AutoModelForSequenceClassification"))
    inputs = batch()
    wanted = gradients(padded, inputs)
    unpadded.gradient_checkpointing_enable({"use_reentrant": reentrant})
    with counted(unpadded) as feed_forward:
        assert worst(wanted, gradients(unpadded, inputs)) <= 1e-5
    assert feed_forward.calls.count(sum(LENGTHS)) == 2
    assert feed_forward.calls.count(len(LENGTHS)) in (1, 2)


# --- dropout ----------------------------------------------------------------------------------------------------------


def drops(model: PreTrainedModel, share: float) -> PreTrainedModel:
    """The model in train mode, dropping attention weights alone."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Dropout) and name.endswith(("self.dropout", "attn_dropout")):
            module.p = share
    return model.train()


@pytest.mark.parametrize(
    ("variant", "head"),
    [("ernie", "AutoModel"), ("ernie", "AutoModelForSequenceClassification"), ("gpt2", "AutoModel")],
)
def test_attention_dropout_is_drawn_and_right_on_average(variant: str, head: str) -> None:
    """One layer, so that the mean over draws is the undropped attention's but for what comes after it: compared with
    the padded model's own mean, in units of the error of both."""
    padded, unpadded = (drops(model, 0.3) for model in pair(variant, head, **one_layer(variant)))
    inputs = batch((6, 2, 6, 4))
    # Many copies of the rows in one batch are as many draws.
    copies = {name: tensor.repeat(200, 1) for name, tensor in inputs.items()}
    torch.manual_seed(0)

    def moments(model: PreTrainedModel) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            output = main_output(model(**copies))
        draws = output.unflatten(0, (200, 4))
        draws = draws * inputs["attention_mask"][..., None] if draws.ndim == 4 else draws
        return draws.mean(0), draws.std(0) / 200**0.5

    (wanted, error), (found, ours) = moments(padded), moments(unpadded)
    assert (ours > 0).any()  # it drops at all
    assert (ours.norm() / error.norm() - 1).abs() < 0.1
    deviation = (wanted - found) / (error**2 + ours**2).sqrt().clamp(min=1e-6)
    assert 0.7 < deviation[error > 1e-5].std() < 1.3
    assert deviation.abs().max() < 6


def one_layer(variant: str) -> dict[str, int]:
    return {"n_layer": 1} if variant == "gpt2" else {"num_hidden_layers": 1}


def test_attention_dropout_of_encoders_avoids_sdpas(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU it is a path of many small steps."""
    given: list[float] = []
    stock = F.scaled_dot_product_attention

    def watched(*args: Any, **kwargs: Any) -> Tensor:
        given.append(kwargs["dropout_p"])
        return stock(*args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    padded, unpadded = (drops(model, 0.1) for model in pair("ernie"))
    main_output(unpadded(**batch())).sum().backward()
    assert not any(given)
    main_output(padded(**batch()))
    assert given[-2:] == [0.1, 0.1]


# --- loops ------------------------------------------------------------------------------------------------------------


def test_a_persons_own_loop() -> None:
    """Plain optimizer, model inside a module of the person's own: the same losses and the same weights."""

    class Own(nn.Module):
        def __init__(self, encoder: PreTrainedModel) -> None:
            super().__init__()
            self.encoder = encoder
            self.head = nn.Linear(32, 2)

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            weights = attention_mask[..., None]
            return self.head((hidden * weights).sum(1) / weights.sum(1))

    def learn(model: nn.Module) -> list[float]:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        losses = []
        for step in range(6):
            labels = torch.arange(len(LENGTHS)) % 2
            loss = F.cross_entropy(model(**batch(seed=step % 2)), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        return losses

    padded, unpadded = Own(make("bert").train()), Own(make("bert").train())
    unpadded.load_state_dict(padded.state_dict())
    assert ws.unpad(unpadded) is unpadded
    wanted = learn(padded)
    with counted(unpadded) as feed_forward:
        assert learn(unpadded) == pytest.approx(wanted, abs=1e-5)
    assert feed_forward.tokens == 6 * 2 * sum(LENGTHS)
    assert wanted[-1] < wanted[0]
    for name, tensor in padded.state_dict().items():
        assert torch.allclose(unpadded.state_dict()[name], tensor, atol=1e-5), name


def test_a_head_with_labels_gives_its_loss() -> None:
    for head in ("AutoModelForMaskedLM", "AutoModelForTokenClassification"):
        padded, unpadded = pair("roberta", head)
        inputs = batch()
        labels = inputs["input_ids"].remainder(2).masked_fill(inputs["input_ids"] == PAD, -100)
        found, wanted = (model(**inputs, labels=labels).loss.item() for model in (unpadded, padded))
        assert found == pytest.approx(wanted, abs=1e-5)


def test_causal_language_models_train_packed() -> None:
    padded, unpadded = (model.train() for model in pair("qwen3", "AutoModelForCausalLM"))
    inputs = batch()
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] == PAD, -100)
    with counted(unpadded) as feed_forward:
        found = unpadded(**inputs, labels=labels).loss
    assert feed_forward.tokens == 2 * sum(LENGTHS)
    assert found.item() == pytest.approx(padded(**inputs, labels=labels).loss.item(), abs=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_train_and_predict_compute_no_padding(tiny: Callable[..., Path], tmp_path: Path, family: str) -> None:
    """Over rows of unlike lengths: all feed-forward layers of all steps, and those of predictions in one batch."""
    computed = {True: 0, False: 0}  # tokens in training, in eval

    def count(module: nn.Module, args: tuple[Any, ...]) -> None:
        own = dict(module.named_parameters(recurse=False))
        if "weight" in own and sorted(own["weight"].shape) in ([32, 64], [32, 128]) and args[0].shape[-1] == 32:
            computed[module.training] += args[0].shape[:-1].numel()

    def expected(tokens: int, rows: int) -> int:  # of two layers; the last may compute one token a row
        return tokens + (rows if reads_first_token_alone(run.pipeline.model) else tokens)

    steps: list[Progress] = []
    config = ws.TrainConfig(max_steps=3, batch_size=6, learning_rate=1e-3)
    hook = register_module_forward_pre_hook(count)
    try:
        run = ws.train(tiny(family), reviews(24), output=tmp_path / "run", config=config, progress=steps.append)
        tokens, rows = sum(p.step.tokens for p in steps), sum(p.step.rows for p in steps)
        assert computed[True] == expected(tokens, rows)

        computed[False] = 0  # a run may predict on its way
        found = run.pipeline([row["text"] for row in reviews(12, seed=2)], max_tokens=10**6)
    finally:
        hook.remove()
    lengths = [prediction.tokens for prediction in found]
    assert computed[False] == expected(sum(lengths), 12) < 12 * max(lengths) * 2
