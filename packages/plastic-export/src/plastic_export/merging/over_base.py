"""What an export is made from: a checkpoint, and the adapter that lies over it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from plastic_core.files import FormatError

from plastic_export.adapters.adapter import Adapter
from plastic_export.adapters.reading import is_adapter, read_adapter
from plastic_export.checkpoint.hub import is_repository
from plastic_export.checkpoint.reader import Checkpoint, open_checkpoint
from plastic_export.folder.adapter_files import adapter_of


@dataclass(frozen=True)
class OverBase:
    """A checkpoint and its adapter.

    Attributes:
        checkpoint: The checkpoint, open.
        adapter: The adapter; None where there is none.
        is_adapter: Whether the adapter is what was named, and not the checkpoint.
    """

    checkpoint: Checkpoint
    adapter: Adapter | None
    is_adapter: bool


@contextmanager
def open_over_base(source: str, *, base: str | None, revision: str | None) -> Iterator[OverBase]:
    """Open what an export is made from.

    Args:
        source: A checkpoint, an output, a run or an adapter, or a Hub id.
        base: The checkpoint that an adapter belongs to; None for the one that it names.
        revision: Commit, tag or branch of a Hub id.

    Yields:
        The checkpoint and its adapter.

    Raises:
        FormatError: If there is no such thing, no base for an adapter, or one that it does not fit.
        ValueError: If a base is given for a checkpoint.
        OSError: If the system refuses.
    """
    place = Path(source)
    if not is_adapter(place):
        if base is not None:
            raise ValueError(f"`base` belongs to an adapter or a run, and {source} is neither.")
        with open_checkpoint(source, revision=revision) as checkpoint:
            own = read_adapter(checkpoint.folder) if adapter_of(checkpoint.folder) else None
            yield OverBase(checkpoint, own, is_adapter=False)
        return
    named, commit = (base, revision) if base else named_base(place)
    with open_checkpoint(named, revision=commit) as checkpoint:
        yield OverBase(checkpoint, read_adapter(place, base=checkpoint), is_adapter=True)


def named_base(source: Path) -> tuple[str, str | None]:
    """Return the base that an adapter names, and its commit: a folder that is there, or a Hub id.

    Raises:
        FormatError: If it names none that can be found.
    """
    adapter = read_adapter(source)
    named = adapter.base
    if named and (Path(named).is_dir() or is_repository(named)):
        return named, adapter.revision
    reason = "it does not say which checkpoint it belongs to, or that is gone"
    raise FormatError.about(source, reason, "name it with --base")
