"""A folder that is either complete or not there, and that a run which was cut can go on with."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Container, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from plastic_core.files import (
    HOLDER,
    FolderLock,
    FormatError,
    Journal,
    beside,
    check_same,
    files_under,
    in_hub_cache,
    partial_of,
    read_json,
    sync_path,
)
from plastic_runtime.dialling import MANIFEST

from plastic_export.checkpoint.plain_path import is_plain
from plastic_export.checkpoint.warning import warn_about
from plastic_export.folder.foreign import (
    JOURNAL,
    RESERVED,
    carry_over,
    check_apart,
    check_free,
    move_newer,
    remove_foreign,
)


class OutputFolder:
    """A new folder that gets its name when it is complete. A context manager.

    ``with OutputFolder(path) as folder`` gives a folder to fill, ``.<name>.partial`` beside its
    place, locked so that no other process fills it. Leaving the block forces everything to the
    disk and renames; leaving it by an exception removes what was written, and parents that were
    made for it. A folder that is replaced stays as it was until the new one is complete; files in
    it that its manifest does not list are not ours, and are there afterwards as before.

    After `begin` the folder outlives a run that was killed, interrupted or refused by the system,
    and the next one goes on with it where ``resume`` is set. Where that was of another identity it
    is refused, and with ``force`` it begins anew.

    Args:
        path: Name of the folder.
        force: Replace a folder of that name, if it holds ``plastic.json``, and what a run of
            another identity left.
        source: Folder that is being read meanwhile.
        resume: Go on with what an earlier run left, if it left something.

    Attributes:
        path: Name of the folder, absolute.
        journal: What is finished; None before `begin`.

    Raises:
        FormatError: If ``path`` is not empty and ``force`` is not set, or the folder is not
            one of ours; if it is a link or a file, lies in the Hub cache, or is or holds
            the source. With ``resume``, what is in the folder is judged by `begin`. On leaving,
            if a foreign file has the name of one that was written; see `check_names`.
        BusyError: On entering, if another process is filling the folder.
        OSError: On entering or leaving, if the system refuses.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        force: bool = False,
        source: str | os.PathLike[str] | None = None,
        resume: bool = False,
    ) -> None:
        self.path = Path(os.path.abspath(path))
        self.journal: Journal | None = None
        self._force, self._resume = force, resume
        self._partial, self._replaced = partial_of(self.path), beside(self.path, "replaced")
        self._made: list[Path] = []
        self._lock: FolderLock | None = None
        self._complete = False
        if not self._replaced.exists():  # else to be judged once that is put in order
            _check_place(self.path, force or resume)
        if source is not None and Path(source).resolve().is_relative_to(self.path.resolve()):
            reason = "the checkpoint that is read lies there"
            raise FormatError.about(self.path, reason, "choose another folder")
        if not is_plain(self.path):
            reason = "mlx-lm itself cannot open a folder whose path holds [, * or ? or is no UTF-8"
            warn_about(self.path, reason, "rename it before you run it")

    @property
    def folder(self) -> Path:
        """Return where the files are at the moment."""
        return self.path if self._complete else self._partial

    @property
    def started(self) -> Journal:
        """The journal, once `begin` has opened it."""
        assert self.journal is not None
        return self.journal

    def check_names(self, written: Iterable[str], copied: Mapping[str, Path]) -> None:
        """Refuse before the work what would be refused after it: foreign files in its way.

        Args:
            written: Glob patterns of what is to be written, besides what every output may hold.
            copied: Files that are to be copied, by their place in it.

        Raises:
            FormatError: If the folder holds such files; it names them.
        """
        if self._force:  # else nothing is replaced
            check_free(self.path, [*RESERVED, *written], copied)

    def left_bytes(self) -> int:
        """Return the bytes that an earlier run left and this one does not write again."""
        files = self._partial.rglob("*") if self._resume else ()
        return sum(path.stat().st_size for path in files if path.is_file())

    def begin(self, identity: Mapping[str, Any]) -> bool:
        """Open the journal: the run can be resumed from now on.

        Args:
            identity: All that the content depends on, by name, in the types of JSON: what the
                manifest of the finished folder says under these names.

        Returns:
            Whether there is anything left to do. False where an earlier run of the same identity
            had finished; leaving the block then does what it had no time to do.

        Raises:
            FormatError: If an earlier run had another identity; the first difference is named.
            OSError: If the system refuses.
        """
        wanted: dict[str, Any] = json.loads(json.dumps(identity))
        if self._resume and not self._force and (self.path / MANIFEST).is_file():
            _check_identity(self.path, _stated(self.path, wanted), wanted)
            self._complete = True
            return False
        _check_place(self.path, self._force)
        if not (self._partial / JOURNAL).is_file() and (self._partial / MANIFEST).is_file():
            there = _stated(self._partial, wanted)
            if not self._force:
                _check_identity(self._partial, there, wanted)
            if there == wanted:
                remove_foreign(self._partial)
                return False
        self.journal = self._begun(wanted)
        return True

    def _begun(self, wanted: dict[str, Any]) -> Journal:
        """Return the journal of this run: that of an earlier one to go on with, or a new one."""
        journal = Journal(self._partial / JOURNAL)
        try:
            if journal.records and not self._force:
                _check_identity(self._partial, journal.records[0], wanted)
            if journal.records and journal.records[0] == wanted:
                (self._partial / MANIFEST).unlink(missing_ok=True)
                return journal
            journal.close()
            _clear(self._partial)  # what is there was written for something else, or for nothing
            journal = Journal(self._partial / JOURNAL)
            journal.append(wanted)
        except BaseException:
            journal.close()
            raise
        return journal

    def __enter__(self) -> Path:
        self._made = [parent for parent in self.path.parents if not parent.exists()]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        _check_ours(self._partial)
        _check_ours(self._replaced)
        self._lock = FolderLock(self._partial)
        try:
            self._recover()
            if not self._resume:
                _check_place(self.path, self._force)
        except BaseException:
            self._leave()
            raise
        return self._partial

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None and self._is_worth_keeping(error):
            if self.journal is not None:
                waits = f"what is finished waits in {self._partial}"
                error.add_note(f"{waits}: the same command goes on with it")
            self._close()
            return
        try:
            if error is None and not self._complete:
                self._commit()
        finally:
            self._leave()

    def _is_worth_keeping(self, error: BaseException) -> bool:
        """Tell whether a later run could go on: not after bad input, nor before the first step."""
        if self.journal is None:  # what an earlier run left is not this one's to remove
            left = (self._partial / JOURNAL, self._partial / MANIFEST)
            return self._resume and any(path.exists() for path in left)
        return len(self.journal.records) > 1 and not isinstance(error, ValueError | TypeError)

    def _recover(self) -> None:
        """Finish or undo a replacement that was cut, and clear what is not to be gone on with."""
        if not os.path.lexists(self.path) and self._replaced.exists():
            os.rename(self._replaced, self.path)
        self._remove_replaced()
        if not self._resume:
            _clear(self._partial)

    def _commit(self) -> None:
        files = files_under(self._partial)
        for path in [*files, *{path.parent for path in files}]:
            sync_path(path)
        _check_place(self.path, self._force)  # somebody else may have filled it meanwhile
        foreign = check_apart(self.path, self._partial)
        self._clean()
        carry_over(self.path, self._partial, foreign)
        with suppress(FileNotFoundError):
            os.rename(self.path, self._replaced)
        try:
            os.rename(self._partial, self.path)
        except BaseException:
            with suppress(FileNotFoundError):
                os.rename(self._replaced, self.path)
            raise
        sync_path(self.path.parent)
        with suppress(OSError):  # the next run removes it
            self._remove_replaced()

    def _remove_replaced(self) -> None:
        """Remove the old folder, once the new one has all that is foreign in it."""
        if self._replaced.exists():
            move_newer(self._replaced, self.path)
            _remove(self._replaced)

    def _clean(self) -> None:
        """Leave nothing in the folder but what it is for."""
        assert self._lock is not None
        if self.journal is not None:
            self.journal.close()
        (self._partial / JOURNAL).unlink(missing_ok=True)
        self._lock.unsign()
        sync_path(self._partial)

    def _leave(self) -> None:
        """Remove what is not complete, and parents that nothing came into."""
        with suppress(OSError):  # the next run removes it
            _remove(self._partial)
        self._close()
        with suppress(OSError):  # not empty, which is how it is after success
            for parent in self._made:
                parent.rmdir()

    def _close(self) -> None:
        if self.journal is not None:
            self.journal.close()
        if self._lock is not None:
            self._lock.release()


