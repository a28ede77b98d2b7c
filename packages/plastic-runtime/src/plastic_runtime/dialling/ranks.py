"""From spectra to ranks: what becomes of every matrix under one budget in bytes. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from plastic_core.files import ITEM_BYTES
from plastic_select import RankChoice, choose_ranks


@dataclass(frozen=True)
class Surveyed:
    """A matrix of the source and its spectrum.

    Attributes:
        name: Tensor name.
        shape: ``(out, in)`` of the dense weight.
        dtype: Storage type of the factors: the weight's own, or its scales' where it is packed.
        source_bytes: Bytes of the matrix in the source, scales and offsets counted.
        spectrum: Singular values, of ``W`` or of ``W R^(1/2)``, as the strategy asks; float64.

    Examples:
        >>> m = Surveyed("w", (8, 6), "F32", 8 * 6 * 4, np.array([3.0, 2, 1, 0, 0, 0]))
        >>> m.component_bytes, m.break_even
        (56, 3)
    """

    name: str
    shape: tuple[int, int]
    dtype: str
    source_bytes: int
    spectrum: NDArray[np.float64]

    @property
    def component_bytes(self) -> int:
        """Bytes of one component: a column of U and a row of S Vh."""
        return sum(self.shape) * ITEM_BYTES[self.dtype]

    @property
    def break_even(self) -> int:
        """The largest rank whose factors are no larger than the matrix in the source."""
        return self.source_bytes // self.component_bytes


@dataclass(frozen=True)
class MatrixPlan:
    """The fate of one matrix: its rank, or none.

    Attributes:
        name: Tensor name.
        shape: ``(out, in)``.
        dtype: Storage type of the factors.
        source_bytes: Bytes of the matrix in the source.
        choice: ``"factored"``, or ``"dense"``: left exactly as it is in the source.
        rank: Components awake; ``min(shape)`` for a dense one.
        retained_energy: Fraction of the squared spectrum that stays awake.
        why: One line, for people.

    Examples:
        >>> m = Surveyed("w", (8, 6), "F32", 8 * 6 * 4, np.array([3.0, 2, 1, 0, 0, 0]))
        >>> (planned,) = plan_ranks([m], 0.6, "energy").matrices
        >>> planned.choice, planned.rank, planned.parked
        ('factored', 2, 4)
    """

    name: str
    shape: tuple[int, int]
    dtype: str
    source_bytes: int
    choice: Literal["factored", "dense"]
    rank: int
    retained_energy: float
    why: str

    @property
    def awake_bytes(self) -> int:
        """Bytes that stay awake: of the factors, or of the untouched matrix."""
        if self.choice == "dense":
            return self.source_bytes
        return self.rank * sum(self.shape) * ITEM_BYTES[self.dtype]

    @property
    def parked(self) -> int:
        """Components put to sleep."""
        return 0 if self.choice == "dense" else min(self.shape) - self.rank


@dataclass(frozen=True)
class Plan:
    """The plan of a whole checkpoint.

    Attributes:
        keep: The fraction of the bytes of the matrices that was asked for.
        strategy: The strategy that chose the ranks.
        matrices: One entry per matrix, in the order of the checkpoint.

    Examples:
        >>> m = Surveyed("w", (8, 6), "F32", 8 * 6 * 4, np.array([3.0, 2, 1, 0, 0, 0]))
        >>> plan = plan_ranks([m], 0.6, "energy")
        >>> plan.awake_bytes, plan.source_bytes, round(plan.kept, 3)
        (112, 192, 0.583)
    """

    keep: float
    strategy: str
    matrices: tuple[MatrixPlan, ...]

    @property
    def source_bytes(self) -> int:
        """Bytes of the matrices in the source."""
        return sum(m.source_bytes for m in self.matrices)

    @property
    def awake_bytes(self) -> int:
        """Bytes of the matrices that stay awake."""
        return sum(m.awake_bytes for m in self.matrices)

    @property
    def kept(self) -> float:
        """Fraction of the bytes of the matrices that stays awake."""
        return self.awake_bytes / self.source_bytes


def check_keep(keep: float) -> None:
    """Raise unless ``keep`` is a fraction in (0, 1].

    Examples:
        >>> check_keep(0.8)
    """
    if not 0 < keep <= 1:
        raise ValueError(
            f"`keep` must be in (0, 1], got {keep}; 0.8 keeps 80 % of the bytes of the matrices"
        )


def plan_ranks(matrices: Sequence[Surveyed], keep: float, strategy: str) -> Plan:
    """Choose a rank for every matrix so that all of them fit the budget.

    A matrix whose rank reaches the break-even of its bytes is left dense instead: the factors
    would be as large and the error would not be zero.

    Args:
        matrices: The matrices with their spectra.
        keep: Fraction of their bytes that may stay awake, in (0, 1].
        strategy: One of ``plastic_select.STRATEGIES``.

    Returns:
        A plan with ``awake_bytes <= keep * source_bytes``.

    Raises:
        ValueError: If ``keep`` is out of range or too small for rank one everywhere.

    Examples:
        >>> m = Surveyed("w", (8, 6), "F32", 8 * 6 * 4, np.array([3.0, 2, 1, 0, 0, 0]))
        >>> plan = plan_ranks([m], keep=0.6, strategy="energy")
        >>> [(planned.name, planned.rank) for planned in plan.matrices]
        [('w', 2)]
    """
    check_keep(keep)
    _check_least(matrices, keep)
    chosen: dict[str, RankChoice] = {}
    for group in _equal_density(matrices):
        chosen |= _choose(group, keep, strategy)
    factored = [_factored(m, chosen[m.name]) for m in matrices]
    return Plan(keep, strategy, tuple(_promote(factored, keep)))


def _choose(group: Sequence[Surveyed], keep: float, strategy: str) -> dict[str, RankChoice]:
    """Ranks by name, with room left for every matrix at its break-even to stay dense instead."""
    total, reserve = sum(m.source_bytes for m in group), 0
    while True:
        spent = max(keep - reserve / total, _least(group))
        choices = choose_ranks(
            [m.spectrum for m in group],
            [m.shape for m in group],
            1 - spent * _density(group[0]),
            strategy,
            ceilings=[m.break_even for m in group],
        )
        pairs = list(zip(group, choices, strict=True))
        needed = sum(
            m.source_bytes - m.break_even * m.component_bytes
            for m, choice in pairs
            if choice.rank == m.break_even
        )
        if needed <= reserve or spent <= _least(group):
            return {m.name: choice for m, choice in pairs}
        reserve = needed


def _least(group: Sequence[Surveyed]) -> float:
    """Return the fraction of the bytes that rank one everywhere takes."""
    return sum(m.component_bytes for m in group) / sum(m.source_bytes for m in group)


def _density(m: Surveyed) -> float:
    """Stored bytes over the bytes of the same matrix dense in the factors' type."""
    return m.source_bytes / (m.shape[0] * m.shape[1] * ITEM_BYTES[m.dtype])


