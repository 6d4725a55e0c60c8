"""The measurements of generation, with `starter-chat` (SmolLM2-135M-Instruct): `python benchmarks/generation.py PART`

equal     greedy text beside plain transformers on the converted folder, alone, in batches, streamed; and Paris
speed     time to load the converted folder, and to the first token; 64 prompts in batches beside one at a time
learning  perplexity on review texts before and after fine-tuning on the training part, with intervals

Each part replaces its own record in `generation.jsonl`; the table `generation.md` is written from them.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import warmstart as ws
from warmstart.checkpoints import find
from warmstart.rows import Row, read
from warmstart.tasks import find_task

HERE = Path(__file__).parent
DATA = HERE.parent.parent / "shared" / "data"
RECORDS, TABLE = HERE / "generation.jsonl", HERE / "generation.md"
NEW, FEW = {"max_new_tokens": 24}, {"max_new_tokens": 32}
PARIS = {"messages": [{"role": "user", "content": "What is the capital of France?"}]}
TRAIN_ROWS = 1024  # drawn at random from the training part; of the test part all are judged


def prompts(count: int) -> list[Row]:
    """Real prompts of unequal length: the questions of TREC as conversations, and beginnings of film reviews."""
    fields = find_task("text-classification").fields
    questions = [row["text"] for row in read(str(DATA / "questions" / "train.csv"), fields=fields)][: count // 2]
    reviews = [row["text"] for row in read(str(DATA / "reviews" / "validation.jsonl"), fields=fields)]
    rows = [Row({"messages": [{"role": "user", "content": text}]}) for text in questions]
    return rows + [Row({"prompt": " ".join(text.split()[: 4 + i % 9])}) for i, text in enumerate(reviews[: count // 2])]


def equal() -> dict[str, Any]:
    pipe = ws.load("starter-chat", options=FEW, device="cpu")
    rows = prompts(50)
    theirs = _theirs(rows)
    alone = [pipe(row).generated_text for row in rows]
    batched = [prediction.generated_text for prediction in pipe(rows)]
    streamed = ["".join(pipe.stream(row)) for row in rows]
    return {
        "prompts": len(rows),
        "new_tokens": FEW["max_new_tokens"],
        "alone": sum(a == b for a, b in zip(alone, theirs, strict=True)),
        "batched": sum(a == b for a, b in zip(batched, theirs, strict=True)),
        "streamed": sum(a == b for a, b in zip(streamed, theirs, strict=True)),
        "paris": pipe(PARIS).generated_text,
    }


def _theirs(rows: list[Row]) -> list[str]:
    """What transformers' own tokenizer, template and `generate` give, of the same folder and nothing of ours."""
    folder = find("starter-chat").folder
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return [_generate(model, tokenizer, row) for row in rows]


