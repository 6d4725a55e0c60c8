"""What becomes of a model that is unpadded: copied, saved, sent, shared by threads, held by another, padded again."""

from __future__ import annotations

import copy
import io
import json
import threading
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AutoModel, AutoTokenizer
from transformers.masking_utils import AttentionMaskInterface

import warmstart as ws
from support.models import tiny_tokenizer
from support.unpadding import LENGTHS, batch, counted, differ, main_output, make, pair, stock
from warmstart.engine import packed_attention
from warmstart.engine.unpad import is_unpadded, pad, unpad

T, PADDED = sum(LENGTHS), len(LENGTHS) * max(LENGTHS)
DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


def tokens(model: nn.Module) -> int:
    """How many tokens a layer computes, of two."""
    with torch.no_grad(), counted(model) as feed_forward:
        model(**batch())
    return feed_forward.tokens // 2


def output(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return main_output(model(**batch()))


# --- undoing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("own", ["sdpa", "eager"])
@pytest.mark.parametrize("head", ["AutoModel", "AutoModelForSequenceClassification"])
def test_pad_gives_back_the_very_model(own: str, head: str) -> None:
    model = make("bert", head, attn_implementation=own)
    wanted, parameters = output(model), [id(parameter) for parameter in model.parameters()]
    assert unpad(model) is model
    assert model.config._attn_implementation not in ("sdpa", "eager")
    assert pad(model) is model
    assert model.config._attn_implementation == own
    assert stock(model)
    assert [id(parameter) for parameter in model.parameters()] == parameters
    assert torch.equal(output(model), wanted)
    assert pad(model) is model  # once more is as good


@pytest.mark.parametrize("variant", ["bert", "qwen2", "deberta-v2"])
@pytest.mark.parametrize("head", ["AutoModel", "AutoModelForSequenceClassification"])
def test_unpadding_twice_is_unpadding_once(variant: str, head: str) -> None:
    model = unpad(make(variant, head))
    computed = tokens(model)
    assert unpad(unpad(model)) is model
    assert tokens(model) == computed
    assert stock(pad(model))
    assert tokens(model) == PADDED


def test_the_base_of_a_model_alone() -> None:
    model = make("bert", "AutoModelForSequenceClassification")
    wanted = output(model)
    unpad(model.bert)
    assert is_unpadded(model)
    assert tokens(model) == T
    unpad(model)  # and then the head
    assert (output(model) - wanted).abs().max() <= 1e-5
    pad(model.bert)
    assert torch.equal(output(model), wanted)
    assert stock(pad(model))


# --- copies -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["bert", "llama", "mpnet", "deberta-v2"])
def test_a_copy_is_unpadded_and_a_model_of_its_own(variant: str) -> None:
    """As an average of weights keeps one."""
    model = unpad(make(variant, "AutoModelForSequenceClassification"))
    twin = copy.deepcopy(model)
    before, computed = output(model), tokens(model)
    assert torch.equal(output(twin), before)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)), alpha=0.1)
    assert torch.equal(output(model), before)  # nothing of the copy is the model's
    assert not torch.equal(output(twin), before)
    assert tokens(twin) == computed < PADDED
    pad(twin)
    assert stock(twin)
    assert tokens(twin) == PADDED
    assert is_unpadded(model)
    assert tokens(model) == computed
    pad(model)
    assert stock(model)


def test_an_average_of_weights() -> None:
    model = unpad(make("bert"))
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5))
    average.update_parameters(model)
    assert tokens(average) == T
    assert (output(average) - output(model)).abs().max() <= 1e-5


