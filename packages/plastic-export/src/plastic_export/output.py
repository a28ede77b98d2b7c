"""A folder that is either complete or not there."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from plastic_runtime.files import FormatError, sync_path

_OURS = "plastic.json"


class OutputFolder:
    """A new folder that gets its name when it is complete. A context manager.

    ``with OutputFolder(path) as folder`` gives a folder to fill, ``.<name>.partial-<process>``
    beside its place. Leaving the block forces everything to the disk and renames; leaving
    it by an exception removes what was written, and parents that were made for it. A folder
    that is replaced stays as it was until the new one is complete.

    Args:
        path: Name of the folder.
        force: Replace a folder of that name, with all it holds, if that includes
            ``plastic.json``.
        source: Folder that is being read meanwhile.

    Raises:
        FormatError: If ``path`` is not empty and ``force`` is not set, or the folder is not
            one of ours; if it is a link or a file, lies in the Hub cache, or is or holds
            the source.
        OSError: On entering or leaving, if the system refuses.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        force: bool = False,
        source: str | os.PathLike[str] | None = None,
    ) -> None:
        self.path = Path(os.path.abspath(path))
        self._force = force
        self._partial = self._beside("partial")
        self._made: list[Path] = []
        _check_place(self.path, force)
        if source is not None and Path(source).resolve().is_relative_to(self.path.resolve()):
            reason = "the checkpoint that is read lies there"
            raise FormatError.about(self.path, reason, "choose another folder")

    def __enter__(self) -> Path:
        self._made = [parent for parent in self.path.parents if not parent.exists()]
        self._partial.mkdir(parents=True)
        return self._partial

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                self._commit()
        finally:
            shutil.rmtree(self._partial, ignore_errors=True)
            with suppress(OSError):  # not empty, which is how it is after success
                for parent in self._made:
                    parent.rmdir()

    def _commit(self) -> None:
        for folder, _, names in os.walk(self._partial):
            for name in (*names, "."):
                sync_path(Path(folder, name))
        _check_place(self.path, self._force)  # somebody else may have filled it meanwhile
        replaced = self._beside("replaced")
        with suppress(FileNotFoundError):
            os.rename(self.path, replaced)
        try:
            os.rename(self._partial, self.path)
        except BaseException:
            with suppress(FileNotFoundError):
                os.rename(replaced, self.path)
            raise
        sync_path(self.path.parent)
        shutil.rmtree(replaced, ignore_errors=True)

    def _beside(self, purpose: str) -> Path:
        return self.path.with_name(f".{self.path.name}.{purpose}-{os.getpid()}")


def _check_place(path: Path, force: bool) -> None:
    """Refuse a place where a folder must not be written."""

    def refused(reason: str, remedy: str = "choose another folder") -> FormatError:
        return FormatError.about(path, reason, remedy)

    parents = Path(os.path.realpath(path)).parents
    if any(parent.name.startswith("models--") for parent in parents):
        raise refused("it lies in the Hub cache")
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise refused("it is a link or a file")
    if not path.exists() or not any(path.iterdir()):
        return
    if not (path / _OURS).is_file():
        raise refused(f"the folder is not empty and holds no {_OURS}")
    if not force:
        raise refused("the folder is not empty", "choose another one, or replace it with --force")
