"""The base of an adapter, opened where it can be had without asking anybody."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from plastic_export.adapters.adapter import Adapter
from plastic_export.checkpoint.reader import Checkpoint, open_checkpoint


@contextmanager
def open_named_base(
    name: str | None, *, revision: str | None = None
) -> Iterator[Checkpoint | None]:
    """Open the base that a user names; None where none is named.

    Raises:
        FormatError: If there is no such checkpoint.
        OSError: If the system refuses.
    """
    if name is None:
        yield None
        return
    with open_checkpoint(name, revision=revision) as checkpoint:
        yield checkpoint


def local_base(adapter: Adapter) -> str | None:
    """Return the folder that an adapter names as its base, if it is there."""
    return adapter.base if adapter.base and Path(adapter.base).is_dir() else None