def _stated(folder: Path, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the manifest of a finished folder says of the run that wrote it."""
    manifest = read_json(folder / MANIFEST)
    return {name: manifest.get(name) for name in wanted}


def _check_identity(folder: Path, there: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    remedy = "choose another folder, or replace it with --force"
    check_same(folder, there, wanted, remedy=remedy)


def _clear(folder: Path, *, but: Container[str] = (HOLDER,)) -> None:
    """Remove everything from a folder but the files that say that it is ours."""
    for entry in list(os.scandir(folder)):
        if entry.is_dir(follow_symlinks=False):
            for parent, _, _ in os.walk(entry.path):  # a foreign one may be for reading alone
                os.chmod(parent, 0o700)
            shutil.rmtree(entry.path)
        elif entry.name not in but:
            os.unlink(entry.path)


def _remove(folder: Path) -> None:
    """Remove a folder of ours; one that was half removed when the process died is still ours."""
    if folder.exists():
        _clear(folder, but=(HOLDER, MANIFEST))
        for name in (MANIFEST, HOLDER):
            (folder / name).unlink(missing_ok=True)
        folder.rmdir()


def _check_ours(folder: Path) -> None:
    """Refuse to touch a folder of a hidden name that this class did not make."""
    if not os.path.lexists(folder):
        return
    is_folder = folder.is_dir() and not folder.is_symlink()
    names = set(os.listdir(folder)) if is_folder else set()
    if not is_folder or (names and not names & {HOLDER, MANIFEST}):
        reason = "not a folder of this package, and in the way of one"
        raise FormatError.about(folder, reason, "remove it")


def _check_place(path: Path, force: bool) -> None:
    """Refuse a place where a folder must not be written."""

    def refused(reason: str, remedy: str = "choose another folder") -> FormatError:
        return FormatError.about(path, reason, remedy)

    if in_hub_cache(path):
        raise refused("it lies in the Hub cache")
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise refused("it is a link or a file")
    if not path.exists() or not any(path.iterdir()):
        return
    if not (path / MANIFEST).is_file():
        raise refused(f"the folder is not empty and holds no {MANIFEST}")
    if not force:
        raise refused("the folder is not empty", "choose another one, or replace it with --force")
