"""Waiting for other processes, with one limit that holds on a loaded machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

# The time after which a process is taken to hang. Nothing waits so long when a test passes.
PATIENCE_SECONDS = 600


def wait_until(happened: Callable[[], Any]) -> None:
    """Return as soon as `happened()` is true; raise an AssertionError after `PATIENCE_SECONDS`."""
    end = time.monotonic() + PATIENCE_SECONDS
    while not happened():
        assert time.monotonic() < end, f"it did not happen within {PATIENCE_SECONDS} s"
        time.sleep(0.005)
