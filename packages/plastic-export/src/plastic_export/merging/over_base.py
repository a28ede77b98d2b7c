"""What an export is made from: a checkpoint, and the adapter that lies over it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from plastic_core.files import FormatError, read_json

from plastic_export.checkpoint.hub import is_repository
from plastic_export.checkpoint.reader import Checkpoint, open_checkpoint
from plastic_export.folder.adapter_files import CONFIG, FILE, FOLDER, adapter_of

RUN = "plastic-run.json"  # the file of a training run
NAMED_BASE = Path("peft") / CONFIG
"""Where a run names its base."""


@dataclass(frozen=True)
class OverBase:
    """A checkpoint and its adapter.

    Attributes:
        checkpoint: The checkpoint, open.
        adapter: Folder of the adapter in mlx-lm's form; None where there is none.
        is_adapter: Whether the adapter is what was named, and not the checkpoint.
    """

    checkpoint: Checkpoint
    adapter: Path | None
    is_adapter: bool


@contextmanager
def open_over_base(source: str, *, base: str | None, revision: str | None) -> Iterator[OverBase]:
    """Open what an export is made from.

    Args:
        source: Folder of a checkpoint, an output, a run or an adapter, or a Hub id.
        base: The checkpoint that an adapter belongs to; None for the one that its run names.
        revision: Commit, tag or branch of a Hub id.

    Yields:
        The checkpoint and its adapter.

    Raises:
        FormatError: If there is no such thing, or no base for an adapter.
        ValueError: If a base is given for a checkpoint.
        OSError: If the system refuses.
    """
    adapter = adapter_in(Path(source))
    if adapter is None:
        if base is not None:
            raise ValueError(f"`base` belongs to an adapter or a run, and {source} is neither.")
        with open_checkpoint(source, revision=revision) as checkpoint:
            yield OverBase(checkpoint, adapter_of(checkpoint.folder), is_adapter=False)
        return
    named = base or named_base(Path(source))
    with open_checkpoint(named, revision=revision if is_repository(named) else None) as checkpoint:
        yield OverBase(checkpoint, adapter, is_adapter=True)


def adapter_in(folder: Path) -> Path | None:
    """Return the folder of the adapter that a run or an adapter's folder holds; else None.

    Raises:
        FormatError: If a run has no adapter yet.
    """
    if (folder / RUN).is_file():
        if not (folder / FOLDER / FILE).is_file():
            reason = f"the run has no {FOLDER}/{FILE} yet"
            raise FormatError.about(folder, reason, "start the same `plastic train` again")
        return folder / FOLDER
    return folder if (folder / FILE).is_file() and (folder / CONFIG).is_file() else None


def named_base(folder: Path) -> str:
    """Return the base that a run or an adapter names: a folder that is there, or a Hub id.

    Raises:
        FormatError: If it names none that can be found.
    """
    files = (folder / NAMED_BASE, folder / CONFIG, folder.parent / NAMED_BASE)
    for file in files:
        named = read_json(file).get("base_model_name_or_path") if file.is_file() else None
        if isinstance(named, str) and (Path(named).is_dir() or is_repository(named)):
            return named
    reason = "it does not say which checkpoint it belongs to, or that is gone"
    raise FormatError.about(folder, reason, "name it with --base")
