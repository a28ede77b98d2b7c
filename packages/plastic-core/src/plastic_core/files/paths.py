"""Files of other people's folders, opened without blocking or following a link outside."""

from __future__ import annotations

import errno
import io
import os
import re
import stat
from pathlib import Path
from typing import NoReturn

from plastic_core.files.errors import FormatError

_CACHED = re.compile(r"(models|datasets|spaces)--")
_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def open_regular(path: Path, *, home: Path | None = None) -> io.FileIO:
    """Open a regular file for reading, unbuffered.

    A pipe, socket, device or directory is refused, and opening it does not wait.

    Args:
        path: File to open. A link is followed.
        home: Folder of the file, where no link may leave it; see `member`.

    Returns:
        The open file. What it is was checked on the descriptor, not on the name.

    Raises:
        FormatError: If it is not a regular file, a link to nothing or, with ``home``, one that
            leaves the folder.
        OSError: If it does not exist or cannot be opened.

    Examples:
        >>> _ = Path("a.txt").write_text("text")
        >>> with open_regular(Path("a.txt")) as file:
        ...     file.read()
        b'text'
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise _explained(path, error) from None
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            raise _not_regular(path, mode)
        if home is not None:
            _check_home(home, path, descriptor)
        return io.FileIO(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def member(folder: Path, name: str) -> Path | None:
    """Return where the file ``name`` of a folder really lies, or None if there is none.

    Args:
        folder: Folder that the user named.
        name: Name of a file in it, or of one in a folder in it.

    Returns:
        The path with every link resolved.

    Raises:
        FormatError: If it is not a regular file, is a link to nothing, or is a link that
            leaves the folder for anything but the ``blobs`` of the same repository in
            the Hub cache.

    Examples:
        >>> member(Path("."), "missing.json") is None
        True
    """
    path = folder / name
    if not os.path.lexists(path):
        return None
    target = Path(os.path.realpath(path))
    try:
        mode = target.stat().st_mode
    except OSError as error:
        raise _explained(path, error) from None
    if not stat.S_ISREG(mode):
        raise _not_regular(path, mode)
    home = folder.resolve()
    in_cache = home.parent.name == "snapshots" and target.parent == home.parent.parent / "blobs"
    if not (target.is_relative_to(home) or in_cache):
        raise FormatError.about(
            path, f"a link that leaves the folder, to {target}", "put the file itself there"
        )
    return target


def files_under(folder: Path) -> list[Path]:
    """Return every file under a folder, sorted.

    Raises:
        OSError: If a folder in it cannot be read, which ``Path.rglob`` passes over.

    Examples:
        >>> Path("sub").mkdir()
        >>> _ = Path("b.txt").write_text(""), Path("sub/a.txt").write_text("")
        >>> [str(path) for path in files_under(Path("."))]
        ['b.txt', 'sub/a.txt']
    """

    def refused(error: OSError) -> NoReturn:
        raise error

    walk = os.walk(folder, onerror=refused)
    return sorted(Path(parent, name) for parent, _, names in walk for name in names)


def in_hub_cache(path: Path) -> bool:
    """Tell whether a path, every link in it resolved, lies in a repository of a Hub cache.

    Examples:
        >>> in_hub_cache(Path("hub/models--owner--name/snapshots/1f2e/config.json"))
        True
    """
    real = Path(os.path.realpath(path))
    return any(_CACHED.match(parent.name) for parent in real.parents)


def beside(path: str | os.PathLike[str], purpose: str) -> Path:
    """Return a hidden name beside a folder, for what is on its way to or from there.

    Examples:
        >>> beside("/models/small", "partial").name
        '.small.partial'
    """
    whole = Path(os.path.abspath(path))
    return whole.with_name(f".{whole.name}.{purpose}")


def partial_of(folder: str | os.PathLike[str]) -> Path:
    """Return where an output is while it is written: beside its place.

    Examples:
        >>> partial_of("/models/small").name
        '.small.partial'
    """
    return beside(folder, "partial")


def hub_identity(folder: Path) -> tuple[str, str] | None:
    """Return the repository and commit of a snapshot folder in the Hub cache, else None.

    Examples:
        >>> hub_identity(Path("hub/models--owner--name/snapshots/1f2e"))
        ('owner/name', '1f2e')
    """
    home = folder.resolve()
    repository = home.parent.parent.name
    if home.parent.name != "snapshots" or not repository.startswith("models--"):
        return None
    return repository.removeprefix("models--").replace("--", "/"), home.name


def _check_home(home: Path, path: Path, descriptor: int) -> None:
    """Compare what was opened with what `member` approves: nobody may put another in between."""
    target = member(home, os.path.relpath(path, home))
    if target is None or not os.path.samestat(os.stat(target), os.fstat(descriptor)):
        raise FormatError.about(path, "exchanged while it was being opened", "start again")


def _explained(path: Path, error: OSError) -> OSError | FormatError:
    """Say what the system's error means where the file, not the system, is to blame."""
    if error.errno == errno.ENOENT and path.is_symlink():
        reason = f"a link to {os.readlink(path)}, which does not exist"
        return FormatError.about(path, reason, "download the file again")
    if error.errno == errno.ELOOP:
        return FormatError.about(path, "a link that leads back to itself", "remove it")
    if error.errno in (errno.ENXIO, errno.EOPNOTSUPP):  # a socket, on Linux and on macOS
        return _not_regular(path, path.stat().st_mode)
    return error


def _not_regular(path: Path, mode: int) -> FormatError:
    kind = _KINDS.get(stat.S_IFMT(mode), "something else")
    return FormatError.about(path, f"{kind}, not a regular file", "name a safetensors file")
