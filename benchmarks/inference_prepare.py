"""The same checkpoint in each peer's own form: ONNX, OpenVINO, CTranslate2, and the head in numpy."""

from __future__ import annotations

import json
import logging
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import torch

import warmstart as ws
from warmstart.checkpoints import find
from warmstart.engine import graph_writer

MODEL = "starter"
# Name → precision, and whether the graph drops padding itself: ours does, and what other exporters write does not.
EXPORTS = {
    "openvino-int8": ("int8", True),
    "openvino-fp32": ("fp32", True),
    "openvino-padded-int8": ("int8", False),
    "openvino-padded-fp32": ("fp32", False),
}


def prepare(folder: Path, *, only: tuple[str, ...] | None = None) -> tuple[Path, dict[str, str]]:
    """Write the forms (`only` these) below `folder`, those that are not there yet.

    Returns the checkpoint's own folder, and for each form that could not be made the reason.
    """
    source = find(MODEL).folder
    folder.mkdir(parents=True, exist_ok=True)
    failed: dict[str, str] = {}
    forms: tuple[tuple[str, Callable[[Path, Path], None]], ...] = (
        ("head", write_head),
        ("ctranslate2", write_ctranslate2),
        ("onnx", write_onnx),
        *((name, _exporter(precision, packs)) for name, (precision, packs) in EXPORTS.items()),
    )
    for name, write in forms:
        if (folder / name).exists() or (only is not None and name not in only):
            continue
        part = folder / f"{name}.part"
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                write(source, part)
        except Exception as error:
            failed[name] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        else:
            part.rename(folder / name)
    return source, failed


def write_head(source: Path, target: Path) -> None:
    """Pooler and classifier as numpy arrays, for peers that have none."""
    model = ws.load(MODEL, device="cpu").model
    named = {
        "pooler": model.bert.pooler.dense.weight, "pooler_bias": model.bert.pooler.dense.bias,
        "classifier": model.classifier.weight, "classifier_bias": model.classifier.bias,
    }  # fmt: skip
    np.savez(target / "head.npz", **{name: tensor.detach().numpy() for name, tensor in named.items()})


def write_ctranslate2(source: Path, target: Path) -> None:
    """CTranslate2's own converter for BERT, pooler included; it has no heads."""
    from ctranslate2.converters.transformers import BertLoader  # type: ignore[import-untyped]

    pipe = ws.load(MODEL, device="cpu")
    encoder = pipe.model.bert
    encoder.config.position_embedding_type = "absolute"  # transformers 5 has no other, and no longer says so
    spec = BertLoader()(encoder, pipe.tokenizer)
    spec.validate()
    spec.optimize(quantization=None)
    spec.save(str(target))


def write_onnx(source: Path, target: Path) -> None:
    """ONNX by torch's exporter; ONNX Runtime's own fusions for BERT; its own dynamic int8."""
    from onnxruntime.quantization import QuantType, quantize_dynamic  # type: ignore[import-untyped]
    from onnxruntime.transformers import optimizer  # type: ignore[import-untyped]

    logging.getLogger("onnxruntime").setLevel(logging.ERROR)
    model = ws.load(MODEL, device="cpu").model.eval()
    config = model.config
    names = ("input_ids", "attention_mask", "token_type_ids")
    example = {name: torch.ones((2, 8), dtype=torch.int64) for name in names}
    batch, length = torch.export.Dim("batch", min=1, max=4096), torch.export.Dim("length", min=1, max=512)
    torch.onnx.export(
        model, (), str(target / "plain.onnx"), kwargs=example, input_names=list(names), output_names=["logits"],
        dynamic_shapes={name: {0: batch, 1: length} for name in names}, dynamo=True, external_data=False,
    )  # fmt: skip
    fused = optimizer.optimize_model(
        str(target / "plain.onnx"), model_type="bert", num_heads=config.num_attention_heads,
        hidden_size=config.hidden_size, opt_level=0,
    )  # fmt: skip
    fused.save_model_to_file(str(target / "fp32.onnx"))
    (target / "fusions.json").write_text(json.dumps(fused.get_fused_operator_statistics()), encoding="utf-8")
    quantize_dynamic(target / "fp32.onnx", target / "int8.onnx", per_channel=True, weight_type=QuantType.QInt8)


def _exporter(precision: str, packs: bool) -> Callable[[Path, Path], None]:
    def write(source: Path, target: Path) -> None:
        target.rmdir()
        with mock.patch.object(graph_writer("openvino"), "PACKS", packs):
            ws.export(MODEL, target, format="openvino", precision=precision)

    return write
