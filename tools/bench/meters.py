"""The memory of this process, as the system counts it."""

from __future__ import annotations

import resource
import sys


def peak_resident() -> int:
    """Return the most bytes that this process has had in memory."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
