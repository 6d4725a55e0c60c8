"""Command line, library and HTTP give the same for a thousand real texts and a real checkpoint."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

import warmstart as ws
from support.serving import serving
from warmstart.cli.main import run
from warmstart.tasks import as_dict

REVIEWS = Path(__file__).parents[3] / "shared" / "data" / "reviews" / "train.jsonl"


@pytest.mark.real_data
def test_a_thousand_reviews_get_the_same_answers_everywhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if not REVIEWS.exists():
        pytest.skip("the real data of ../shared/data is not here")
    with REVIEWS.open(encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for _, line in zip(range(1000), file, strict=False)]
    library = [as_dict(prediction) for prediction in ws.load("starter", device="cpu")(texts)]

    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    capsys.readouterr()
    assert run(["predict", "-m", "starter", "-i", str(rows), "--json"]) == 0
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    with (
        serving(["-m", "warmstart", "serve", "--port", 0, "-m", "m=starter", "--no-access-log"]) as (_, url, _),
        httpx.Client(base_url=url, timeout=60, trust_env=False) as client,
        ThreadPoolExecutor(16) as clients,
    ):

        def ask(text: str) -> Any:
            return client.post("/v1/predict/m", json=text).raise_for_status().json()

        one_by_one = list(clients.map(ask, texts))
        together = client.post("/v1/predict/m", json=texts).raise_for_status().json()
    for found in (printed, one_by_one, together):
        assert len(found) == 1000
        for prediction, expected in zip(found, library, strict=True):
            assert prediction["label"] == expected["label"]
            assert prediction["scores"] == pytest.approx(expected["scores"], abs=1e-5)
