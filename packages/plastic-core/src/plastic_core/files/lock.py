"""One writer at a time: a lock that the system drops when its holder dies, however it dies."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shlex
import socket
import sys
from contextlib import suppress
from pathlib import Path

from plastic_core.files.notes import naming

HOLDER = ".holder.json"
"""Name of the file in a locked folder that says who holds it."""

_TO_LOCK = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC  # a folder itself
_NO_LOCKS_HERE = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


class BusyError(BlockingIOError):
    """Another process is writing there. The message names it where it is known.

    Examples:
        >>> print(BusyError("out", "process 7"))
        [Errno ...] in use by process 7; wait for it or stop it: 'out'
    """

    def __init__(self, path: str | os.PathLike[str], holder: str) -> None:
        super().__init__(errno.EBUSY, f"in use by {holder}; wait for it or stop it")
        self.filename = os.fspath(path)


def try_lock(descriptor: int) -> bool:
    """Lock an open file or folder for this process alone, without waiting.

    The lock belongs to the descriptor: the system drops it when the last copy is closed, and so
    when the process dies. On a file system without locks every attempt succeeds.

    Returns:
        Whether it was got.

    Raises:
        OSError: If the system refuses for another reason than a holder.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS_HERE:
            raise
    return True


class FolderLock:
    """The right to write into a folder, which is made where it is missing.

    Taken when the object is made, given back by `release` or by the death of the process. Who
    holds it stands in the folder in ``.holder.json``: process, host and command line.

    Args:
        folder: The folder; its parent exists.

    Attributes:
        folder: The folder.

    Raises:
        BusyError: If another process holds it; the message names it.
        OSError: If the folder cannot be made, opened or written to.

    Note:
        ``flock`` on the folder itself, so that nothing is left behind and a renaming keeps it.
        Some network file systems grant such a lock to every host at once.

    Examples:
        >>> lock = FolderLock("out")
        >>> FolderLock("out")
        Traceback (most recent call last):
        plastic_core...BusyError: ... in use by process ...
        >>> lock.release()
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self._descriptor = self._locked()
        try:
            self._sign()
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Give it back; the folder may have another name by now. A second call does nothing."""
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1  # first: an interrupt may follow
            os.close(descriptor)

    def unsign(self) -> None:
        """Remove the holder's name, so that the folder holds nothing but what it is for."""
        with suppress(FileNotFoundError):
            os.unlink(self.folder / HOLDER)

    def _locked(self) -> int:
        while True:
            with suppress(FileExistsError):
                os.mkdir(self.folder)
            descriptor = os.open(self.folder, _TO_LOCK)
            try:
                if not try_lock(descriptor):
                    raise BusyError(self.folder, _holder(self.folder))
                if is_still(self.folder, descriptor):
                    return descriptor
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)  # its holder had just renamed or removed it

    def _sign(self) -> None:
        record = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "command": shlex.join(sys.argv),
        }
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        with naming(self.folder / HOLDER):
            descriptor = os.open(self.folder / HOLDER, flags, 0o666)
            try:
                os.write(descriptor, json.dumps(record).encode())
            finally:
                os.close(descriptor)


def check_unheld(folder: str | os.PathLike[str]) -> None:
    """Refuse a folder that another process holds by a `FolderLock`; nothing is written to it.

    Args:
        folder: The folder; it need not exist.

    Raises:
        BusyError: If one does; the message names it.
        OSError: If the system refuses.

    Examples:
        >>> check_unheld("nowhere")
        >>> lock = FolderLock("out")
        >>> check_unheld("out")
        Traceback (most recent call last):
        plastic_core...BusyError: ... in use by process ...
        >>> lock.release()
    """
    try:
        descriptor = os.open(folder, _TO_LOCK)
    except (FileNotFoundError, NotADirectoryError):
        return
    try:
        if not try_lock(descriptor):
            raise BusyError(folder, _holder(Path(folder)))
    finally:
        os.close(descriptor)


def is_still(path: Path, descriptor: int) -> bool:
    """Tell whether a name still belongs to the file or folder that was opened by it."""
    opened = os.fstat(descriptor)
    try:
        there = os.lstat(path)
    except FileNotFoundError:
        return False
    return (there.st_dev, there.st_ino) == (opened.st_dev, opened.st_ino)


def _holder(folder: Path) -> str:
    """Who holds a folder, as far as its file says; it may be just about to be written."""
    try:
        record = json.loads((folder / HOLDER).read_bytes()[:65536])
        return f"process {record['pid']:d} on {record['host']} ({record['command']:.200})"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
