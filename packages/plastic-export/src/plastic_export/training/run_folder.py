"""The folder of a training run: its file names, and the file that identifies the run."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from plastic_core.files import HOLDER, FolderLock, FormatError, check_same, write_json
from plastic_runtime.training import OTHER_RUN_REMEDY

from plastic_export.folder.adapter_files import PEFT_FOLDER, RUN_FILE, SIZES_FILE
from plastic_export.folder.run_files import BEST, DIAL, GENERATIONS
from plastic_export.training.record_file import read_versioned

VERSION = 1
HALF_WRITTEN = (
    f".{RUN_FILE}*.tmp",
    f".{DIAL}*.tmp",
    f".{SIZES_FILE}*.tmp",
    f"{GENERATIONS}/.step-*.tmp",
    f"{BEST}/.step-*.tmp",
    "adapters/.adapter*.tmp",
    f"{PEFT_FOLDER}/.adapter*.tmp",
)
"""What a kill may leave of the files of a run; no other temporary file there is ours."""


@dataclass(frozen=True)
class RunFile:
    """The identity of a run, written before its first step.

    Attributes:
        identity: All that its course depends on, by name: base, data, options, versions.
        ranks: Rank of every managed layer at the start, by path.
        bytes_awake: Bytes that their adapters would take at the start.
        max_bytes: Ceiling on the bytes awake, None for none.
    """

    identity: dict[str, Any]
    ranks: dict[str, int]
    bytes_awake: int
    max_bytes: int | None

    def write(self, path: Path) -> None:
        """Write it: complete or not at all."""
        write_json(path, {"version": VERSION, **asdict(self)})


def read_run_file(path: Path) -> RunFile:
    """Read what `RunFile.write` wrote.

    Raises:
        FormatError: If it is damaged, or of another version.
        OSError: If it cannot be read.
    """
    record = read_versioned(path, VERSION)
    fields: dict[str, Any] = {name: record.get(name) for name in RunFile.__dataclass_fields__}
    ceiling = fields["max_bytes"]
    sound = (
        isinstance(fields["identity"], dict)
        and isinstance(fields["ranks"], dict)
        and all(type(rank) is int and rank >= 0 for rank in fields["ranks"].values())
        and type(fields["bytes_awake"]) is int
        and (ceiling is None or type(ceiling) is int)
    )
    if not sound:
        raise FormatError.about(path, "a field is missing or of the wrong type", "delete the run")
    return RunFile(**fields)


@contextmanager
def claimed(out: Path, run: RunFile) -> Iterator[None]:
    """Hold the folder of a run: a new one, or that of this very run, swept of half-written files.

    Raises:
        FormatError: If it is a file, holds something else, or another run: the difference is named.
        BusyError: If another process is training there.
        OSError: If the system refuses.
    """
    _check_place(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    lock = FolderLock(out)
    try:
        _check_place(out)
        if (out / RUN_FILE).is_file():
            earlier = read_run_file(out / RUN_FILE).identity
            check_same(out / RUN_FILE, earlier, run.identity, remedy=OTHER_RUN_REMEDY)
        for stray in (path for pattern in HALF_WRITTEN for path in out.glob(pattern)):
            stray.unlink(missing_ok=True)
        if not (out / RUN_FILE).is_file():
            run.write(out / RUN_FILE)
        yield
    finally:
        lock.unsign()
        lock.release()


def _check_place(out: Path) -> None:
    """Refuse a place that is not ours."""
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise FormatError.about(out, "it is a link or a file", "choose another folder")
    if (out / RUN_FILE).is_file() or not out.exists():
        return
    begun = re.compile(rf"{re.escape(HOLDER)}|\.{re.escape(RUN_FILE)}\..*tmp")
    if all(begun.fullmatch(name) for name in os.listdir(out)):
        return
    reason = f"the folder is not empty and holds no {RUN_FILE}"
    raise FormatError.about(out, reason, "choose another folder")
