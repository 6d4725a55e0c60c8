"""Which models can be unpadded, what is said of those that cannot, and the page that lists them."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, BertModel, PreTrainedConfig

import warmstart as ws
from support.models import tiny_tokenizer
from support.unpadding import make, stock
from warmstart.engine.architectures import BY_LENGTH, STACKS, WHOLE
from warmstart.engine.unpad import is_unpadded, supported, unpad_if_supported
from warmstart.errors import UsageError

PAGE = Path(__file__).parents[2] / "docs" / "verbs" / "unpad.md"


class Foreign(BertModel):
    """Goes by the name of BERT, as checkpoints with code of their own do."""

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.embeddings(input_ids) * 2


def refused() -> dict[str, tuple[nn.Module, str]]:
    """Models that cannot, and a word of the reason."""
    t5 = AutoConfig.for_model("t5", vocab_size=60, d_model=32, d_ff=48, num_layers=1, num_heads=4, d_kv=8)
    decoder = make("bert", num_hidden_layers=1, is_decoder=True)
    return {
        "another architecture": (AutoModel.from_config(t5), "'t5'"),
        "no model of transformers": (nn.Linear(2, 2), "no transformers model"),
        "a decoder of an encoder's": (decoder, "decoder"),
        "code of its own": (Foreign(decoder.config.__class__(**_tiny_bert())), "Foreign"),
        "feed-forward in chunks": (make("bert", num_hidden_layers=1, chunk_size_feed_forward=4), "chunk"),
        "capped attention": (make("gemma3", attn_logit_softcapping=30.0), "softcapping"),
        "Gemma 2, which caps attention": (AutoModel.from_config(_tiny_gemma2()), "softcapping"),
    }


def _tiny_gemma2() -> PreTrainedConfig:
    """With transformers' own defaults but for its size."""
    size = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "head_dim": 8}
    return AutoConfig.for_model("gemma2", vocab_size=60, num_attention_heads=4, num_key_value_heads=2, **size)


def _tiny_bert() -> dict[str, int]:
    return {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}


@pytest.mark.parametrize("kind", refused())
def test_what_cannot_be_unpadded_says_why(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    model, word = refused()[kind]
    before = {name: id(module) for name, module in model.named_modules()}
    with pytest.raises(UsageError) as caught:
        ws.unpad(model)
    assert caught.value.code == "unpad-unsupported"
    assert word in str(caught.value)
    assert type(model).__name__ in str(caught.value)
    assert caught.value.fix
    reason = ws.why_padded(model)
    assert reason is not None and reason in str(caught.value)
    assert {name: id(module) for name, module in model.named_modules()} == before
    assert stock(model)
    # A holder of one that can and one that cannot is not left half done.
    holder = nn.ModuleList([make("bert", num_hidden_layers=1), model])
    if kind != "no model of transformers":
        with pytest.raises(UsageError):
            ws.unpad(holder)
        assert stock(holder)


def test_verbs_say_that_a_model_runs_padded(tiny_root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """And predict all the same."""
    tokenizer = tiny_tokenizer("bert")
    config = AutoConfig.for_model(
        "mobilebert",
        vocab_size=len(tokenizer),
        hidden_size=32,
        embedding_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        intra_bottleneck_size=16,
        max_position_embeddings=64,
        pad_token_id=tokenizer.pad_token_id,
        id2label={0: "NEGATIVE", 1: "POSITIVE"},
        label2id={"NEGATIVE": 0, "POSITIVE": 1},
    )
    transformers.AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with caplog.at_level(logging.INFO, logger="warmstart"):
        pipe = ws.load(tmp_path, device="cpu")
    said = [record.getMessage() for record in caplog.records if "padded" in record.getMessage()]
    assert len(said) == 1
    assert "MobileBertForSequenceClassification" in said[0]
    assert "'mobilebert'" in said[0]
    assert not is_unpadded(pipe.model)
    assert {prediction.label for prediction in pipe(["good", "a dull and tired film"])} <= {"NEGATIVE", "POSITIVE"}


def test_verbs_load_models_unpadded(encoder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="warmstart"):
        pipe = ws.load(encoder, device="cpu")
    assert is_unpadded(pipe.model)
    assert "padded" not in caplog.text


@pytest.mark.parametrize("variant", ["mpnet", "deberta", "deberta-v2", "bert"])
def test_bands_are_for_a_cpu_which_is_said_elsewhere(variant: str, caplog: pytest.LogCaptureFixture) -> None:
    for device in ("cpu", "meta"):  # any device that is no CPU
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="warmstart"):
            model = unpad_if_supported(make(variant).to(device))
        assert is_unpadded(model) and ws.why_padded(model) is None
        said = [record.getMessage() for record in caplog.records if "padded batches" in record.getMessage()]
        assert len(said) == (device == "meta" and variant != "bert")
        assert all(repr(variant) in line and "CPU only" in line for line in said)


# --- the page ---------------------------------------------------------------------------------------------------------


def test_the_page_lists_what_is_supported() -> None:
    """One line for each architecture, in the order of the alphabet, and the way it runs."""
    ways = {**dict.fromkeys(STACKS, "stack"), **dict.fromkeys(WHOLE, "whole"), **dict.fromkeys(BY_LENGTH, "by length")}
    wanted = [f"| `{family}` | {ways[family]} |" for family in supported()]
    page = PAGE.read_text(encoding="utf-8")
    assert [line for line in page.splitlines() if line.startswith("| `") and "model_type" not in line] == wanted
