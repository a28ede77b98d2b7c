"""A file that is either complete or not there, and what it takes to be sure of it."""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import stat
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from plastic_core.files.closing import Leaving
from plastic_core.files.errors import FormatError
from plastic_core.files.lock import BusyError, is_still, try_lock
from plastic_core.files.notes import naming
from plastic_core.files.paths import in_hub_cache, open_regular

_PIECE = 2**24  # bytes copied at a time


class AtomicFile(Leaving):
    """A new file that gets its name when it is complete. A context manager.

    It is written as ``.<name>.tmp``, which no loader looks at, and which is locked meanwhile: one
    process at a time writes a file, and what a killed one left is taken over. Leaving the ``with``
    block forces the bytes to the disk and renames; leaving it by an exception removes them. The
    mode is what the umask allows.

    Args:
        path: Name of the file. A regular file of that name is replaced, and stays as it
            was if anything fails. A hard link elsewhere to that file keeps its content.
        keep: Leave what was written behind after an exception, and go on after what an earlier
            process left, complete or not: ``size`` bytes, until `rewind`.

    Attributes:
        size: Bytes written so far.

    Raises:
        FormatError: If ``path`` is a link, a folder or anything else than a regular file, or
            lies in the Hub cache.
        BusyError: If another process is writing it.
        OSError: If the file cannot be created.

    Examples:
        >>> with AtomicFile("notes.txt") as file:
        ...     file.write(b"all of it")
        >>> Path("notes.txt").read_text()
        'all of it'
    """

    def __init__(self, path: str | os.PathLike[str], *, keep: bool = False) -> None:
        self.path = Path(path)
        _check_target(self.path)
        self._keep = keep
        self._temporary = temporary_name(self.path)
        with naming(self.path):
            self._descriptor = self._opened()
        self.size = os.fstat(self._descriptor).st_size

    @property
    def closed(self) -> bool:
        """Tell whether the file was committed or abandoned."""
        return self._descriptor < 0

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes.

        Raises:
            OSError: If the system refuses, a full disk for example.
        """
        with naming(self.path):
            write_all(self._descriptor, data)
        self.size += memoryview(data).nbytes

    def read(self, start: int, count: int) -> bytes:
        """Return bytes written before; fewer where there are not so many."""
        with naming(self.path):
            return os.pread(self._descriptor, count, start)

    def rewind(self, size: int) -> None:
        """Drop all but the first ``size`` bytes; the next ones are written there."""
        with naming(self.path):
            os.ftruncate(self._descriptor, size)
            os.lseek(self._descriptor, size, os.SEEK_SET)
        self.size = size

    def commit(self) -> None:
        """Force the bytes to the disk and give the file its name."""
        with naming(self.path):
            sync(self._descriptor)
            if not is_still(self._temporary, self._descriptor):
                raise BusyError(self.path, "another process")  # on a file system without locks
            os.replace(self._temporary, self.path)
            self._close()
            sync_path(self.path.parent)

    def abandon(self) -> None:
        """Remove what was written, unless it is to be kept."""
        if self.closed:
            return
        try:
            with suppress(OSError):  # what made this necessary is the error to see
                if not self._keep and is_still(self._temporary, self._descriptor):
                    os.unlink(self._temporary)
        finally:
            self._close()

    def _opened(self) -> int:
        """Open the temporary file and lock it; one that nobody locks was left by a dead process."""
        if self._keep and self.path.exists():
            os.replace(self.path, self._temporary)
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        while True:
            descriptor = os.open(self._temporary, flags, 0o666)
            try:
                if not try_lock(descriptor):
                    raise BusyError(self.path, "another process")
                if is_still(self._temporary, descriptor):
                    self._prepare(descriptor)
                    return descriptor
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)  # its holder had just renamed or removed it

    def _prepare(self, descriptor: int) -> None:
        """Empty what is there, or go to its end; refuse it where a name elsewhere shares it."""
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
            reason = "not a file of this package, and in the way of one"
            raise FormatError.about(self._temporary, reason, "remove it")
        if self._keep:
            os.lseek(descriptor, 0, os.SEEK_END)
        elif status.st_size:
            os.ftruncate(descriptor, 0)

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1  # first: an interrupt may follow
        os.close(descriptor)

    def leave(self, error: BaseException | None) -> None:
        """Commit the file, or abandon it after an error."""
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
        FormatError: If the file cannot be replaced; see `AtomicFile`.
        TypeError: If JSON cannot hold the type.
        OSError: If the system refuses.

    Examples:
        >>> write_json("options.json", {"rank": 4})
        >>> print(Path("options.json").read_text(), end="")
        {
          "rank": 4
        }
    """
    try:
        text = json.dumps(value, indent=2, ensure_ascii=False).encode()
    except UnicodeEncodeError:  # a path that is no UTF-8
        text = json.dumps(value, indent=2).encode()
    with AtomicFile(path) as file:
        file.write(text + b"\n")


