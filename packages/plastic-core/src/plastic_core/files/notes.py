"""Notes on errors about what the place that raises does not know: file, layer, matrix."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Put a file's name into an error of the system, which does not know it after the opening.

    Examples:
        >>> try:
        ...     with naming("a.json"):
        ...         raise OSError(28, "No space left on device")
        ... except OSError as error:
        ...     print(error)
        [Errno 28] No space left on device: 'a.json'
    """
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = os.fspath(path)
        raise


@contextmanager
def noting(note: str) -> Iterator[None]:
    """Add a note to a ``ValueError`` that is raised in the block.

    Args:
        note: What the error is about, such as ``"in layer 'layers.0.q_proj'"``.

    Examples:
        >>> try:
        ...     with noting("at 'w'"):
        ...         raise ValueError("not finite")
        ... except ValueError as error:
        ...     print(error, error.__notes__)
        not finite ["at 'w'"]
    """
    try:
        yield
    except ValueError as error:
        error.add_note(note)
        raise