def _equal_density(matrices: Iterable[Surveyed]) -> list[list[Surveyed]]:
    """Groups in which a budget in bytes is a budget in parameters."""
    groups: dict[tuple[str, float], list[Surveyed]] = defaultdict(list)
    for m in matrices:
        groups[m.dtype, _density(m)].append(m)
    return list(groups.values())


def _check_least(matrices: Sequence[Surveyed], keep: float) -> None:
    least = max(_least(group) for group in _equal_density(matrices))
    if least > keep:
        raise ValueError(
            f"`keep` must be at least {least:.4f}, for rank 1 in every matrix, got {keep}"
        )


def _factored(m: Surveyed, choice: RankChoice) -> MatrixPlan:
    return MatrixPlan(
        name=m.name,
        shape=m.shape,
        dtype=m.dtype,
        source_bytes=m.source_bytes,
        choice="factored",
        rank=choice.rank,
        retained_energy=choice.retained_energy,
        why=choice.why,
    )


def _promote(plans: Sequence[MatrixPlan], keep: float) -> list[MatrixPlan]:
    """Leave dense, while the budget lasts, what one more component would make larger than dense."""
    spare = int(keep * sum(p.source_bytes for p in plans)) - sum(p.awake_bytes for p in plans)
    result = []
    for p in plans:
        missing = p.source_bytes - p.awake_bytes
        component = sum(p.shape) * ITEM_BYTES[p.dtype]
        if missing < component and missing <= spare:
            spare -= missing
            p = replace(
                p,
                choice="dense",
                rank=min(p.shape),
                retained_energy=1.0,
                why="the factors would be as large as the matrix: left as it is",
            )
        result.append(p)
    return result
