"""Checkpoints: find, verify, load, save.

`find` and `verify` work without torch and transformers. What needs them is imported when it is called, here and nowhere
else: this is one of the house's four seams of deferred import.
"""

from __future__ import annotations
