"""A loop of your own that can be killed at any moment and run again: it ends with the same weights, to the last bit.

    python examples/own_loop.py [FOLDER]      kill it, run it again, and compare the line "weights"

Plain PyTorch, with three things of ours, each of which works without the others: `ws.batches`, `ws.unpad` and
`ws.Checkpointer`. Set WARMSTART_EXAMPLE_ROWS to train on fewer reviews. It needs no model hub.
"""

import hashlib
import os
import sys
import tempfile
from pathlib import Path

import torch
from torch.utils.data import DataLoader

import warmstart as ws
from warmstart.verbs.demo import movie_reviews

EPOCHS, SEED = 2, 0
folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
rows = movie_reviews("train")[: int(os.environ.get("WARMSTART_EXAMPLE_ROWS", "1000"))]

torch.manual_seed(SEED)  # dropout draws from here; its state is saved with the rest
pipe = ws.load("starter-encoder", task="text-classification", labels=["NEGATIVE", "POSITIVE"])
model = ws.unpad(pipe.model)
batches = ws.batches(rows, pipe.task, max_tokens=512, seed=SEED)
optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=EPOCHS * len(batches))

ckpt = ws.Checkpointer(folder, model=model, optimizer=optimizer, scheduler=scheduler, every=5, settings={"seed": SEED})
start = ckpt.resume()
print("start at step", start, flush=True)
model.train()
step = 0
for epoch in range(EPOCHS):
    batches.set_epoch(epoch)
    done = min(max(start - step, 0), len(batches))  # of this epoch; not even collated again
    step += done
    # Its own generator: a loader draws a seed for its workers, which must not come from that of dropout.
    loader = DataLoader(batches, batch_size=None, sampler=range(done, len(batches)), generator=torch.Generator())
    for batch in loader:
        loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        ckpt.step_done(step)
        print("step", step, f"loss {loss.item():.4f}", flush=True)
        step += 1
ckpt.close()

model = ws.pad(model).eval()
model.save_pretrained(folder / "model")
pipe.tokenizer.save_pretrained(folder / "model")
print("weights", hashlib.sha256((folder / "model" / "model.safetensors").read_bytes()).hexdigest())
print(ws.load(folder / "model")("A film that can be watched twice.").scores)