def copy_file(
    source: str | os.PathLike[str], target: str | os.PathLike[str], *, home: Path | None = None
) -> None:
    """Copy the content of a regular file; the copy is complete or not there.

    Args:
        source: File to read.
        target: File to write; see `AtomicFile`.
        home: Folder of ``source`` that no link may leave; see `member`.

    Raises:
        FormatError: If ``source`` is not a regular file, or ``target`` cannot be replaced.
        OSError: If the system refuses.

    Examples:
        >>> write_json("options.json", {"rank": 4})
        >>> copy_file("options.json", "copy.json")
        >>> sha256_file("copy.json") == sha256_file("options.json")
        True
    """
    with open_regular(Path(source), home=home) as stream, AtomicFile(target) as file:
        while piece := _read(stream.fileno(), source):
            file.write(piece)


def _read(descriptor: int, path: str | os.PathLike[str]) -> bytes:
    with naming(path):
        return os.read(descriptor, _PIECE)


def write_all(descriptor: int, data: bytes | memoryview) -> None:
    """Write every byte to an open file; the system may take fewer at a time."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def sha256_file(path: str | os.PathLike[str], start: int = 0, stop: int | None = None) -> str:
    """Return the SHA-256 of a regular file, as 64 hexadecimal digits.

    Args:
        path: The file.
        start: First byte that counts.
        stop: Byte after the last one that counts; by default the end of the file.

    Examples:
        >>> _ = Path("empty").write_bytes(b"")
        >>> sha256_file("empty")[:16]
        'e3b0c44298fc1c14'
    """
    digest = hashlib.sha256()
    with open_regular(Path(path)) as stream, naming(path):
        left = math.inf if stop is None else stop - start
        while piece := os.pread(stream.fileno(), int(min(left, _PIECE)), start):
            digest.update(piece)
            start, left = start + len(piece), left - len(piece)
    return digest.hexdigest()


def json_digest(value: Any, then: Iterable[bytes | memoryview] = ()) -> str:
    """Return the SHA-256 of a value in the types of JSON, as 64 hexadecimal digits.

    It is that of the text of ``json.dumps`` in ASCII with the keys of objects in order, so mappings
    that are equal have one digest.

    Args:
        value: The value.
        then: Bytes that count too, after the text.

    Raises:
        TypeError: If JSON cannot hold the type.

    Examples:
        >>> json_digest({"rank": 4, "bits": 2}) == json_digest({"bits": 2, "rank": 4})
        True
        >>> json_digest([])[:16]
        '4f53cda18c2baa0c'
    """
    digest = hashlib.sha256(json.dumps(value, sort_keys=True).encode())
    for piece in then:
        digest.update(piece)
    return digest.hexdigest()


def temporary_name(path: Path) -> Path:
    """Return the name of a file while it is being written.

    Examples:
        >>> temporary_name(Path("model.safetensors")).name
        '.model.safetensors.tmp'
    """
    return path.with_name(f".{path.name}.tmp")


def sync(descriptor: int) -> None:
    """Force an open file to the disk.

    Examples:
        >>> with open("log", "wb") as file:
        ...     sync(file.fileno())
    """
    if sys.platform == "darwin":  # where fsync stops at the drive's own cache
        with suppress(OSError):
            fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
            return
    os.fsync(descriptor)


def sync_path(path: Path) -> None:
    """Force a file, or the names in a folder, to the disk.

    Examples:
        >>> sync_path(Path("."))
    """
    with naming(path):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            sync(descriptor)
        finally:
            os.close(descriptor)


def _check_target(path: Path) -> None:
    if os.path.lexists(path) and not stat.S_ISREG(os.lstat(path).st_mode):
        reason = "a link, a folder or a device, which is not written through"
        raise FormatError.about(path, reason, "choose another name")
    if in_hub_cache(path):
        raise FormatError.about(path, "it lies in the Hub cache", "choose another folder")
