"""Silence for transformers while we load: what it would print is told by our own errors and log lines."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging as transformers_logging

# Verbosity is one setting for the process: two threads that load must not restore each other's.
_LOCK = threading.RLock()


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No log lines, progress bars or warnings of transformers inside; the person's own settings are back afterwards."""
    with _LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        verbosity = transformers_logging.get_verbosity()
        bars = transformers_logging.is_progress_bar_enabled()
        transformers_logging.set_verbosity(transformers_logging.CRITICAL)
        transformers_logging.disable_progress_bar()
        try:
            yield
        finally:
            transformers_logging.set_verbosity(verbosity)
            if bars:
                transformers_logging.enable_progress_bar()