def _generate(model: Any, tokenizer: Any, row: Row) -> str:
    if "messages" in row:
        made = tokenizer.apply_chat_template(row["messages"], add_generation_prompt=True, return_tensors="pt")
        inputs = made if isinstance(made, torch.Tensor) else made["input_ids"]
    else:
        inputs = tokenizer(row["prompt"], return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        found = model.generate(inputs, attention_mask=torch.ones_like(inputs), do_sample=False, **FEW)
    return str(tokenizer.decode(found[0, inputs.shape[1] :], skip_special_tokens=True))


def speed() -> dict[str, Any]:
    folder = find("starter-chat").folder  # converted by now
    started = time.perf_counter()
    pipe = ws.load(folder, options=NEW, device="cpu")
    loaded = time.perf_counter() - started
    firsts = []
    for row in [PARIS, *prompts(8)]:
        started = time.perf_counter()
        with pipe.stream(row) as stream:
            next(stream)
            firsts.append(time.perf_counter() - started)
    rows = prompts(64)
    seconds: dict[str, list[float]] = {"alone": [], "batched": []}
    tokens = 0
    for budget, name in ((1, "alone"), (4096, "batched"), (4096, "batched")):
        started = time.perf_counter()
        tokens = sum(prediction.new_tokens for prediction in pipe(rows, max_tokens=budget))
        seconds[name].append(time.perf_counter() - started)
    return {
        "load_seconds": loaded,
        "first_token_seconds": firsts,
        "rows": len(rows),
        "new_tokens": tokens,
        "seconds": seconds,
    }


def learning() -> dict[str, Any]:
    fields = find_task("text-generation").fields
    test, train = (
        [Row({"prompt": row["prompt"]}) for row in read(str(DATA / "reviews" / f"{part}.jsonl"), fields=fields)]
        for part in ("test", "train")
    )
    train = random.Random(0).sample(train, TRAIN_ROWS)
    before = ws.evaluate(ws.load("starter-chat", device="cpu"), test)
    with tempfile.TemporaryDirectory() as folder:
        config = ws.TrainConfig(epochs=1, batch_size=16, learning_rate=5e-5, device="cpu")
        started = time.perf_counter()
        run = ws.train("starter-chat", train, output=Path(folder) / "run", task="text-generation", config=config)
        seconds = time.perf_counter() - started
        after = ws.evaluate(run.pipeline, test)
    return {
        "test_rows": len(test),
        "train_rows": len(train),
        "steps": run.steps,
        "seconds": seconds,
        "before": before.metrics["perplexity"].as_dict(),
        "after": after.metrics["perplexity"].as_dict(),
    }


PARTS = {"equal": equal, "speed": speed, "learning": learning}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="+", choices=sorted(PARTS))
    torch.set_num_threads(1)
    for part in parser.parse_args().parts:
        record = PARTS[part]() | {"part": part, "torch": torch.__version__, "warmstart": ws.__version__}
        kept = [] if not RECORDS.exists() else [json.loads(line) for line in RECORDS.read_text().splitlines()]
        records = sorted([*(r for r in kept if r["part"] != part), record], key=lambda r: str(r["part"]))
        RECORDS.write_text("".join(json.dumps(r) + "\n" for r in records))
        TABLE.write_text(_table({r["part"]: r for r in records}))
        print(json.dumps(record))


def _table(records: dict[str, dict[str, Any]]) -> str:
    lines = [
        "# Generation, measured",
        "",
        "`starter-chat` on one core, float32, written by `benchmarks/generation.py` from `generation.jsonl`.",
        "",
    ]
    if found := records.get("equal"):
        same = ", ".join(f"{name} {found[name]} of {found['prompts']}" for name in ("alone", "batched", "streamed"))
        lines += [
            f"- The same greedy text as `model.generate` of plain transformers: {same} prompts, at most "
            f"{found['new_tokens']} new tokens each.",
            f"- Paris: “{found['paris']}”",
        ]
    if found := records.get("speed"):
        alone, batched = (min(found["seconds"][name]) for name in ("alone", "batched"))
        firsts = sorted(found["first_token_seconds"])
        if "load_seconds" in found:  # records from before it was measured have none
            lines += [f"- The converted folder is loaded in {found['load_seconds']:.1f} s."]
        lines += [
            f"- First token after {firsts[len(firsts) // 2]:.2f} s (median), {firsts[-1]:.2f} s (worst of "
            f"{len(firsts)} prompts).",
            f"- {found['rows']} prompts, {found['new_tokens']} new tokens: {alone:.1f} s one at a time, "
            f"{batched:.1f} s in batches, {alone / batched:.1f} times as fast.",
        ]
    if found := records.get("learning"):
        shown = [f"{m['value']:.1f} [{m['lo']:.1f}, {m['hi']:.1f}]" for m in (found["before"], found["after"])]
        lines += [
            f"- Perplexity on {found['test_rows']} test texts of `reviews`, with 95 % interval: {shown[0]} before, "
            f"{shown[1]} after {found['steps']} steps of full fine-tuning on {found['train_rows']} training texts "
            f"({found['seconds']:.0f} s).",
        ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
