"""What a run is doing, for who listens: debug records of the logger "warmstart" at the start and the end of a phase.

A record has `phase` ("evaluation", "save", "prune", "finish"), `step` and `begins`. `verify-resume` reads from them
where a kill has landed.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

log = logging.getLogger("warmstart")


@contextmanager
def phase(name: str, step: int) -> Iterator[None]:
    """Tell the start of a phase after optimizer step `step`, and its end if it comes to one."""
    log.debug("%s after step %d begins", name, step, extra={"phase": name, "step": step, "begins": True})
    yield
    log.debug("%s after step %d is done", name, step, extra={"phase": name, "step": step, "begins": False})
