"""The bytes that tensors take in the headers of safetensors files, before these are written."""

from __future__ import annotations

import json
from collections.abc import Iterable

from plastic_core.files import TensorSpec

from plastic_export.folder.shards import SHARD_BYTES

FILE = 8 + 8 + 64  # length, padding, braces and metadata


def entry_bytes(specs: Iterable[TensorSpec], nbytes: int) -> int:
    """Return the bytes of their entries in the header of a file of so many bytes, at most."""
    last = 10 ** len(str(nbytes)) - 1  # no offset has more digits
    entries = (
        {s.name: {"dtype": s.dtype, "shape": [*s.shape], "data_offsets": [last, last]}}
        for s in specs
    )
    return sum(
        len(json.dumps(entry, ensure_ascii=False, separators=(",", ":")).encode()) - 1
        for entry in entries
    )


def fixed_bytes(left: Iterable[TensorSpec], nbytes: int) -> int:
    """Return what all other tensors and the files themselves add, for a source of a size.

    Counts a file more than ``SHARD_BYTES`` asks for, since none is filled, and one of an adapter.
    """
    return entry_bytes(left, nbytes) + FILE * (3 + 2 * (nbytes // SHARD_BYTES))
