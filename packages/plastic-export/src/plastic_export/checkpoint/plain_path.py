"""Paths of folders that mlx-lm cannot open by their own names."""

from __future__ import annotations

import glob
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def plain_path(folder: Path) -> Iterator[Path]:
    """Give a path of a folder that mlx-lm can open, for as long as the block lasts.

    It takes ``[``, ``*`` and ``?`` in a path for patterns, and MLX no bytes that are no UTF-8:
    where there are such, the path is that of a link.

    Args:
        folder: An existing folder.

    Yields:
        The folder, or a link to it.
    """
    if is_plain(folder):
        yield folder
        return
    with tempfile.TemporaryDirectory() as place:
        link = Path(place) / "folder"
        link.symlink_to(os.path.abspath(folder), target_is_directory=True)
        yield link


def is_plain(folder: Path) -> bool:
    """Tell whether mlx-lm can open a folder by its own path."""
    name = os.fspath(folder)
    return not glob.has_magic(name) and name.encode(errors="replace").decode() == name
