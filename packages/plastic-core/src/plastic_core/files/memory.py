"""The memory that a read needs, asked for before: a failed allocation may end the process."""

from __future__ import annotations

import os
import resource
from pathlib import Path

from plastic_core.files.errors import FormatError


def memory_limit() -> int:
    """Return the bytes that this process can hope to hold: physical memory or its own limit.

    Examples:
        >>> memory_limit() > 2**20
        True
    """
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    allowed, _ = resource.getrlimit(resource.RLIMIT_AS)
    return physical if allowed == resource.RLIM_INFINITY else min(physical, allowed)


def check_memory(nbytes: int, file: Path, tensor: str | None = None) -> None:
    """Refuse to read what cannot fit into memory.

    Args:
        nbytes: Bytes about to be read.
        file: File that they come from, for the message.
        tensor: Tensor that they make up, for the message.

    Raises:
        FormatError: If that is more than `memory_limit`.

    Examples:
        >>> check_memory(2**60, Path("a.safetensors"))
        Traceback (most recent call last):
        plastic_core...FormatError: a.safetensors: 1152921504606846976 bytes do not fit ...
    """
    if nbytes > (limit := memory_limit()):
        reason = f"{nbytes} bytes do not fit into the memory of {limit} bytes"
        remedy = "use a machine with more memory, or check where the file comes from"
        raise FormatError.about(file, reason, remedy, tensor=tensor)
