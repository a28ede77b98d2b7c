"""The true end of a thread, which comes after Python has joined it."""

from __future__ import annotations

import time
from pathlib import Path
from threading import Thread

TASKS = Path("/proc/self/task")
MOST, STEP = 5.0, 0.01
"""Seconds to wait at most where the system tells of its threads, and between two looks."""
UNSEEN = 0.2
"""Seconds to wait where it does not."""


def outlast(thread: Thread) -> None:
    """Join a thread, and wait until the system has ended it too.

    What MLX compiled in a thread is freed as that ends, which needs Python. A process that ends at
    the same moment is aborted.
    """
    thread.join()
    if not TASKS.is_dir():
        time.sleep(UNSEEN)
        return
    place, deadline = TASKS / str(thread.native_id), time.monotonic() + MOST
    while place.exists() and time.monotonic() < deadline:
        time.sleep(STEP)
