"""The benchmark of inference: `make bench`, or `python benchmarks/inference.py PART …`, PART one of

speed     texts to labels, ours and our peers', on reviews and on mixed lengths
batches   random batches of 32 reviews, forward and training step, unpadded and padded
memory    1,000,000 rows through a toy model: does memory grow
scale     cost of a row at 100,000 rows and at 10,000, in int8
cold      `warmstart predict` of one text over an exported checkpoint, in new processes

Each part replaces its own raw records in `inference.jsonl`; the table `inference.md` is written from them.
"""

from __future__ import annotations

import argparse
import datetime
import json
import logging
import tempfile
import time
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from inference_batches import run_batches
from inference_cold import run_cold
from inference_flat import run_memory, run_scale
from inference_speed import run_speed
from inference_table import table

from warmstart.provenance import environment

HERE = Path(__file__).parent
RECORDS, TABLE = HERE / "inference.jsonl", HERE / "inference.md"
PARTS = {
    "speed": run_speed,
    "batches": run_batches,
    "memory": run_memory,
    "scale": run_scale,
    "cold": run_cold,
}
PEERS = ("sentence-transformers", "openvino", "nncf", "onnxruntime", "ctranslate2")


def main() -> None:
    logging.disable(logging.INFO)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="+", choices=[*PARTS, "table"], metavar="PART")
    parser.add_argument("--rows", type=int, help="only so many texts of each workload: a trial, written nowhere")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each contestant (default 5)")
    parser.add_argument("--forms", type=Path, help="a folder that keeps the peers' converted models for the next run")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for part in arguments.parts:
            if part == "table":
                continue
            started = time.monotonic()
            found = PARTS[part](arguments.forms or Path(folder), arguments.rows, arguments.repeats)
            records = [{"part": part, **record} for record in [machine(), *found]]
            records.append({"part": part, "kind": "took", "seconds": round(time.monotonic() - started)})
            if arguments.rows is None:
                replace(part, records)
            else:
                print("\n".join(table(records)))
    if arguments.rows is None:
        TABLE.write_text("\n".join(table(read())) + "\n", encoding="utf-8")
        print(TABLE.read_text(encoding="utf-8"))


def machine() -> dict[str, Any]:
    """What the figures belong to: no host, user or path."""
    found = environment([])
    del found["command"]
    return {
        "kind": "machine",
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "threads": 1,
        **found,
        "packages": {**found["packages"], **{name: _version(name) for name in PEERS}},
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def read() -> list[dict[str, Any]]:
    return [json.loads(line) for line in RECORDS.read_text(encoding="utf-8").splitlines()] if RECORDS.exists() else []


def replace(part: str, records: Iterable[Mapping[str, Any]]) -> None:
    """A part's records take the place of its older ones."""
    kept = [record for record in read() if record["part"] != part]
    lines = [json.dumps(record) for record in (*kept, *records)]
    RECORDS.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
