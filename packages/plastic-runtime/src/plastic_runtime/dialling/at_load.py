"""A compressed folder at another size while mlx-lm loads it: only what is awake is read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
from plastic_core.files import Closing

from plastic_runtime.dialling.asked_size import AskedSize
from plastic_runtime.dialling.components import FolderComponents
from plastic_runtime.dialling.strips import StoredMatrix

Weights = dict[str, mx.array]


class LoadedSize(Closing):
    """A folder at another size than it stores: configuration and weights. A context manager.

    The model file of a folder asks for it where a size is stated, after mlx-lm has opened the
    weights, of which nothing is read until a model is made of them.

    Args:
        folder: The folder, of the format ``"corrected"`` or ``"factored"``.
        stated: The size: one entry of `AskedSize`, or the text of one.

    Raises:
        FormatError: If the folder is damaged, has no components, or no prices of them.
        BusyError: If another process is writing it.
        ValueError: If the size is below the least or above the largest; both are named.
        TypeError: If it is not a number.
        OSError: If a file cannot be read.

    Examples:
        >>> weights = mx.load("FACTORED/model.safetensors")
        >>> with LoadedSize("FACTORED", {"fraction": 0.6}) as size:
        ...     smaller = size.weights(weights)
        >>> sum(w.nbytes for w in smaller.values()) < sum(w.nbytes for w in weights.values())
        True
    """

    def __init__(self, folder: str | Path, stated: Mapping[str, Any] | str) -> None:
        size = AskedSize.parsed(stated) if isinstance(stated, str) else AskedSize.of(stated)
        self._components = FolderComponents(Path(folder))
        try:
            self._ranks = self._components.sizes.ranks_within(size)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the files of the folder."""
        self._components.close()

    def config(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return the configuration of the folder at this size.

        Args:
            config: Content of its config.json.
        """
        own = {kind: dict(config["plastic"][kind]) for kind in ("ranks", "corrected")}
        packings = dict(config.get("quantization") or {})
        for m, rank in self._turned():
            _turn_layer(own, packings, m, rank)
        found = {**config, "plastic": {**config["plastic"], **own}}
        if packings:
            found |= {"quantization": packings, "quantization_config": packings}
        return found

    def weights(self, weights: Weights) -> Weights:
        """Return the tensors of the folder at this size, by name.

        Args:
            weights: Those of its model files, not read yet.

        Raises:
            FormatError: If a file changed.

        Cost:
            Reads the components that are awake of the matrices that have others than in the files.
        """
        found = dict(weights)
        for m, rank in self._turned():
            for strip in m.strips:
                found.pop(f"{m.path}.{strip.side}.{strip.leaf}", None)
            if bool(rank) != bool(m.record.rank):
                _move_backbone(found, m, rank)
            for strip in m.strips if rank else ():
                array = self._components.read(strip, 0, rank)
                found[f"{m.path}.{strip.side}.{strip.leaf}"] = array
        return found

    def _turned(self) -> list[tuple[StoredMatrix, int]]:
        """Return the matrices that have other ranks than in the files, and these ranks."""
        pairs = ((self._components.matrices[name], rank) for name, rank in self._ranks.items())
        return [(m, rank) for m, rank in pairs if rank != m.record.rank]


def _turn_layer(
    own: dict[str, dict[str, Any]], packings: dict[str, Any], m: StoredMatrix, rank: int
) -> None:
    """Change what a configuration says of one layer: as its format says it of such a rank."""
    r, path = m.record, m.path
    if path in own["ranks"]:
        own["ranks"][path] = rank
        return
    parts = [part for part in ("base", "v", "u") if f"{path}.{part}" in packings]
    if rank == 0:
        del own["corrected"][path]
        backbone = packings[f"{path}.base"]
        for part in parts:
            del packings[f"{path}.{part}"]
        packings[path] = backbone
        return
    if r.rank == 0:
        packings[f"{path}.base"] = packings.pop(path)
        if m.is_packed:
            u, v = r.factor_group_sizes
            packings[f"{path}.v"] = {"group_size": v, "bits": r.factor_bits}
            packings[f"{path}.u"] = {"group_size": u, "bits": r.factor_bits}
    entry = own["corrected"].get(path, {"backbone": True})
    own["corrected"][path] = {**entry, "rank": rank}


def _move_backbone(weights: Weights, m: StoredMatrix, rank: int) -> None:
    """Give the backbone of a layer the names that it has with components, or without."""
    without, beside = f"{m.path}.", f"{m.path}.base."
    old, new = (without, beside) if rank else (beside, without)
    for leaf in (*m.backbone_leaves, "bias"):
        if f"{old}{leaf}" in weights:
            weights[f"{new}{leaf}"] = weights.pop(f"{old}{leaf}")
