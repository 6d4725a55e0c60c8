"""Translation learned from scratch: `python benchmarks/translation.py` trains a small encoder-decoder on 6,000 pairs.

It has a vocabulary of its own and random weights, saved as a checkpoint like any other; `ws.train` and `ws.evaluate` do
the rest. The test part is read once, after training. `--held-out` instead trains on nine tenths of the training part
and judges on the last, to try settings without the test part.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import MarianConfig, MarianMTModel, PreTrainedTokenizerFast

import warmstart as ws

HERE = Path(__file__).parent
DATA = HERE.parent.parent / "shared" / "data" / "translation"
RECORDS, TABLE = HERE / "translation.jsonl", HERE / "translation.md"
BEAMS = (1, 4)
EXAMPLES = 5
PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"


@dataclass(frozen=True)
class Settings:
    """The model and its training. Marian's architecture, with one embedding for both languages."""

    vocabulary: int = 2000
    layers: int = 2
    width: int = 128
    heads: int = 4
    feed_forward: int = 256
    dropout: float = 0.1
    positions: int = 128
    epochs: float = 14.0
    batch_size: int = 32
    learning_rate: float = 2e-3
    seed: int = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--held-out", action="store_true", help="judge on a tenth of the training part; write nothing")
    parser.add_argument("--output", type=Path, help="keep the first checkpoint and the run in this folder")
    parser.add_argument("--table", action="store_true", help="write the table again, and train nothing")
    for name, value in asdict(Settings()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    arguments = vars(parser.parse_args())
    held_out, output, table_only = (arguments.pop(name) for name in ("held_out", "output", "table"))
    settings = Settings(**arguments)
    if not table_only:
        train = rows_of("train")
        parts = ([row for i, row in enumerate(train) if i % 10], train[::10]) if held_out else (train, rows_of("test"))
        with tempfile.TemporaryDirectory() as temporary:
            record = measure(settings, *parts, output or Path(temporary))
        print(json.dumps(record, indent=2, ensure_ascii=False))
        if held_out:
            return
        with RECORDS.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
    TABLE.write_text(table(), encoding="utf-8")
    print(TABLE.read_text(encoding="utf-8"))


def rows_of(part: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (DATA / f"{part}.jsonl").read_text(encoding="utf-8").splitlines()]


def measure(
    settings: Settings, train: list[dict[str, str]], test: list[dict[str, str]], folder: Path
) -> dict[str, Any]:
    """Train on one part, and judge on the other, without beams and with four."""
    start = make_checkpoint(folder / "start", settings, train)
    config = ws.TrainConfig(
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        seed=settings.seed,
        device="cpu",
    )
    began = (time.monotonic(), time.process_time())
    run = ws.train(start, train, output=folder / "run", task="translation", config=config)
    seconds = [now - then for now, then in zip((time.monotonic(), time.process_time()), began, strict=True)]
    record: dict[str, Any] = {
        "version": ws.__version__,
        "settings": asdict(settings),
        "parameters": run.pipeline.model.num_parameters(),
        "rows": [len(train), len(test)],
        "steps": run.steps,
        "seconds": seconds[0],
        "cpu_seconds": seconds[1],
        "results": {},
    }
    for beams in BEAMS:
        pipe = ws.load(run.path, device="cpu", options={"max_new_tokens": 64, "beams": beams})
        result = ws.evaluate(pipe, test)
        record["results"][str(beams)] = {"loss": result.loss, **result.as_dict()["metrics"]}
        record["examples"] = [
            {"source": row["source"], "target": row["target"], "text": prediction.text}
            for row, prediction in list(zip(test, result.predictions, strict=True))[:EXAMPLES]
        ]
    return record


def table() -> str:
    """The newest record as a page."""
    record = json.loads(RECORDS.read_text(encoding="utf-8").splitlines()[-1])
    settings = ", ".join(f"{name}={value}" for name, value in record["settings"].items())
    train, test = record["rows"]
    lines = [
        "# Translation from scratch",
        "",
        f"A Marian encoder-decoder of {record['parameters'] / 1e6:.2f} million random weights, its vocabulary learned",
        f"from the training part, after `ws.train` on the {train:,} English-German pairs of `translation`; judged by",
        f"`ws.evaluate` on its {test:,} test rows, with 95 % intervals. Nothing pretrained is in it. Written by",
        "`python benchmarks/translation.py` from the newest record in `translation.jsonl`.",
        "",
        f"Settings: {settings}. {record['steps']:,} steps, {record['cpu_seconds']:,.0f} s of one thread's own time",
        f"({record['seconds']:,.0f} s on the clock of a busy machine).",
        "",
        "| metric | " + " | ".join(f"{beams} beam{'s' * (beams > 1)}" for beams in BEAMS) + " |",
        "|---|" + "---|" * len(BEAMS),
    ]
    for name, digits in (("bleu", 1), ("chrf", 1), ("rougeL", 3), ("perplexity", 1)):
        found = [record["results"][str(beams)][name] for beams in BEAMS]
        cells = [f"{m['value']:.{digits}f} ({m['lo']:.{digits}f} – {m['hi']:.{digits}f})" for m in found]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += ["", "BLEU and chrF are sacrebleu's, from 0 to 100. The first test rows, with four beams:", ""]
    for example in record["examples"]:
        lines += [f"- {example['source']}", f"  - it says: {example['text']}", f"  - reference: {example['target']}"]
    return "\n".join([*lines, ""])


def make_checkpoint(folder: Path, settings: Settings, rows: Sequence[dict[str, str]]) -> Path:
    """A checkpoint folder with random weights and a vocabulary learned from these rows alone."""
    tokenizer = make_tokenizer(settings, (text for row in rows for text in row.values()))
    pad, end = tokenizer.pad_token_id, tokenizer.eos_token_id
    sizes = {
        f"{part}_{name}": value
        for part in ("encoder", "decoder")
        for name, value in (
            ("layers", settings.layers),
            ("attention_heads", settings.heads),
            ("ffn_dim", settings.feed_forward),
        )
    }
    config = MarianConfig(
        vocab_size=len(tokenizer),
        d_model=settings.width,
        **sizes,
        dropout=settings.dropout,
        max_position_embeddings=settings.positions,
        scale_embedding=True,
        activation_function="relu",
        pad_token_id=pad,
        eos_token_id=end,
        decoder_start_token_id=pad,
        forced_eos_token_id=None,
    )
    torch.manual_seed(settings.seed)
    model = MarianMTModel(config)
    model.generation_config.bad_words_ids = [[pad]]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_tokenizer(settings: Settings, texts: Iterator[str]) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE(unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation(behavior="isolated")]
    )
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocabulary, special_tokens=[PAD, END, UNKNOWN], show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {END}", pair=f"$A {END} $B {END}", special_tokens=[(END, tokenizer.token_to_id(END))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=settings.positions,
        pad_token=PAD,
        eos_token=END,
        unk_token=UNKNOWN,
    )


if __name__ == "__main__":
    main()
