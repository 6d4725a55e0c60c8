"""A person's first hour: the textbook workflow on the very objects that warmstart hands out.

    python examples/first_hour.py

Set WARMSTART_EXAMPLE_ROWS to train on fewer reviews. It needs no model hub.
"""

import os
import tempfile
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import warmstart as ws
from warmstart.verbs.demo import movie_reviews

# 1. A pretrained model and its tokenizer: what transformers' Auto classes give, verified before it is built.
pipe = ws.load("starter")
model, tokenizer = pipe.model, pipe.tokenizer
print(type(model).__name__, type(tokenizer).__name__)

# 2. Text to PyTorch tensors.
texts = ["I love LangChain!", "The plot drags, and the jokes fall flat."]
inputs = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
print({name: tuple(tensor.shape) for name, tensor in inputs.items()})

# 3. A forward pass.
with torch.no_grad():
    logits = model(**inputs).logits  # (texts, labels)

# 4. Logits to predictions, by hand and by the pipeline: the same labels and scores.
scores = torch.softmax(logits, dim=-1)
for text, row, prediction in zip(texts, scores, pipe(texts), strict=True):
    by_hand = model.config.id2label[row.argmax().item()]
    assert by_hand == prediction.label and abs(row.max().item() - prediction.score) < 1e-5
    print(f"{prediction.label} {prediction.score:.4f}  {text}")

# Features instead of labels: the encoder's embeddings.
vector = ws.load("starter-encoder")("I love LangChain!").embedding
print(len(vector), "numbers that stand for the text")

# 5a. Fine-tune in one line …
rows = movie_reviews("train")[: int(os.environ.get("WARMSTART_EXAMPLE_ROWS", "1000"))]
folder = Path(tempfile.mkdtemp())
run = ws.train("starter-encoder", rows, output=folder / "run", validation=0.1, config=ws.TrainConfig(epochs=1))
print("validation accuracy", run.metrics["accuracy"])

# 5b. … or in a loop of your own, with your own optimizer, scheduler and DataLoader.
pipe = ws.load("starter-encoder", task="text-classification", labels=["NEGATIVE", "POSITIVE"])
batches = ws.batches(rows, pipe.task, max_tokens=2048, seed=0)
loader = DataLoader(batches, batch_size=None)
optimizer = torch.optim.AdamW(pipe.model.parameters(), lr=1e-4)
scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=1.0, end_factor=0.1, total_iters=len(batches))
pipe.model.train()
for epoch in range(1):
    batches.set_epoch(epoch)
    for batch in loader:
        batch = {name: tensor.to(pipe.device) for name, tensor in batch.items()}
        loss = pipe.model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(pipe.model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
pipe.model.eval()
print("last loss", round(loss.item(), 3))

# Save as always; what ws.train saved and what you save load in plain transformers.
pipe.model.save_pretrained(folder / "mine")
pipe.tokenizer.save_pretrained(folder / "mine")
for saved in (run.model, folder / "mine"):
    again = AutoModelForSequenceClassification.from_pretrained(saved)
    inputs = AutoTokenizer.from_pretrained(saved)(texts, padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        print(saved.name, [again.config.id2label[i] for i in again(**inputs).logits.argmax(-1).tolist()])
