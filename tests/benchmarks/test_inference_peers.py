"""What the raw runtimes are fed, what a model needs for it, and the workloads."""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import inference_peers
import numpy as np
import pytest
import torch
from inference_peers import Arrival, TokenBatches
from inference_speed import entrants
from inference_workloads import DATA, MIXTURE, gigaflops, workloads
from tokenizers import Encoding
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, BertModel

from support.models import tiny_tokenizer

TEXTS = ["good film", "a dull and tired plot that never begins", "fun", "I love the cast", "bad"]
ROWS = [{"text": text} for text in TEXTS]


def rust(*, pad: bool) -> Any:
    tokenizer = tiny_tokenizer("bert").backend_tokenizer
    if pad:
        tokenizer.enable_padding()
    return tokenizer


def test_arrival_keeps_the_order_and_pads_each_batch_to_its_longest() -> None:
    shapes: list[tuple[int, int]] = []

    def run(batch: Sequence[Encoding]) -> Any:
        shapes.append((len(batch), len(batch[0].ids)))
        assert {len(each.ids) for each in batch} == {len(batch[0].ids)}
        return np.array([[0, sum(each.attention_mask) > 4] for each in batch], dtype=np.float32)

    contestant = Arrival(rust(pad=True), run, ["short", "long"], lambda: 1.0)
    lengths = [len(encoding.ids) for encoding in rust(pad=False).encode_batch(TEXTS)]
    expected = ["long" if length > 4 else "short" for length in lengths]
    for size in (1, 2, 8):
        shapes.clear()
        assert contestant.answers(ROWS, size) == expected
        assert [count for count, _ in shapes] == [len(ROWS[i : i + size]) for i in range(0, len(ROWS), size)]
        assert contestant.positions(ROWS, size) == sum(count * length for count, length in shapes)
    assert contestant.positions(ROWS, 1) == sum(lengths)


def test_token_batches_are_sorted_longest_first_and_within_the_budget() -> None:
    batches: list[list[int]] = []

    class Output:
        def __init__(self, ids: list[list[int]]) -> None:
            self.pooler_output = np.array([[len(each)] for each in ids], dtype=np.float32)

    class Encoder:
        def forward_batch(self, ids: list[list[int]]) -> Output:
            batches.append([len(each) for each in ids])
            return Output(ids)

    def head(states: Any) -> Any:
        return np.concatenate([np.full_like(states, 4.5), states], axis=1)

    contestant = TokenBatches(rust(pad=False), Encoder(), head, ["short", "long"])
    lengths = [len(encoding.ids) for encoding in rust(pad=False).encode_batch(TEXTS)]
    assert contestant.answers(ROWS, 12) == ["long" if length > 4.5 else "short" for length in lengths]
    assert [length for batch in batches for length in batch] == sorted(lengths, reverse=True)
    assert all(len(batch) == 1 or len(batch) * max(batch) <= 12 for batch in batches) and len(batches) > 1
    assert contestant.positions(ROWS, 12) == sum(lengths)


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_the_peak_of_a_runtime_is_measured_in_it(runtime: str, int8: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference_peers, "PEAK_ROWS", (16,))
    module = pytest.importorskip(runtime)
    if runtime == "openvino":
        peak = inference_peers._openvino_peak(module, {"INFERENCE_NUM_THREADS": 1}, (32, 64), int8=int8)
    else:
        options = module.SessionOptions()
        options.intra_op_num_threads = 1
        peak = inference_peers._onnxruntime_peak(module, options, (32, 64), int8=int8)
    assert 0.001 < peak() < 10_000


def test_what_a_model_needs_is_what_torch_counts() -> None:
    config = BertConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, vocab_size=50,
        max_position_embeddings=64, attn_implementation="eager",
    )  # fmt: skip
    encoder = BertModel(config, add_pooling_layer=False).eval()
    lengths = [3, 17, 8]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        for length in lengths:
            encoder(input_ids=torch.ones((1, length), dtype=torch.int64))
    assert gigaflops(lengths, config.to_dict()) == pytest.approx(counter.get_total_flops() / 1e9)
    one = config.to_dict() | {"num_hidden_layers": 1}
    whole, first = gigaflops(lengths, one), gigaflops(lengths, one, first_tokens=True)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        for length in lengths:
            states, weight, inner = torch.ones(length, 32), torch.ones(32, 32), torch.ones(32, 48)
            keys, values, query = states @ weight, states @ weight, states[:1] @ weight
            _ = ((query @ keys.T) @ values) @ weight @ inner @ inner.T
    assert first == pytest.approx(counter.get_total_flops() / 1e9) and first < whole
    assert gigaflops([1, 1], one) == pytest.approx(gigaflops([1, 1], one, first_tokens=True))


@pytest.mark.real_data
def test_the_workloads_are_those_that_are_named() -> None:
    if not DATA.is_dir():
        pytest.skip("the real data of ../shared/data is not here")
    found = workloads()
    reviews, mixed = found["reviews"], found["mixed"]
    assert len(reviews.texts) == MIXTURE["reviews"] == 1018 and None not in reviews.labels
    assert len(mixed.texts) == sum(MIXTURE.values()) == 1758
    assert Counter(mixed.labels)[None] == MIXTURE["questions"] + MIXTURE["contexts"]
    assert Counter(label for label in mixed.labels if label) == Counter(reviews.labels)
    assert set(reviews.texts) <= set(mixed.texts) and workloads() == found
    assert mixed.texts[:1018] != reviews.texts, "shuffled"
    assert found["mixed"].first(3).rows == [{"text": text} for text in mixed.texts[:3]]


def test_everybody_that_a_promise_names_runs() -> None:
    table = importlib.import_module("inference_table")
    known = {each.contestant.name: each.repeats for each in entrants({"forms": "forms"})}
    for ours, theirs, workload, _ in table.PROMISES:
        assert known[ours][workload] != 0 and known[theirs][workload] != 0, (ours, theirs, workload)
    assert all(Path(each.contestant.path or ".").is_dir() for each in entrants({"forms": "forms"}))
