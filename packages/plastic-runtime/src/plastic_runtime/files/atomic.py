"""A file that is either complete or not there, and what it takes to be sure of it."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import sys
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

if sys.platform == "darwin":
    import fcntl


class AtomicFile:
    """A new file that gets its name when it is complete. A context manager.

    It is written under a temporary name beginning with a dot, which no loader looks at.
    Leaving the ``with`` block forces the bytes to the disk and renames; leaving it by an
    exception removes them. The mode is what the umask allows.

    Args:
        path: Name of the file. A regular file of that name is replaced, and stays as it
            was if anything fails.

    Raises:
        ValueError: If ``path`` is a link, a folder or anything else than a regular file.
        OSError: If the file cannot be created.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if os.path.lexists(self.path) and not stat.S_ISREG(os.lstat(self.path).st_mode):
            raise ValueError(
                f"`path` must be a new name or that of a regular file, got {self.path}."
                " Links and folders are not written through; choose another name."
            )
        self._temporary = self.path.with_name(f".{self.path.name}.{os.urandom(4).hex()}.tmp")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self._stream = os.fdopen(os.open(self._temporary, flags, 0o666), "wb", buffering=0)

    @property
    def closed(self) -> bool:
        """Whether the file was committed or abandoned."""
        return self._stream.closed

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes.

        Raises:
            OSError: If the system refuses, a full disk for example.
        """
        rest = memoryview(data)
        while rest:
            rest = rest[self._stream.write(rest) :]

    def commit(self) -> None:
        """Force the bytes to the disk and give the file its name."""
        sync(self._stream.fileno())
        self._stream.close()
        os.replace(self._temporary, self.path)
        sync_path(self.path.parent)

    def abandon(self) -> None:
        """Remove what was written."""
        self._stream.close()
        self._temporary.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None:
            self.abandon()
            return
        try:
            self.commit()
        except BaseException:
            self.abandon()
            raise


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write a JSON file: complete or not at all, indented, keys in the order given.

    Raises:
        ValueError: If the file cannot be replaced; see `AtomicFile`.
        TypeError: If JSON cannot hold the type.
        OSError: If the system refuses.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    with AtomicFile(path) as file:
        file.write(text.encode())


def sha256_file(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file, as 64 hexadecimal digits."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sync(descriptor: int) -> None:
    """Force an open file to the disk."""
    if sys.platform == "darwin":  # where fsync stops at the drive's own cache
        with suppress(OSError):
            fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
            return
    os.fsync(descriptor)


def sync_path(path: Path) -> None:
    """Force a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        sync(descriptor)
    finally:
        os.close(descriptor)
