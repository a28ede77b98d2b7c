"""Bytes spent over the components of matrices, at the least cost. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from plastic_select import Option, allocate

from plastic_runtime.dialling.ranks import Surveyed, plan_ranks
from plastic_runtime.dialling.spectrum_text import decoded_spectrum
from plastic_runtime.dialling.spendable import Spendable

Ranks = Mapping[str, int]
"""Components awake of every matrix that has any, by tensor name."""


def cheapest_ranks(
    matrices: Mapping[str, Spendable], room: int, strategy: str | None
) -> dict[str, int]:
    """Return the ranks that cost least in so many bytes, or the least ranks where none fit.

    Args:
        matrices: The matrices, by tensor name.
        room: Bytes that they may take together, backbones counted.
        strategy: The rule that chose their ranks; None where prices did.

    Returns:
        A rank for every matrix; the same for the same arguments.

    Cost:
        That of `allocate`, or of `plan_ranks`.

    Examples:
        >>> record = read_manifest(Path("FACTORED")).matrices["block.0.up.weight"]
        >>> matrix = Spendable(record, component_ranks(Path("FACTORED"), record), 80)
        >>> cheapest_ranks({"w": matrix}, 300, "energy")
        {'w': 3}
    """
    room = max(room, bytes_at(matrices, least_ranks(matrices)))
    return _by_price(matrices, room) if strategy is None else _by_rule(matrices, room, strategy)


def least_ranks(matrices: Mapping[str, Spendable]) -> dict[str, int]:
    """Return the least rank of every matrix.

    Examples:
        >>> least_ranks({})
        {}
    """
    return {name: m.ranks[0] for name, m in matrices.items()}


def largest_ranks(matrices: Mapping[str, Spendable]) -> dict[str, int]:
    """Return the ranks with everything awake.

    Examples:
        >>> largest_ranks({})
        {}
    """
    return {name: m.ranks[-1] for name, m in matrices.items()}


def bytes_at(matrices: Mapping[str, Spendable], ranks: Ranks) -> int:
    """Return what the matrices take together at these ranks.

    Examples:
        >>> bytes_at({}, {})
        0
    """
    return sum(matrices[name].nbytes(rank) for name, rank in ranks.items())


def _by_price(matrices: Mapping[str, Spendable], room: int) -> dict[str, int]:
    options = {
        name: [Option(m.nbytes(rank), m.cost(rank), rank) for rank in m.ranks]
        for name, m in matrices.items()
    }
    (found,) = allocate(options, [room])
    return {name: matrices[name].ranks[place] for name, place in found.chosen.items()}


def _by_rule(matrices: Mapping[str, Spendable], room: int, strategy: str) -> dict[str, int]:
    surveyed = [_surveyed(name, m) for name, m in matrices.items()]
    keep = min(1.0, room / sum(m.source_bytes for m in surveyed))
    chosen = plan_ranks(surveyed, keep, strategy).matrices
    most = {m.name: min(m.break_even, matrices[m.name].ranks[-1]) for m in surveyed}
    return {p.name: min(p.rank, most[p.name]) for p in chosen}


def _surveyed(name: str, m: Spendable) -> Surveyed:
    r = m.record
    return Surveyed(name, r.shape, r.dtype, r.source_bytes, decoded_spectrum(r.spectrum))
