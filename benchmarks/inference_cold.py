"""Part `cold`: one text through `warmstart predict` over an exported checkpoint, a new process each time."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from inference_prepare import prepare

from warmstart.verbs.bench_process import spare_cores
from warmstart.verbs.bench_worker import pin

TEXT = "a warm and funny film"
EXPORTS = ("openvino-int8", "openvino-fp32")


def run_cold(forms: Path, rows: int | None, repeats: int) -> Iterator[dict[str, Any]]:
    """Seconds from the command to its last line, of `repeats` processes; before them one that compiles the graph.

    The files of Python and of the packages are in the system's cache, the compiled graph in ours (an empty one here).
    """
    pin(spare_cores(1))
    _, failed = prepare(forms, only=EXPORTS)
    with tempfile.TemporaryDirectory() as cache:
        # The checkpoint lies in a folder, so that nothing else of the person's cache is looked for.
        environment = os.environ | {"WARMSTART_CACHE": cache, "OMP_NUM_THREADS": "1"}
        for name in EXPORTS:
            if name in failed:
                yield {"kind": "failed", "name": name, "reason": failed[name]}
                continue
            command = [sys.executable, "-m", "warmstart", "predict", "-m", str(forms / name), TEXT]
            for run in range(repeats + 1):
                started = time.perf_counter()
                done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
                seconds = time.perf_counter() - started
                assert '"label"' in done.stdout
                print(f"{name}, {'compiled' if run else 'not compiled yet'}: {seconds:.2f} s", file=sys.stderr)
                yield {"kind": "cold", "name": name, "compiled": run > 0, "seconds": seconds}
