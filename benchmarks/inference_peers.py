"""Contestants of the inference benchmark beside those of `warmstart bench`: raw runtimes, and `encode` with our head.

Each tokenizes with the Rust tokenizer in bulk, the quickest there is. `start(settings)` takes peer, folder (the
checkpoint), forms (what `inference_prepare` wrote), precision, limit, labels, threads.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Encoding, Tokenizer

from warmstart.batching import plan
from warmstart.verbs.bench_worker import PEAK_ROWS, Fields, fastest

Array = np.ndarray[Any, np.dtype[Any]]
Run = Callable[[Sequence[Encoding]], Array]  # encodings of one batch, padded to one length → logits (B, labels)


@dataclass(frozen=True)
class Arrival:
    """A runtime fed with batches of `setting` texts in the order in which they come, padded to the longest of each."""

    tokenizer: Tokenizer
    run: Run
    labels: Sequence[str]
    peak: Callable[[], float | None]
    model: None = None

    @property
    def facts(self) -> Mapping[str, Any]:
        return {}

    def answers(self, rows: Sequence[Fields], setting: int | None) -> list[str]:
        return [self.labels[i] for batch in self._batches(rows, setting) for i in self.run(batch).argmax(axis=-1)]

    def positions(self, rows: Sequence[Fields], setting: int | None) -> int:
        return sum(len(batch) * len(batch[0].ids) for batch in self._batches(rows, setting))

    def gemm_peak(self) -> float | None:
        return self.peak()

    def _batches(self, rows: Sequence[Fields], size: int | None) -> Iterator[list[Encoding]]:
        assert size is not None
        for first in range(0, len(rows), size):
            yield self.tokenizer.encode_batch_fast([row["text"] for row in rows[first : first + size]])


@dataclass(frozen=True)
class TokenBatches:
    """CTranslate2 with the batches its own `batch_type="tokens"` makes: sorted by length, the longest first, and as
    many to a batch as keep count x longest within `setting`. `Encoder.forward_batch` leaves that to its caller
    (OpenNMT/CTranslate2 issue 357 says how it is done). It computes no padding but inside attention."""

    tokenizer: Tokenizer
    encoder: Any
    head: Callable[[Array], Array]
    labels: Sequence[str]
    model: None = None

    @property
    def facts(self) -> Mapping[str, Any]:
        return {}

    def answers(self, rows: Sequence[Fields], setting: int | None) -> list[str]:
        assert setting is not None
        ids = [encoding.ids for encoding in self.tokenizer.encode_batch_fast([row["text"] for row in rows])]
        found: list[str] = [""] * len(ids)
        for batch in plan([len(each) for each in ids], max_tokens=setting):
            output = self.encoder.forward_batch([ids[i] for i in batch])
            for i, label in zip(batch, self.head(np.asarray(output.pooler_output)).argmax(axis=-1), strict=True):
                found[i] = self.labels[label]
        return found

    def positions(self, rows: Sequence[Fields], setting: int | None) -> int:
        return sum(len(each.ids) for each in self.tokenizer.encode_batch_fast([row["text"] for row in rows]))

    def gemm_peak(self) -> float | None:
        return None  # its products cannot be called alone


@dataclass(frozen=True)
class EncodeWithHead:
    """`SentenceTransformer.encode` with [CLS] pooling, then pooler and classifier in numpy."""

    encoder: Any
    head: Callable[[Array], Array]
    labels: Sequence[str]

    @property
    def facts(self) -> Mapping[str, Any]:
        return {}

    @property
    def model(self) -> Any:
        return self.encoder

    def answers(self, rows: Sequence[Fields], setting: int | None) -> list[str]:
        states = self.encoder.encode([row["text"] for row in rows], batch_size=setting, show_progress_bar=False)
        return [self.labels[i] for i in self.head(states).argmax(axis=-1)]


def start(settings: Mapping[str, Any]) -> Any:
    """The contestant that `settings` name."""
    peers: dict[str, Callable[[Mapping[str, Any]], Any]] = {
        "openvino": _openvino, "onnxruntime": _onnxruntime, "ctranslate2": _ctranslate2, "encode": _encode,
    }  # fmt: skip
    return peers[settings["peer"]](settings)


def _openvino(settings: Mapping[str, Any]) -> Arrival:
    ov = importlib.import_module("openvino")
    [path] = sorted((Path(settings["forms"]) / f"openvino-padded-{settings['precision']}").rglob("*.xml"))
    options = {
        "INFERENCE_NUM_THREADS": settings["threads"], "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY",
        "ENABLE_CPU_PINNING": False,
    }  # fmt: skip
    if settings["precision"] == "fp32":  # else what int8 leaves in float is in bfloat16 where the processor has it
        options["INFERENCE_PRECISION_HINT"] = "f32"
    compiled = ov.Core().compile_model(path, "CPU", options)
    request = compiled.create_infer_request()
    names = [part.get_any_name() for part in compiled.inputs]

    def run(batch: Sequence[Encoding]) -> Array:
        arrays = _arrays(batch)
        found = request.infer([arrays[name] for name in names], share_inputs=True, share_outputs=True)
        return next(iter(found.values()))

    int8 = settings["precision"] == "int8"
    peak = _openvino_peak(ov, options, settings["largest"], int8=int8)
    return Arrival(_tokenizer(settings, pad=True), run, settings["labels"], peak)


def _openvino_peak(ov: Any, options: Mapping[str, Any], shape: Sequence[int], *, int8: bool) -> Callable[[], float]:
    """One product of the largest layer, in a model of its own; in int8 with quantized input, as inside the network."""
    ops = importlib.import_module("openvino.opset13")
    inputs, outputs = shape

    def peak() -> float:
        best = 0.0
        for rows in PEAK_ROWS:
            given = ops.parameter([rows, inputs], np.float32)
            weight = np.random.default_rng(0).standard_normal((outputs, inputs), dtype=np.float32) * 0.05
            if int8:
                left = ops.fake_quantize(given, -4.0, 4.0, -4.0, 4.0, 256)
                stored = np.clip(np.round(weight / 0.002), -127, 127).astype(np.int8)
                converted = ops.convert(ops.constant(stored), np.float32)
                right = ops.multiply(converted, ops.constant(np.float32(0.002)))
            else:
                left, right = given, ops.constant(weight)
            product = ops.matmul(left, right, transpose_a=False, transpose_b=True)
            compiled = ov.Core().compile_model(ov.Model([product], [given]), "CPU", options)
            request = compiled.create_infer_request()
            operand = np.random.default_rng(1).standard_normal((rows, inputs), dtype=np.float32)
            seconds = fastest(partial(request.infer, [operand], share_inputs=True))
            best = max(best, 2 * rows * inputs * outputs / seconds / 1e9)
        return best

    return peak


def _onnxruntime(settings: Mapping[str, Any]) -> Arrival:
    ort = importlib.import_module("onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = settings["threads"], 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    path = Path(settings["forms"]) / "onnx" / f"{settings['precision']}.onnx"
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [part.name for part in session.get_inputs()]

    def run(batch: Sequence[Encoding]) -> Array:
        arrays = _arrays(batch)
        return np.asarray(session.run(None, {name: arrays[name] for name in names})[0])

    int8 = settings["precision"] == "int8"
    peak = _onnxruntime_peak(ort, options, settings["largest"], int8=int8)
    return Arrival(_tokenizer(settings, pad=True), run, settings["labels"], peak)


def _onnxruntime_peak(ort: Any, options: Any, shape: Sequence[int], *, int8: bool) -> Callable[[], float]:
    """One product of the largest layer, in a model of its own; in int8 as its dynamic quantization writes it."""
    onnx = importlib.import_module("onnx")
    helper, kinds = onnx.helper, onnx.TensorProto
    inputs, outputs = shape
    weight = np.random.default_rng(0).integers(-127, 128, (inputs, outputs)).astype(np.int8 if int8 else np.float32)
    nodes = [helper.make_node("MatMul", ["given", "weight"], ["found"])]
    if int8:
        nodes = [
            helper.make_node("DynamicQuantizeLinear", ["given"], ["left", "scale", "zero"]),
            helper.make_node("MatMulInteger", ["left", "weight", "zero"], ["found"]),
        ]
    graph = helper.make_graph(
        nodes, "peak", [helper.make_tensor_value_info("given", kinds.FLOAT, ["rows", inputs])],
        [helper.make_tensor_value_info("found", kinds.INT32 if int8 else kinds.FLOAT, ["rows", outputs])],
        [onnx.numpy_helper.from_array(weight, "weight")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)

    def peak() -> float:
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        best = 0.0
        for rows in PEAK_ROWS:
            operand = np.random.default_rng(1).standard_normal((rows, inputs), dtype=np.float32)
            seconds = fastest(partial(session.run, None, {"given": operand}))
            best = max(best, 2 * rows * inputs * outputs / seconds / 1e9)
        return best

    return peak


def _ctranslate2(settings: Mapping[str, Any]) -> TokenBatches:
    ct2 = importlib.import_module("ctranslate2")
    compute = {"fp32": "float32", "int8": "int8"}[settings["precision"]]
    folder = str(Path(settings["forms"]) / "ctranslate2")
    encoder = ct2.Encoder(folder, device="cpu", compute_type=compute, intra_threads=settings["threads"])
    head = _head(settings, pooled=True)
    return TokenBatches(_tokenizer(settings, pad=False), encoder, head, settings["labels"])


def _encode(settings: Mapping[str, Any]) -> EncodeWithHead:
    st = importlib.import_module("sentence_transformers")
    modules = importlib.import_module("sentence_transformers.models")
    torch = importlib.import_module("torch")
    torch.set_num_threads(settings["threads"])
    inner = modules.Transformer(
        settings["folder"], model_kwargs={"dtype": torch.float32}, max_seq_length=settings["limit"]
    )
    pooling = modules.Pooling(settings["largest"][0], "cls")
    encoder = st.SentenceTransformer(modules=[inner, pooling], device="cpu")
    return EncodeWithHead(encoder, _head(settings, pooled=False), settings["labels"])


def _tokenizer(settings: Mapping[str, Any], *, pad: bool) -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(Path(settings["folder"]) / "tokenizer.json"))
    tokenizer.enable_truncation(settings["limit"])
    if pad:
        tokenizer.enable_padding()
    else:
        tokenizer.no_padding()
    return tokenizer


def _arrays(batch: Sequence[Encoding]) -> dict[str, Array]:
    return {
        "input_ids": np.array([each.ids for each in batch], dtype=np.int64),
        "attention_mask": np.array([each.attention_mask for each in batch], dtype=np.int64),
        "token_type_ids": np.array([each.type_ids for each in batch], dtype=np.int64),
    }


def _head(settings: Mapping[str, Any], *, pooled: bool) -> Callable[[Array], Array]:
    """Pooler and classifier of BERT; the classifier alone for what is `pooled` already."""
    with np.load(Path(settings["forms"]) / "head" / "head.npz") as file:
        pooler, pooler_bias, classifier, bias = (
            file[name] for name in ("pooler", "pooler_bias", "classifier", "classifier_bias")
        )

    def head(states: Array) -> Array:
        vectors = states if pooled else np.tanh(states @ pooler.T + pooler_bias)
        logits: Array = vectors @ classifier.T + bias
        return logits

    return head
