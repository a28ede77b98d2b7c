"""What is offered for a matrix: bits, group sizes, ranks. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from plastic_core import factor_group
from plastic_core.factors import BITS, GROUP_SIZES, best_group
from plastic_core.rounding import UNPACKED

from plastic_export.plan.offers import Candidate, Offer, factor_bytes, packed_bytes
from plastic_export.source.layers import Layer

LARGEST_GROUP = 64
"""Neighbouring inputs of a backbone that share a scale where there is no choice, at most."""
CORRECTED_BITS = 4
"""Most bits of a backbone that is worth a correction (heuristic)."""
CORRECTION_BITS_PER_WEIGHT = 1.5
"""Most bits per weight of a correction beside a backbone (heuristic)."""
OFFERED_RANKS = 24
"""How many ranks are offered, about."""


@dataclass(frozen=True)
class Choices:
    """The choices that are offered for every matrix.

    Attributes:
        bits: The bits of backbones.
        group_sizes: Neighbouring inputs that share a scale of a backbone: those that divide the
            inputs of a matrix are offered, see `backbones_of`.
        factor_bits: The bits of corrections; empty for none.
        bare: Whether a correction may do without a backbone.
        ranks: The ranks of corrections; by default about `OFFERED_RANKS` up to what pays.

    Examples:
        >>> Choices(bits=(4, 8)).factor_bits
        ()
    """

    bits: tuple[int, ...] = BITS
    factor_bits: tuple[int, ...] = ()
    bare: bool = False
    ranks: tuple[int, ...] = ()
    group_sizes: tuple[int, ...] = GROUP_SIZES


def candidate(layer: Layer) -> Candidate | None:
    """Return the weight of a layer as a candidate; None if no group size divides its inputs."""
    group_size = best_group(layer.shape[1], most=LARGEST_GROUP)
    if group_size is None:
        return None
    return Candidate(
        name=layer.name,
        shape=layer.shape,
        dtype=layer.dtype,
        group_size=group_size,
        source_bytes=layer.source_bytes,
        kind=layer.kind,
        experts=layer.experts,
    )


def choices_for(m: Candidate, choices: Choices) -> Choices:
    """Return what is offered for a matrix: bits alone for what is no linear layer.

    Examples:
        >>> table = Candidate("w", (80, 64), "BF16", 64, 10240, kind="embedding")
        >>> choices_for(table, Choices(bits=(4, 8), factor_bits=(8,)))
        Choices(bits=(4, 8), factor_bits=(), bare=False, ranks=(), group_sizes=(32, 64, 128))
    """
    if m.kind == "linear":
        return choices
    return Choices(bits=choices.bits, group_sizes=choices.group_sizes)


def backbones_of(m: Candidate, choices: Choices) -> list[tuple[int, int]]:
    """Return the bits and group size of every backbone that is offered for a matrix.

    Where none of the chosen sizes divides the inputs, it is the matrix's own.

    Examples:
        >>> m = Candidate("w", (80, 64), "BF16", 64, 10240)
        >>> backbones_of(m, Choices(bits=(4,)))
        [(4, 32), (4, 64)]
    """
    sizes = [size for size in choices.group_sizes if m.shape[1] % size == 0] or [m.group_size]
    return [(bits, size) for bits in choices.bits for size in sizes]


def corrected_backbones(m: Candidate, choices: Choices) -> list[tuple[int, int]]:
    """Return those of `backbones_of` that corrections are offered beside.

    They have few bits and the largest groups: all group sizes would triple what is to be priced,
    and bytes are better spent on the rank.

    Examples:
        >>> m = Candidate("w", (80, 64), "BF16", 64, 10240)
        >>> corrected_backbones(m, Choices(bits=(4, 8), factor_bits=(8,)))
        [(4, 64)]
    """
    if not choices.factor_bits:
        return []
    backbones = backbones_of(m, choices)
    largest = max(size for _, size in backbones)
    return [(bits, size) for bits, size in backbones if bits <= CORRECTED_BITS and size == largest]


def smallest_offers(m: Candidate, choices: Choices) -> list[Offer]:
    """Return the ways of storing a matrix among which the smallest one is, their costs unknown."""
    choices = choices_for(m, choices)
    found, nothing = [Offer.unchanged(m)], Offer.nothing()
    for bits, size in backbones_of(m, choices):
        backbone = plain_offer(m, bits, size, 0.0)
        found.append(backbone._replace(nbytes=m.matrices * backbone.nbytes))
    for bits in choices.factor_bits if choices.bare else ():
        ranks = offered_ranks(m, nothing, bits, choices)
        found += [ranked_offer(nothing, m, rank, bits, 0.0) for rank in ranks[:1]]
    return found


def plain_offer(m: Candidate, bits: int, group_size: int, cost: float) -> Offer:
    """Return the offer of a backbone alone, of one matrix."""
    nbytes = packed_bytes(m.shape, bits, group_size, m.dtype)
    return Offer(bits, nbytes, cost, group_size=group_size)


def offered_ranks(m: Candidate, base: Offer, bits: int, choices: Choices) -> list[int]:
    """The ranks to offer for factors of so many bits, increasing; none where they cannot pay.

    Examples:
        >>> m = Candidate("w", (64, 64), "BF16", 64, source_bytes=8192)
        >>> offered_ranks(m, Offer(4, 2304, 0.0), 8, Choices(factor_bits=(8,), ranks=(2, 4, 99)))
        [2, 4]
    """
    if bits != UNPACKED and None in map(factor_group, m.shape):
        return []
    per_rank = factor_bytes(m.shape, 1, bits, m.dtype)
    room = m.source_bytes - base.nbytes - 1
    if base.bits is not None:
        room = min(room, int(CORRECTION_BITS_PER_WEIGHT * m.weights / 8))
    most = min(*m.shape, room // per_rank)
    if choices.ranks:
        return [rank for rank in choices.ranks if rank <= most]
    step = max(1, round(most / OFFERED_RANKS))
    return list(range(step, most + 1, step))


def ranked_offer(base: Offer, m: Candidate, rank: int, bits: int, cost: float) -> Offer:
    """Return an offer with a correction beside it, in factors of so many bits."""
    nbytes = base.nbytes + factor_bytes(m.shape, rank, bits, m.dtype)
    return Offer(base.bits, nbytes, cost, rank, bits, base.group_size)
