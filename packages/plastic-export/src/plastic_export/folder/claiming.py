"""The place of a file that takes long to make: one process at a time makes it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from plastic_core.files import BusyError, FolderLock, beside


@contextmanager
def claimed_file(file: Path) -> Iterator[None]:
    """Let no other process make a file within the block; the folder for it is made.

    A hidden folder beside it, ``.<name>.lock``, is locked meanwhile and then removed. What a killed
    process left of that is taken over.

    Raises:
        BusyError: If another process is making the file; the message names both.
        OSError: If the system refuses.
    """
    place = beside(file, "lock")
    made = [parent for parent in place.parents if not parent.exists()]
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        lock = FolderLock(place)
    except BusyError as error:
        error.filename = os.fspath(file)
        raise
    try:
        yield
    finally:
        lock.unsign()
        with suppress(OSError):  # not empty: somebody else's
            place.rmdir()
        lock.release()
        with suppress(OSError):  # not empty, which is how it is after success
            for parent in made:
                parent.rmdir()
