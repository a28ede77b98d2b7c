"""The files that tensors of an output go to: the model's, the one that sleeps, the adapter's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from plastic_core.files import TensorSpec
from plastic_runtime.dialling import SLEEP

from plastic_export.folder.adapter_files import FILE, FOLDER
from plastic_export.folder.shards import Shards

Place = Literal["model", "sleep", "adapter"]
"""Where a tensor goes."""

Framework = Literal["pt", "mlx"]
"""Whose layout the tensors of a file have, as transformers and mlx-lm say it in its header."""

_OF_MLX = {"format": "mlx"}
_ONE_FILE = 2**63  # bytes


def open_place(
    place: Place,
    folder: Path,
    specs: Sequence[TensorSpec],
    *,
    framework: Framework = "mlx",
    keep: bool = False,
) -> Shards:
    """Open the files of a place, to be written tensor by tensor; without specs there is no file.

    Args:
        place: Which files. Only those of the model are ever several.
        folder: The existing folder of the checkpoint.
        specs: Every tensor to come, in order.
        framework: Whose layout the tensors of a model have; those of adapters have mlx-lm's.
        keep: Leave what was written behind after an exception; see `Shards`.
    """
    if place == "model":
        return Shards(folder, specs, {"format": framework}, keep=keep)
    if place == "sleep":
        stem = Path(SLEEP).stem
        return Shards(folder, specs, _OF_MLX, stem=stem, limit=_ONE_FILE, keep=keep)
    if specs:
        (folder / FOLDER).mkdir(exist_ok=True)
    stem = Path(FILE).stem
    return Shards(folder / FOLDER, specs, _OF_MLX, stem=stem, limit=_ONE_FILE, keep=keep)
