"""A limit on the processor time of a block."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator

from meters import cpu_seconds


@contextlib.contextmanager
def at_most(seconds: int | None) -> Iterator[None]:
    """End this process by SIGXCPU if the block takes more seconds of its processor time."""
    if seconds is None:
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    resource.setrlimit(resource.RLIMIT_CPU, (int(cpu_seconds()) + seconds, hard))
    yield
    resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))
