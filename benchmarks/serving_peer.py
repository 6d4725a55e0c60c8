"""What people write today: FastAPI, and a call of `transformers.pipeline` for each request. Its own process.

    python serving_peer.py CHECKPOINT threads|loop DTYPE

"threads": `def`, which FastAPI runs in its pool of threads. "loop": `async def`, one request after another.
"""

from __future__ import annotations

import sys
from typing import Any

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from transformers import pipeline


class Item(BaseModel):
    text: str


def main() -> None:
    checkpoint, way, dtype = sys.argv[1:]
    pipe = pipeline("text-classification", model=checkpoint, device="cpu", dtype=dtype)
    app = FastAPI()

    if way == "threads":

        @app.post("/predict")
        def predict(item: Item) -> Any:
            return pipe(item.text)

    else:

        @app.post("/predict")
        async def predict_here(item: Item) -> Any:
            return pipe(item.text)

    @app.get("/readyz")
    def ready() -> str:
        return "ready"

    # uvicorn binds by itself, and says where: asyncio sets no TCP_NODELAY on a socket of `socket.create_server`.
    uvicorn.run(app, host="127.0.0.1", port=0, log_level="info", access_log=False, backlog=1024)


if __name__ == "__main__":
    main()
