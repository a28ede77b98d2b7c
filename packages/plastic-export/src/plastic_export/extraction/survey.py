"""The leading components of all matrices: as many of each as its rank may need, kept on disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from plastic_core.files import read_arrays, write_arrays
from plastic_core.linalg import Float32, to_numpy
from plastic_runtime import Track

from plastic_export.checkpoint.tensors import module_path
from plastic_export.extraction.difference import LayerDifference, change_of
from plastic_export.extraction.grams import Norms
from plastic_export.extraction.pair import Pair
from plastic_export.extraction.ranks import RankChooser


class Survey:
    """What is known of the differences of two checkpoints.

    Args:
        pair: Both checkpoints.
        norms: The norm in which each is cut.
        folder: Where the components are kept.
        seed: Decides all that is random.

    Attributes:
        changes: What is known of each matrix, by the name of its weight.
    """

    def __init__(self, pair: Pair, norms: Norms, folder: Path, seed: int) -> None:
        self.changes: dict[str, LayerDifference] = {}
        self._pair, self._norms, self._folder, self._seed = pair, norms, folder, seed

    def read(self, names: Sequence[str], choose: RankChooser, track: Track) -> None:
        """Read the components that a choice of ranks takes: more of a matrix where all are taken.

        Args:
            names: The matrices.
            choose: The choice, from what is known of all.
            track: Wraps the loop over the matrices.

        Raises:
            FormatError: If a weight cannot be read or is not finite.
            ValueError: If not even one component fits into the budget.
        """
        wanted = dict.fromkeys(names, choose.first_guess)
        what = "reading differences"
        while wanted:
            for name in track(list(wanted), what):
                self._read(name, wanted[name])
            changes = [self.changes[name] for name in names]
            if not any(len(change.values) for change in changes):
                return
            chosen = choose(changes).highest
            short = [c for c in changes if _is_short(c, chosen[c.name], choose.most)]
            wanted = {c.name: 2 * len(c.values) for c in short}
            what = "reading more of some"

    def components(self, name: str, rank: int) -> tuple[Float32, Float32]:
        """Return ``B (m, r)`` and ``A (r, n)`` of the leading components of a matrix."""
        arrays, _ = read_arrays(self._file(name))
        B, A = (to_numpy(arrays[side]).astype(np.float32) for side in "BA")
        return B[:, :rank], A[:rank]

    def _read(self, name: str, rank: int) -> None:
        norm = self._norms(module_path(name))
        change, found = change_of(self._pair, name, norm, rank, self._seed)
        self.changes[name] = change
        if found is not None:
            write_arrays(self._file(name), {"B": found.B, "A": found.A}, {})

    def _file(self, name: str) -> Path:
        return self._folder / name


def _is_short(change: LayerDifference, rank: int, most: int | None) -> bool:
    """Tell whether a choice took all that is known of a matrix, and might take more."""
    return rank == len(change.values) and not change.is_complete and rank != most
