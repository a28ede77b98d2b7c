"""A checkpoint of the Hub by its configuration and its headers: no weight is downloaded."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from plastic_export.checkpoint.hub import fetch, fetch_headers, is_repository
from plastic_export.checkpoint.reader import CONFIG, QUANTIZATION, Checkpoint, open_checkpoint
from plastic_export.checkpoint.weight_files import PATTERN
from plastic_export.source.trace import write_holes


@contextmanager
def open_headers(source: str, *, revision: str | None = None) -> Iterator[Checkpoint]:
    """Open a checkpoint to be asked for names, types and shapes, but for no values.

    Of a Hub id whose weights are not in the cache, the headers are read from the Hub, and files
    with holes in the place of the weights stand in for them. All else is `open_checkpoint`.

    Args:
        source: Folder or Hub id.
        revision: Branch, tag or commit, for a Hub id.

    Raises:
        FormatError, ValueError, OSError: As `open_checkpoint` does.
    """
    if os.path.lexists(source) or not is_repository(source):
        with open_checkpoint(source, revision=revision) as checkpoint:
            yield checkpoint
        return
    snapshot = fetch(source, revision, weights=False)
    if any(snapshot.glob(PATTERN)) or _is_offline():
        with open_checkpoint(source, revision=revision) as checkpoint:
            yield checkpoint
        return
    with tempfile.TemporaryDirectory() as name:
        home = f"models--{source.replace('/', '--')}"
        folder = Path(name, home, "snapshots", snapshot.name)  # as the cache names it
        folder.mkdir(parents=True)
        for side in (CONFIG, QUANTIZATION):
            if (snapshot / side).is_file():
                shutil.copyfile(snapshot / side, folder / side)
        for file, specs in fetch_headers(source, snapshot.name).items():
            write_holes(folder / file, specs)
        with Checkpoint(folder) as checkpoint:
            yield checkpoint


def _is_offline() -> bool:
    from huggingface_hub import is_offline_mode

    return is_offline_mode()
