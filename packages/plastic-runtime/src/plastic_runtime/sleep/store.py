"""A store of components asleep on disk: durable before they leave memory, until a run is saved."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
from plastic_core import Factors
from plastic_core.factors import BITS
from plastic_core.files import Closing, FolderLock, FormatError, sync_path

from plastic_runtime.sleep.coding import draft, load
from plastic_runtime.sleep.record import (
    TEMPORARY,
    Draft,
    Entry,
    Record,
    read_record,
    record_files,
    sequence_of,
    write_record,
)
from plastic_runtime.sleep.sleep_dict import Moments, Parked, SleepDict

GROUP_BYTES = 2**30
"""Bytes of tensors that a file written by ``compact`` holds, unless one component has more."""

GROUP_COMPONENTS = 4096


class SleepStore(SleepDict, Closing):
    """Components asleep in a folder on disk. A ``SleepDict``, and a context manager.

    The folder holds records, files that are written once and never changed: each adds
    components, or says which are asleep no longer. What is promised:

    - When ``park`` returns, the components are on the disk, synced under their final name.
    - ``take`` removes them from this object alone. They leave the disk's list when ``release`` is
      called, which ``save_run`` does once the file that holds them awake is on the disk; and their
      bytes go when ``compact`` is called.
    - So a crash at any moment may leave a component both asleep and in a saved run, never in
      neither. ``load_run`` takes the saved run's word on which of the two counts.
    - A number (id) is never given to two components, crashes included.
    - Bits never change, those of NaNs, of negative zeros and of subnormals included, unless
      ``bits`` is given. Every byte is under a digest: a changed one is an error that names the
      file, the tensor and the component (``verify_store``).
    - Opening reads headers alone. A component is in memory only while it is asked for.

    Args:
        folder: Made where it does not exist; else an earlier store, or empty.
        bits: Round what is parked to 2, 3, 4, 5, 6 or 8 bits per entry of U and Vh; S and the
            optimizer state stay exact. An entry moves by at most half of a 2^bits - 1 th of the
            range of its group of 64; ``error`` says what that makes of the component. One with
            NaN or infinities is stored as it is.

    Raises:
        ValueError: If ``bits`` is not offered.
        FormatError: If the folder is no store, or a record is damaged or missing.
        BusyError: If another process has it open; names it.
        OSError: If the system refuses.

    Cost:
        ``park``: one file, two syncs. ``take``, ``read``, ``get``: the bytes asked for, their
        digest included. Memory: about 2 kB per component.

    Examples:
        >>> with SleepStore("sleep") as store:
        ...     store.park("up", Factors(mx.eye(3, 1), mx.array([5.0]), mx.eye(1, 2)))
        (0,)
        >>> with SleepStore("sleep") as store:  # another process, another day
        ...     store.get(0).S.item()
        5.0
    """

    def __init__(self, folder: str | os.PathLike[str], *, bits: int | None = None) -> None:
        super().__init__()
        if bits is not None and bits not in BITS:
            raise ValueError(f"`bits` must be one of {BITS} or None, got {bits}.")
        self.folder = Path(folder)
        self.bits = bits
        make_folder(self.folder)
        self._lock: FolderLock | None = FolderLock(self.folder)
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        records = read_records(self.folder)
        self._base = max((r.base for r in records), default=1)
        self._sweep()
        self._sequence = max((r.sequence for r in records), default=0)
        self._next_id = max((r.next_id for r in records), default=0)
        self._on_disk: dict[int, Entry] = {}
        self._released: set[int] = set()
        for record in records:
            self._apply(record)
        if not records:
            self._append()
        self._asleep = {
            id: e for id, e in sorted(self._on_disk.items()) if id not in self._released
        }

    def park(self, path: str, factors: Factors, moments: Moments | None = None) -> tuple[int, ...]:
        """Store k components of one layer, as ``SleepDict.park``; they are durable on return.

        Raises:
            OSError: If they could not be written; the caller must keep them then.
        """
        parked = self._components(path, factors, moments)
        # Never given again, even if it is unknown whether the writing failed.
        self._next_id += len(parked)
        return self._add([draft(p, self.bits) for p in parked])

    def get(self, id: int) -> Parked:
        """Read one component, which stays asleep.

        Raises:
            ValueError: If no component of that id is asleep.
            FormatError: If its bytes have changed; names tensor and component.
        """
        return load(self._entry(id))

    def error(self, id: int) -> float:
        """Return a bound on how far a component is from the one parked, in the Frobenius norm.

        0.0 where it was stored in full.

        Raises:
            ValueError: If no component of that id is asleep.
        """
        coding = self._entry(id).coding
        return 0.0 if coding is None else float(coding["error"])

    def release(self) -> None:
        """Say that everything not asleep here is durable elsewhere.

        To be called when what woke is in a saved run on the disk; ``save_run`` does. What is
        released is not asleep for who opens the store next, but ``load_run`` of an earlier run
        still finds it until ``compact``.

        Raises:
            OSError: If it could not be written; nothing is released then.
        """
        gone = sorted(self._on_disk.keys() - self._asleep.keys() - self._released)
        if gone:
            self._append(released=gone)

    def compact(self) -> None:
        """Rewrite what is asleep, or not released, and delete the rest for good.

        Runs saved before the last one may name components that go. The old files are deleted
        when the new ones are on the disk, so as many bytes again must be free.

        Raises:
            FormatError: If a component is damaged; nothing is deleted then.
            OSError: If writing fails; nothing is deleted then.
        """
        kept = self._on_disk.keys() - (self._released - self._asleep.keys())
        drafts = [self._on_disk[id].draft() for id in sorted(kept)]
        *before, last = list(_groups(drafts)) or [[]]
        for group in before:
            self._append(group)
        base = self._sequence + 1 - len(before)
        self._append(last, base=base)
        for id in self._on_disk.keys() - kept:
            del self._on_disk[id]
        self._released &= kept
        self._asleep = {id: self._on_disk[id] for id in self._asleep}
        self._sweep()

    def arrays(self) -> dict[str, mx.array]:
        """Return nothing: a saved run names the components (``meta``), which stay here."""
        return {}

    def meta(self) -> dict[str, Any]:
        """Return which components are asleep, with their digests, ready for JSON."""
        digests = {str(id): dict(e.digests) for id, e in self._asleep.items()}
        return super().meta() | {"digests": digests}

    def load(self, arrays: Mapping[str, mx.array], meta: Mapping[str, Any]) -> None:
        """Let exactly the components be asleep that a saved run names.

        Those of a run that was saved with a ``SleepDict`` are written to the disk first.

        Raises:
            ValueError: If one is not on the disk, or not the one that was saved; nothing has
                changed then.
        """
        wanted = {int(id): path for id, path in meta["paths"].items()}
        digests = meta.get("digests")
        new = [] if digests is not None else self._drafts(arrays, meta)
        for id, digest in (digests or {}).items():
            entry = self._on_disk.get(int(id))
            if entry is None or entry.digests != digest:
                raise ValueError(
                    f"{self.folder}: component {id} of layer '{wanted[int(id)]}' is not in this "
                    "store; open the store that the run was saved with, as it was before "
                    "`compact`."
                )
        self._next_id = max(self._next_id, int(meta["next_id"]))
        if new:
            self._add(new)
        self._asleep = {id: self._on_disk[id] for id in sorted(wanted)}

    def close(self) -> None:
        """Let go of the folder. A second call does nothing."""
        if self._lock is not None:
            self._lock.unsign()
            self._lock.release()
            self._lock = None

    def _entries(self) -> Mapping[int, Entry]:
        return self._asleep

    def _forget(self, ids: Iterable[int]) -> None:
        for id in ids:
            del self._asleep[id]

    def _entry(self, id: int) -> Entry:
        if id not in self._asleep:
            raise ValueError(f"`id` must be that of a component asleep, got {id}.")
        return self._asleep[id]

    def _drafts(self, arrays: Mapping[str, mx.array], meta: Mapping[str, Any]) -> list[Draft]:
        """Return the components of a saved run that are not on the disk yet."""
        plain = SleepDict.from_arrays(arrays, meta)
        ids = [id for path in plain.paths() for id in plain.ids(path)]
        drafts = [draft(plain.get(id), self.bits) for id in sorted(ids)]
        taken = [d.id for d in drafts if d.id in self._on_disk]
        if taken:
            raise ValueError(
                f"{self.folder}: another component has the number {taken[0]} already; "
                "give the run an empty store."
            )
        return drafts

    def _add(self, drafts: list[Draft]) -> tuple[int, ...]:
        """Write components and let them be asleep."""
        record = self._append(drafts) if drafts else None
        self._asleep |= record.parked if record else {}
        return tuple(d.id for d in drafts)

    def _append(
        self, parked: list[Draft] | None = None, released: Iterable[int] = (), base: int = 0
    ) -> Record:
        base = base or self._base
        record = write_record(
            self.folder, self._sequence + 1, base, self._next_id, parked or [], released
        )
        self._sequence, self._base = record.sequence, record.base
        self._apply(record)
        return record

    def _apply(self, record: Record) -> None:
        """Take in what a record says."""
        self._on_disk |= record.parked
        self._released -= record.parked.keys()
        self._released |= set(record.released)

    def _sweep(self) -> None:
        """Delete what a crash left half-written, and what was rewritten."""
        names = [name for name in os.listdir(self.folder) if TEMPORARY.fullmatch(name)]
        old = [file for file in record_files(self.folder) if sequence_of(file) < self._base]
        for file in [*old, *(self.folder / name for name in names)]:
            file.unlink(missing_ok=True)


def read_records(folder: Path) -> list[Record]:
    """Read the headers of the records that count, oldest first.

    Raises:
        FormatError: If one is damaged or missing.
        OSError: If the system refuses.
    """
    records = [read_record(file) for file in record_files(folder)]
    base = max((r.base for r in records), default=1)
    records = [r for r in records if r.sequence >= base]
    sequences = {r.sequence for r in records}
    missing = sorted(set(range(base, max(sequences, default=0) + 1)) - sequences)
    if missing:
        reason = f"the record {missing[0]:08d}-*.safetensors is missing"
        raise FormatError.about(folder, reason, "put it back")
    return records


def verify_store(folder: str | os.PathLike[str]) -> list[str]:
    """Return what is wrong with a store: one line per defect, naming tensor and component.

    Args:
        folder: Folder of a ``SleepStore``; it is only read.

    Raises:
        FormatError: If it holds no record of sleep at all.
        OSError: If the system refuses.

    Cost:
        Reads every byte once; at most one tensor is in memory.

    Examples:
        >>> with SleepStore("sleep") as store:
        ...     ids = store.park("up", Factors(mx.eye(3, 1), mx.array([5.0]), mx.eye(1, 2)))
        >>> verify_store("sleep")
        []
    """
    folder = Path(folder)
    files = record_files(folder)
    if not files:
        raise FormatError.about(folder, "no sleep store", "name the folder of a SleepStore")
    defects: list[str] = []
    sound = []
    for file in files:
        try:
            sound.append(read_record(file))
        except FormatError as error:
            defects.append(str(error))
    defects += [d for record in sound for e in record.parked.values() for d in _defects(e)]
    if len(sound) == len(files):
        try:
            read_records(folder)
        except FormatError as error:
            defects.append(str(error))
    return defects


def is_store(folder: str | os.PathLike[str]) -> bool:
    """Tell whether a folder holds records of sleep.

    Examples:
        >>> is_store("nowhere")
        False
    """
    return Path(folder).is_dir() and bool(record_files(Path(folder)))


def make_folder(folder: Path) -> None:
    """Make the folder of a store, durably, or check the one there.

    Raises:
        FormatError: If it is not empty and no store.
    """
    if not folder.exists():
        folder.mkdir(parents=True)
        sync_path(folder.parent)
    names = [n for n in os.listdir(folder) if not n.startswith(".")]
    if names and not record_files(folder):
        reason = f"the folder is not empty and no sleep store (it holds {sorted(names)[0]!r})"
        raise FormatError.about(folder, reason, "choose another folder")


def _defects(entry: Entry) -> Iterator[str]:
    for name in entry.tensors:
        try:
            entry.read(name)
        except FormatError as error:
            yield str(error)


def _groups(drafts: list[Draft]) -> Iterator[list[Draft]]:
    """Yield groups of components that fit into one file."""
    group: list[Draft] = []
    filled = 0
    for each in drafts:
        if group and (filled + each.nbytes > GROUP_BYTES or len(group) == GROUP_COMPONENTS):
            yield group
            group, filled = [], 0
        group.append(each)
        filled += each.nbytes
    if group:
        yield group
