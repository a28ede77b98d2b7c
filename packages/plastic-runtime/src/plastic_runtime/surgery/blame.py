"""Errors that say which layer they are about."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def blaming(path: str) -> Iterator[None]:
    """Add the path of a layer to a ``ValueError`` raised in the block."""
    try:
        yield
    except ValueError as error:
        error.add_note(f"in layer {path!r}")
        raise
