"""The rank of every layer in both forms of an adapter, from what is known of the differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import mlx.core as mx
from plastic_core.files import MLX_DTYPES
from plastic_runtime import ByteCount

from plastic_export.adapters.sizes import count_adapter_bytes
from plastic_export.checkpoint.tensors import module_path
from plastic_export.extraction.difference import LayerDifference
from plastic_export.extraction.pair import Pair
from plastic_export.reshaping.rank_choice import RankGoal, choose_adapter_ranks

_FIRST = 16  # components of a matrix that are looked at where nothing says how many


@dataclass(frozen=True)
class FormRanks:
    """Ranks by the name of the weight, 0 among them.

    Attributes:
        adapter: In mlx-lm's form, which has one rank for all layers.
        peft: In the form of PEFT, which has one for each.
    """

    adapter: Mapping[str, int]
    peft: Mapping[str, int]

    @property
    def highest(self) -> dict[str, int]:
        """The higher of both ranks."""
        return {name: max(rank, self.peft[name]) for name, rank in self.adapter.items()}


class RankChooser:
    """Chooses the ranks of both forms, each for its own way of counting bytes.

    Args:
        pair: Both checkpoints.
        names: The matrices.
        goal: What the file of either form is cut down to; None for all that stands out.

    Attributes:
        most: The rank that no layer goes beyond; None where there is no such rank.
    """

    def __init__(self, pair: Pair, names: Sequence[str], goal: RankGoal | None) -> None:
        sides = {module_path(n): (pair.layers[n].shape, factor_type(pair, n)) for n in names}
        largest = goal.max_bytes if goal else None
        largest = largest or sum(4 * m * n for (m, n), _ in sides.values())
        self._goal, self.most = goal, goal.rank if goal else None
        self._padded, self._exact = (
            count_adapter_bytes(sides, largest, one_rank=one_rank) for one_rank in (True, False)
        )

    @property
    def first_guess(self) -> int:
        """How many components of a matrix to look at first: more than will be needed of most."""
        if self._goal is None or self._goal.energy is not None:
            return _FIRST
        if self._goal.rank is not None:
            return self._goal.rank + max(4, self._goal.rank // 2)
        assert self._goal.max_bytes is not None
        mean = self._goal.max_bytes / sum(self._exact.components.values())
        return 4 + int(1.6 * mean)

    def __call__(self, changes: Sequence[LayerDifference]) -> FormRanks:
        """Choose from what is known of every matrix, of which at least one has a component.

        Raises:
            ValueError: If not even one component fits into the bytes.
        """
        return FormRanks(self._ranks(changes, self._padded), self._ranks(changes, self._exact))

    def _ranks(self, changes: Sequence[LayerDifference], count: ByteCount) -> dict[str, int]:
        names = {module_path(c.name): c.name for c in changes if len(c.values)}
        spectra = {module_path(c.name): c.values for c in changes if len(c.values)}
        goal, none = self._goal, {c.name: 0 for c in changes}
        if goal is not None and goal.energy is not None:
            # Of all components, not of those alone that are known.
            known = sum(c.energy(len(c.values)) for c in changes)
            wanted = goal.energy * sum(c.total for c in changes)
            goal = replace(goal, energy=min(1.0, wanted / known))
        if goal is None:
            return none | {c.name: len(c.values) for c in changes}
        chosen = choose_adapter_ranks(spectra, count, goal)
        return none | {names[path]: rank for path, rank in chosen.items()}


def factor_type(pair: Pair, name: str) -> mx.Dtype:
    """Return the type of the factors of a matrix: that which the base has for it."""
    return MLX_DTYPES[pair.layers[name].dtype]
