"""A GGUF file as a normal checkpoint folder: `python -m warmstart.checkpoints.convert_gguf FILE FOLDER`.

A process of its own: the file is a stranger's, reading it takes three times the model's memory, and whoever only looks
for a checkpoint needs neither torch nor transformers. transformers reads it, with the package `gguf`; the weights are
kept in float32, for what was quantized is exact in no shorter type.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer


def convert(source: Path, folder: Path) -> None:
    """Write the checkpoint of a checked GGUF file into an empty folder: config, weights, tokenizer, chat template."""
    given = {"gguf_file": source.name, "local_files_only": True}
    model = AutoModelForCausalLM.from_pretrained(str(source.parent), dtype=torch.float32, **given)
    config = model.config.to_dict()
    for name in ("quantization_config", "_name_or_path", "_model_name_or_path"):
        config.pop(name, None)
    config |= {"architectures": [type(model).__name__], "dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    model.generation_config.save_pretrained(folder)
    parameters = dict(model.named_parameters())  # shared ones once
    save_file(
        {name: tensor.detach().contiguous() for name, tensor in parameters.items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    tokenizer = AutoTokenizer.from_pretrained(str(source.parent), **given)
    tokenizer.model_max_length = model.config.max_position_embeddings
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
