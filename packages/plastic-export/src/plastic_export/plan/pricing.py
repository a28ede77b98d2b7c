"""The price of every way of storing a matrix, in bytes and in nats per token."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from plastic_core import (
    Backbone,
    Correction,
    Operator,
    difference,
    error_feedback,
    factor_group,
    loss_factors,
    predicted_cost,
    priced_corrections,
)
from plastic_core.factors import BITS, GROUP_SIZES, best_group
from plastic_core.files import MLX_DTYPES, noting
from plastic_core.rounding import UNPACKED
from plastic_runtime import LossGrams, Track, untracked

from plastic_export.checkpoint.tensors import module_path
from plastic_export.plan.gram_uses import (
    GramRoots,
    Uses,
    combined_grams,
    gram_roots,
    is_free,
)
from plastic_export.plan.offers import (
    Candidate,
    Choice,
    Offer,
    Offered,
    factor_bytes,
    packed_bytes,
)
from plastic_export.plan.price_journal import PriceJournal
from plastic_export.plan.probe import PriceProbe
from plastic_export.source.layers import Layer
from plastic_export.source.source import Source

LARGEST_GROUP = 64
"""Neighbouring inputs of a backbone that share a scale where there is no choice, at most."""
SWEPT_BITS = 4
"""Most bits for which coordinate descent is worth its time (heuristic)."""
CORRECTED_BITS = 4
"""Most bits of a backbone that is worth a correction (heuristic)."""
CORRECTION_BITS_PER_WEIGHT = 1.5
"""Most bits per weight of a correction beside a backbone (heuristic)."""
OFFERED_RANKS = 24
"""How many ranks are offered, about."""
SETTLED_DIGITS = 9
"""Significant digits of a price: sums of one and of two threads differ in the last two of 17."""
PROBED_BITS = 3
"""Bits of the change that is measured, or the nearest ones on offer (heuristic)."""


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


def rounded(
    weight: NDArray[np.float32], bits: int, roots: GramRoots, m: Candidate, *, group_size: int
) -> Backbone:
    """Return the weight in ``bits`` bits, as both a price and a written file mean it.

    Examples:
        >>> from plastic_runtime import GramFile
        >>> m = read_plan("plan.json").matrices[0].matrix
        >>> with GramFile("plan.grams.npz") as grams, open_checkpoint("SRC") as checkpoint:
        ...     roots = gram_roots(grams["lm_head"])
        ...     W = checkpoint.matrix("lm_head.weight")
        >>> backbone = rounded(W, 4, roots, m, group_size=32)
        >>> backbone.dequantized().shape
        (80, 64)
    """
    return error_feedback(
        weight,
        bits,
        inputs=roots.inputs,
        outputs=roots.outputs,
        group_size=group_size,
        dtype=MLX_DTYPES[m.dtype],
        sweeps=2 if bits <= SWEPT_BITS else 0,
    )


def stored(
    weight: NDArray[np.float32], offer: Offer, grams: LossGrams, m: Candidate
) -> tuple[Backbone | None, Correction | None]:
    """The backbone and the correction of an offer of one matrix; None for what it does without."""
    with noting(f"at {m.name!r}"):
        roots, backbone = gram_roots(grams), None
        if offer.bits is not None:
            backbone = rounded(weight, offer.bits, roots, m, group_size=offer.group_size)
        if not offer.rank:
            return backbone, None
        R, C = roots
        E = weight if backbone is None else difference(weight, backbone)
        factors = loss_factors(E, offer.rank, inputs=R, outputs=C)
        dtype = MLX_DTYPES[m.dtype]
        correction = Correction.rounded(
            factors, offer.factor_bits, inputs=R, outputs=C, dtype=dtype
        )
        return backbone, correction


def price(
    source: Source,
    candidates: Sequence[Candidate],
    grams: Mapping[str, LossGrams],
    choices: Choices | None = None,
    *,
    probe: PriceProbe | None = None,
    journal: PriceJournal | None = None,
    track: Track = untracked,
) -> tuple[Offered, ...]:
    """Store every matrix in every way on offer and predict what each costs.

    One matrix is in memory at a time, with its Grams if ``grams`` reads them from a file.

    Args:
        source: The source.
        candidates: The matrices, each with Grams.
        grams: Both Grams by module path.
        choices: What to offer; by default every number of bits.
        probe: Measures one change of every matrix; all its predictions are multiplied by what was
            measured over what was predicted of that one.
        journal: Knows the matrices that were priced before, and is told of those that are now.
        track: Wraps the loop over the matrices.

    Returns:
        What each offers, in the order of ``candidates``: every way that makes it smaller than it
        is in the source and, unless ranks are prescribed, costs less than all that take no more
        bytes; then as it is, at no cost.

    Raises:
        FormatError: If a weight cannot be read or is not finite.
        ValueError: If a weight cannot be quantised, or no token reached any expert of a stack.
    """
    found, choices = list[Offered](), choices or Choices()
    for m in track(candidates, "pricing"):
        with noting(f"at {m.name!r}"):
            known = None if journal is None else journal.get(m)
            offered = known or _offered(source, m, grams, choices, probe)
            if journal is not None and known is None:
                journal.add(offered)
            found.append(offered)
    return tuple(found)


def _offered(
    source: Source,
    m: Candidate,
    grams: Mapping[str, LossGrams],
    choices: Choices,
    probe: PriceProbe | None,
) -> Offered:
    """Return the ways of storing a matrix, or a stack: the costs of its experts are added."""
    choices, totals, factor = choices_for(m, choices), dict[Choice, Offer](), 1.0
    uses = Uses(m, grams)
    for expert, weight in enumerate(source.matrices(source.layers[m.name])):
        measure = None
        if probe is not None and expert == uses.busiest:
            measure = partial(probe.factor, module_path(m.name), expert=expert)
        priced = offers_of(weight, m, uses.of(expert), choices, measure)
        factor = priced.factor if measure else factor
        for offer in priced.offers:
            before = totals.get(offer.choice, Offer.nothing())
            cost = before.cost + offer.cost
            totals[offer.choice] = offer._replace(nbytes=before.nbytes + offer.nbytes, cost=cost)
    smaller = [offer for offer in totals.values() if offer.nbytes < m.source_bytes]
    smaller = [offer._replace(cost=_settled(factor * offer.cost)) for offer in smaller]
    if choices.ranks:  # of which only one will be allowed
        smaller.sort(key=lambda offer: offer.nbytes)
    else:
        smaller = pareto(smaller)
    return Offered(m, (*smaller, Offer.unchanged(m)), _settled(factor))


def _settled(price: float) -> float:
    """Return a price without the digits that depend on how many threads BLAS summed with."""
    return float(f"{price:.{SETTLED_DIGITS}g}")


class Priced(NamedTuple):
    """The offers of one matrix, and the measured cost of one change over the predicted one."""

    offers: list[Offer]
    factor: float


Probe = Callable[[NDArray[np.float32], float], float]
"""Gives the factor of a change of a weight and its predicted cost."""


def offers_of(
    weight: NDArray[np.float32],
    m: Candidate,
    uses: tuple[LossGrams, ...],
    choices: Choices,
    probe: Probe | None = None,
) -> Priced:
    """Return the ways of storing one matrix, unsorted, and what to multiply their costs by.

    A use that is free (`is_free`) adds no cost; where all are, every offer costs nothing.

    Args:
        weight: The matrix.
        m: What it is, or is one of.
        uses: The Grams of its uses: see `Uses`.
        choices: What to offer.
        probe: Measures the change that one of them is.

    Examples:
        >>> from plastic_runtime import GramFile
        >>> m = read_plan("plan.json").matrices[0].matrix
        >>> with GramFile("plan.grams.npz") as grams, open_checkpoint("SRC") as checkpoint:
        ...     weight, uses = checkpoint.matrix(m.name), (grams[module_path(m.name)],)
        ...     offers, _ = offers_of(weight, m, uses, Choices((2, 8), group_sizes=(64,)))
        >>> offers[0].nbytes < offers[1].nbytes, offers[0].cost > offers[1].cost
        (True, True)
    """
    roots, offers, factor = [gram_roots(use) for use in uses], list[Offer](), 1.0
    # A correction is for weights of one use.
    shared = roots[0] if len(uses) == 1 else gram_roots(combined_grams(uses))
    costly = [pair for pair, use in zip(roots, uses, strict=True) if not is_free(use)]
    backbones, corrected = backbones_of(m, choices), corrected_backbones(m, choices)
    probed = min(backbones, key=lambda b: (abs(b[0] - PROBED_BITS), abs(b[1] - m.group_size)))
    for bits, size in backbones:
        E = difference(weight, rounded(weight, bits, shared, m, group_size=size))
        cost = sum((predicted_cost(E, inputs=R, outputs=C) for R, C in costly), 0.0)
        base = _backbone(m, bits, size, cost)
        offers.append(base)
        if probe is not None and (bits, size) == probed:
            factor = probe(-E.rows(slice(None)), cost)
        if (bits, size) in corrected:
            offers += _corrections(E, base, m, shared, choices)
    if choices.bare:
        offers += _corrections(weight, Offer.nothing(), m, shared, choices)
    return Priced(offers if costly else [o._replace(cost=0.0) for o in offers], factor)


def smallest_offers(m: Candidate, choices: Choices) -> list[Offer]:
    """Return the ways of storing a matrix among which the smallest one is, their costs unknown."""
    choices = choices_for(m, choices)
    found, nothing = [Offer.unchanged(m)], Offer.nothing()
    for bits, size in backbones_of(m, choices):
        backbone = _backbone(m, bits, size, 0.0)
        found.append(backbone._replace(nbytes=m.matrices * backbone.nbytes))
    for bits in choices.factor_bits if choices.bare else ():
        ranks = offered_ranks(m, nothing, bits, choices)
        found += [_with_rank(nothing, m, rank, bits, 0.0) for rank in ranks[:1]]
    return found


def _backbone(m: Candidate, bits: int, group_size: int, cost: float) -> Offer:
    """Return the offer of a backbone alone, of one matrix."""
    nbytes = packed_bytes(m.shape, bits, group_size, m.dtype)
    return Offer(bits, nbytes, cost, group_size=group_size)


def _corrections(
    E: Operator | NDArray[np.float32], base: Offer, m: Candidate, roots: GramRoots, choices: Choices
) -> list[Offer]:
    """Make up for what is left of a weight, ``E``, by corrections of many ranks as stored."""
    offered = {bits: offered_ranks(m, base, bits, choices) for bits in choices.factor_bits}
    most = {bits: ranks[-1] for bits, ranks in offered.items() if ranks}
    R, C = roots
    costs = priced_corrections(E, most, inputs=R, outputs=C, dtype=MLX_DTYPES[m.dtype])
    return [
        _with_rank(base, m, rank, bits, float(costs[bits][rank]))
        for bits in most
        for rank in offered[bits]
    ]


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


def _with_rank(base: Offer, m: Candidate, rank: int, bits: int, cost: float) -> Offer:
    nbytes = base.nbytes + factor_bytes(m.shape, rank, bits, m.dtype)
    return Offer(base.bits, nbytes, cost, rank, bits, base.group_size)


def pareto(offers: Sequence[Offer]) -> list[Offer]:
    """Return, by increasing bytes, those that cost less than all that take no more.

    Examples:
        >>> cheap, poor, good = Offer(2, 100, 0.3), Offer(3, 150, 0.4), Offer(4, 200, 0.1)
        >>> pareto([good, poor, cheap]) == [cheap, good]
        True
    """
    kept = list[Offer]()
    for offer in sorted(offers, key=lambda o: (o.nbytes, o.cost)):
        if not kept or offer.cost < kept[-1].cost:
            kept.append(offer)
    return kept
