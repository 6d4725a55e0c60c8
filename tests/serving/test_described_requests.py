"""Requests made from the server's own description, right and wrong ones, by schemathesis, against a process of its own:
no 5xx, no answer that /openapi.json does not know, nothing taken that it forbids and nothing refused that it allows."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import httpx

from support.serving import KEY, serving

# `make fuzz` sets it: at most so many cases for each operation, some twenty of which there are.
CASES = int(os.environ.get("WARMSTART_FUZZ", "3"))
AT_LEAST = 1_000 if CASES > 3 else 150
SECONDS = 900 if CASES > 3 else 240

# Two tasks and a key: what is said of one operation is not true of its neighbour.
SERVER = """
import logging, sys
import warmstart as ws
from support.serving import numpy_embedder, numpy_pipeline
logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
logging.getLogger("warmstart.access").disabled = True
ws.serve({"reviews": numpy_pipeline(), "embed": numpy_embedder()}, port=0, api_keys=sys.argv[1:])
"""
# 504 is what a client asks for with `X-Timeout-Ms: 1`; every other 5xx is a failure. 413 is for too many rows.
# A header that nobody described is no fault of a request; unknown fields of bodies are still tried in the other phases.
SETTINGS = """
[phases.coverage.generation]
allow-extra-parameters = false

[checks]
not_a_server_error.expected-statuses = ["2xx", "3xx", "4xx", "504"]
negative_data_rejection.expected-statuses = [
    "400", "401", "403", "404", "405", "408", "413", "415", "422", "429", "431", "504",
]
"""
# Not `ignored_auth`: it changes one of the two credentials and leaves our X-API-Key as it is. H64 tries every route.
CHECKS = ["--checks", "all", "--exclude-checks", "ignored_auth"]


def test_what_the_description_allows_is_answered_and_what_it_forbids_is_refused(tmp_path: Path) -> None:
    settings = tmp_path / "schemathesis.toml"
    settings.write_text(SETTINGS)
    phases = "coverage,fuzzing,stateful" if CASES > 3 else "coverage,fuzzing"
    with serving(["-c", SERVER, KEY]) as (process, url, lines):
        done = subprocess.run(
            [
                Path(sys.executable).with_name("schemathesis"), "--config-file", settings, "run", f"{url}/openapi.json",
                "--header", f"X-API-Key: {KEY}", *CHECKS, "--phases", phases, "--max-examples", str(CASES),
                "--seed", "1", "--continue-on-failure", "--suppress-health-check", "all", "--workers", "2",
            ],
            capture_output=True, text=True, timeout=SECONDS, cwd=tmp_path, env={**os.environ, "NO_COLOR": "1"},
        )  # fmt: skip
        assert process.poll() is None, lines
        assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
        with httpx.Client(base_url=url, headers={"X-API-Key": KEY}, trust_env=False) as client:
            assert client.get("/readyz").status_code == 200
            assert client.post("/v1/predict/reviews", json="good").status_code == 200
    found = re.search(r"(\d[\d,]*) generated", done.stdout)
    assert found is not None and int(found[1].replace(",", "")) >= AT_LEAST, done.stdout[-1000:]
    print(f"{found[1]} requests made from the description")