def test_a_model_sent_to_another_process_runs_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which has unpadded nothing yet: transformers knows our attention there from the model alone."""
    model = unpad(make("ernie", "AutoModelForSequenceClassification"))  # whose layers go by the attention function
    sent = io.BytesIO()
    torch.save(model, sent)
    wanted = output(model)
    for name in packed_attention.NAMES:
        monkeypatch.delitem(AttentionInterface._global_mapping, name)
        monkeypatch.delitem(AttentionMaskInterface._global_mapping, name)
    with pytest.raises((KeyError, ValueError)):
        model(**batch())
    arrived = torch.load(io.BytesIO(sent.getvalue()), weights_only=False)
    assert torch.equal(output(arrived), wanted)
    assert stock(pad(arrived))


@pytest.mark.parametrize("variant", ["bert", "modernbert-cls", "gpt2", "deberta-v2"])
def test_what_is_saved_is_a_plain_checkpoint(variant: str, tmp_path: Path) -> None:
    padded, unpadded = pair(variant)
    padded.save_pretrained(tmp_path / "padded")
    unpadded.save_pretrained(tmp_path / "unpadded")
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "unpadded" / file).read_bytes() == (tmp_path / "padded" / file).read_bytes()
    assert "warmstart" not in (tmp_path / "unpadded" / "config.json").read_text()
    assert torch.equal(output(AutoModel.from_pretrained(tmp_path / "unpadded")), output(padded))


def test_another_model_made_from_its_config_is_padded() -> None:
    unpadded = unpad(make("bert"))
    fresh = AutoModel.from_config(copy.deepcopy(unpadded.config)).eval()
    fresh.load_state_dict(unpadded.state_dict())
    assert stock(fresh)
    assert tokens(fresh) == PADDED
    with torch.no_grad():
        assert differ(fresh(**batch()), unpadded(**batch()), batch()["attention_mask"]) <= 1e-5


# --- threads ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["bert", "qwen3", "mpnet"])
def test_threads_do_not_see_each_others_batches(variant: str) -> None:
    model = unpad(make(variant))
    inputs = [batch((seed + 1, 9, 2 * seed + 1), seed=seed) for seed in range(6)]
    with torch.no_grad():
        wanted = [main_output(model(**given)) for given in inputs]
    wrong: list[int] = []
    together = threading.Barrier(6)

    def run(place: int) -> None:
        together.wait(10)
        with torch.no_grad():
            for _ in range(5):
                if not torch.equal(main_output(model(**inputs[place])), wanted[place]):
                    wrong.append(place)

    threads = [threading.Thread(target=run, args=(place,)) for place in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads)
    assert wrong == []


# --- what holds models ------------------------------------------------------------------------------------------------


def test_a_model_inside_a_module() -> None:
    holder = nn.ModuleDict({"left": make("bert"), "right": make("gpt2")})
    assert unpad(holder) is holder
    assert is_unpadded(holder)
    assert [tokens(model) for model in holder.values()] == [T, T]
    pad(holder)
    assert not is_unpadded(holder)
    assert stock(holder)


def test_a_module_that_is_unpadded_in_part() -> None:
    holder = nn.ModuleDict({"left": unpad(make("bert")), "right": make("gpt2")})
    assert not is_unpadded(holder)
    unpad(holder)
    assert [tokens(model) for model in holder.values()] == [T, T]


@pytest.mark.filterwarnings("ignore")  # sentence-transformers' own
def test_a_sentence_transformers_model(tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules as parts

    tokenizer = tiny_tokenizer("bert")
    make("bert", vocab_size=len(tokenizer)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    transformer = parts.Transformer(str(tmp_path))
    model = SentenceTransformer(modules=[transformer, parts.Pooling(32)], device="cpu")
    texts = ["I love this film", "A dull and tired plot; the worst two hours of my life!", "warm"]
    wanted = model.encode(texts, convert_to_tensor=True)
    lengths = [len(tokenizer(text)["input_ids"]) for text in texts]
    ws.unpad(model)
    with counted(model) as feed_forward:
        found = model.encode(texts, convert_to_tensor=True)
    assert feed_forward.tokens == 2 * sum(lengths) < 2 * 3 * max(lengths)
    assert (found - wanted).abs().max() <= 1e-5


# --- a real one -------------------------------------------------------------------------------------------------------


@pytest.mark.real_data
@pytest.mark.skipif(not DATA.is_dir(), reason="../shared/data, the real labelled data, is not here")
def test_a_real_checkpoint_on_real_texts(encoder: Path) -> None:
    """In a person's own call, by the tokenizer's own padding, in random order."""
    lines = (DATA / "reviews" / "validation.jsonl").read_text(encoding="utf-8").splitlines()[:48]
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    inputs = dict(tokenizer([json.loads(line)["text"] for line in lines], padding=True, return_tensors="pt"))
    mask = inputs["attention_mask"]
    assert mask.sum() < 0.8 * mask.numel()
    model = AutoModel.from_pretrained(encoder).eval()
    with torch.no_grad():
        wanted = model(**inputs)
        ws.unpad(model)
        with counted(model) as feed_forward:
            found = model(**inputs)
    assert feed_forward.calls == [int(mask.sum())] * 6
    assert differ(wanted, found, mask) <= 1e-5
    assert (wanted.pooler_output - found.pooler_output).abs().max() <= 1e-5
