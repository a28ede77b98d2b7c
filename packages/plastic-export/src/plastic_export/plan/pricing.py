"""What every way of storing a matrix costs in bytes and in nats per token."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from plastic_core import (
    Backbone,
    Correction,
    Factors,
    GramRoot,
    Operator,
    correction_costs,
    difference,
    error_feedback,
    factor_group,
    loss_factors,
    predicted_cost,
)
from plastic_core.factors import BITS, as_operator
from plastic_core.files import MLX_DTYPES, noting
from plastic_core.rounding import UNPACKED
from plastic_runtime import LossGrams, Track, untracked

from plastic_export.checkpoint.reader import Checkpoint
from plastic_export.checkpoint.tensors import FLOATS, module_path, stored_parts
from plastic_export.model.layers import Layer, layers_of
from plastic_export.plan.gram_uses import Uses, combined_grams
from plastic_export.plan.offers import (
    Candidate,
    Choice,
    Format,
    Offer,
    Offered,
    factor_bytes,
    packed_bytes,
)
from plastic_export.plan.probe import PriceProbe

GROUP_SIZES = (64, 32)  # the first one that divides the inputs
DAMPING = 1e-2
"""Added to both Grams, as a fraction of the mean eigenvalue (heuristic)."""
FEW = 4  # bits, up to which descent is worth its time (heuristic)
CORRECTED = 4  # most bits of a backbone that is worth a correction (heuristic)
MOST_CORRECTION_BITS = 1.5  # most bits per weight of a correction beside a backbone (heuristic)
STEPS = 24  # of the ranks that are offered
PROBE = 3  # bits of the change that is measured, or the nearest ones on offer (heuristic)
ADAPTER_RANKS = (4, 8, 16, 32, 64)


@dataclass(frozen=True)
class Choices:
    """What is offered for every matrix.

    Attributes:
        bits: Of backbones.
        factor_bits: Of corrections; empty for none.
        bare: Whether a correction may do without a backbone.
        ranks: The ranks of corrections; by default `STEPS` of them up to what pays.
    """

    bits: tuple[int, ...] = BITS
    factor_bits: tuple[int, ...] = ()
    bare: bool = False
    ranks: tuple[int, ...] = ()


CHOICES: Mapping[Format, Choices] = {
    "mixed": Choices(),
    "corrected": Choices(factor_bits=(4, 8), bare=True),
    "adapter": Choices(factor_bits=(UNPACKED,), ranks=ADAPTER_RANKS),
}


def candidate(checkpoint: Checkpoint, layer: Layer) -> Candidate | None:
    """The weight of a layer as a candidate; None if no group size divides its inputs."""
    first = layer.tensors[0]
    out, in_ = checkpoint.shape(first)[-2:]
    group_size = next((g for g in GROUP_SIZES if in_ % g == 0), None)
    if group_size is None:
        return None
    stored = [info for name in layer.tensors for info in stored_parts(name, checkpoint.tensors)]
    return Candidate(
        name=layer.name,
        shape=(out, in_),
        # The scales' type where the weight is packed; those of the mx and nv modes are no floats.
        dtype=next((t.dtype for t in stored if t.dtype in FLOATS), "BF16"),
        group_size=group_size,
        source_bytes=sum(t.nbytes for t in stored),
        kind=layer.kind,
        experts=layer.experts,
    )


def weights_of(checkpoint: Checkpoint, layer: Layer) -> Iterator[NDArray[np.float32]]:
    """The matrix of a layer, or those of its experts one after the other, each read when it is due.

    Raises:
        FormatError: If one cannot be read or is not finite.
    """
    for expert in range(max(1, layer.experts)):
        if layer.is_apart:
            yield checkpoint.matrix(layer.tensors[expert])
        else:
            yield checkpoint.matrix(layer.name, expert if layer.experts else None)


def choices_for(m: Candidate, choices: Choices) -> Choices:
    """What is offered for a matrix: bits alone for what is no linear layer."""
    return choices if m.kind == "linear" else Choices(bits=choices.bits)


def rounded(weight: NDArray[np.float32], bits: int, grams: LossGrams, m: Candidate) -> Backbone:
    """The weight in ``bits`` bits, as both a price and a written file mean it."""
    return error_feedback(
        weight,
        bits,
        grams.input.matrix,
        output_gram=grams.output.matrix,
        group_size=m.group_size,
        dtype=MLX_DTYPES[m.dtype],
        sweeps=2 if bits <= FEW else 0,
    )


def corrected(factors: Factors, bits: int, grams: LossGrams, m: Candidate) -> Correction:
    """The factors in ``bits`` bits, as both a price and a written file mean them."""
    return Correction.rounded(
        factors,
        bits,
        input_gram=grams.input.matrix,
        output_gram=grams.output.matrix,
        damping=DAMPING,
        dtype=MLX_DTYPES[m.dtype],
    )


def stored(
    weight: NDArray[np.float32], offer: Offer, grams: LossGrams, m: Candidate
) -> tuple[Backbone | None, Correction | None]:
    """The backbone and the correction of an offer of one matrix; None for what it does without."""
    with noting(f"at {m.name!r}"):
        backbone = None
        if offer.bits is not None:
            backbone = rounded(weight, offer.bits, grams, m)
        if not offer.rank:
            return backbone, None
        inputs, outputs = _roots(grams)
        change = _change(weight, backbone)
        factors = loss_factors(change, offer.rank, inputs=inputs, outputs=outputs)
        return backbone, corrected(factors, offer.factor_bits, grams, m)


def price(
    checkpoint: Checkpoint,
    candidates: Sequence[Candidate],
    grams: Mapping[str, LossGrams],
    choices: Choices = CHOICES["mixed"],
    *,
    probe: PriceProbe | None = None,
    track: Track = untracked,
) -> tuple[Offered, ...]:
    """Store every matrix in every way on offer and predict what each costs.

    One matrix is in memory at a time, with its Grams if ``grams`` reads them from a file.

    Args:
        checkpoint: The open source.
        candidates: The matrices, each with Grams.
        grams: Both Grams by module path.
        choices: What to offer.
        probe: Measures one change of every matrix; all its predictions are multiplied by what was
            measured over what was predicted of that one.
        track: Wraps the loop over the matrices.

    Returns:
        What each offers, in the order of ``candidates``: every way that makes it smaller than it
        is in the source and, unless ranks are prescribed, costs less than all that take no more
        bytes; then as it is, at no cost.

    Raises:
        FormatError: If a weight cannot be read or is not finite.
        ValueError: If a weight cannot be quantised, or nothing was measured at its layer.
    """
    found, layers = [], layers_of(checkpoint)
    for m in track(candidates, "pricing"):
        with noting(f"at {m.name!r}"):
            found.append(_offered(checkpoint, layers[m.name], m, grams, choices, probe))
    return tuple(found)


def _offered(
    checkpoint: Checkpoint,
    layer: Layer,
    m: Candidate,
    grams: Mapping[str, LossGrams],
    choices: Choices,
    probe: PriceProbe | None,
) -> Offered:
    """The ways of storing a matrix, or a stack: the costs of its experts are added."""
    choices, totals, factor = choices_for(m, choices), dict[Choice, Offer](), 1.0
    uses = Uses(m, grams)
    for expert, weight in enumerate(weights_of(checkpoint, layer)):
        measure = None
        if probe is not None and expert == uses.busiest:
            measure = partial(probe.factor, module_path(m.name), expert=expert)
        priced = offers_of(weight, m, uses.of(expert), choices, measure)
        factor = priced.factor if measure else factor
        for offer in priced.offers:
            before = totals.get(offer.choice, Offer(None, 0, 0.0))
            cost = before.cost + offer.cost
            totals[offer.choice] = offer._replace(nbytes=before.nbytes + offer.nbytes, cost=cost)
    smaller = [offer for offer in totals.values() if offer.nbytes < m.source_bytes]
    if not choices.ranks:  # of which only one will be allowed
        smaller = worthwhile(smaller)
    corrected = [offer._replace(cost=factor * offer.cost) for offer in smaller]
    offers = (*corrected, Offer(None, m.source_bytes, 0.0))
    return Offered(**asdict(m), offers=offers, price_factor=factor)


class Priced(NamedTuple):
    """What one matrix offers, and the measured cost of one change over the predicted one."""

    offers: list[Offer]
    factor: float


Probe = Callable[[NDArray[np.float32], float], float]
Roots = tuple[GramRoot, GramRoot]


def _roots(grams: LossGrams) -> Roots:
    input, output = grams.input.matrix, grams.output.matrix
    return GramRoot.of(input, damping=DAMPING), GramRoot.of(output, damping=DAMPING)


def _change(weight: NDArray[np.float32], backbone: Backbone | None) -> Operator:
    return as_operator(weight) if backbone is None else difference(weight, backbone)


def offers_of(
    weight: NDArray[np.float32],
    m: Candidate,
    uses: tuple[LossGrams, ...],
    choices: Choices,
    probe: Probe | None = None,
) -> Priced:
    """The ways of storing one matrix, unsorted, and what to multiply their costs by.

    Args:
        weight: The matrix.
        m: What it is, or is one of.
        uses: The Grams of its uses: see `Uses`.
        choices: What to offer.
        probe: Gives the factor of a change of the weight and its predicted cost.
    """
    offers, grams, factor = list[Offer](), combined_grams(uses), 1.0
    all_roots = [_roots(use) for use in uses]
    roots = all_roots[0]  # a correction is for weights of one use
    probed = min(choices.bits, key=lambda bits: abs(bits - PROBE))
    for bits in choices.bits:
        change = difference(weight, rounded(weight, bits, grams, m))
        costs = [predicted_cost(change, inputs=R, outputs=C) for R, C in all_roots]
        nbytes = packed_bytes(m.shape, bits, m.group_size, m.dtype)
        offers.append(Offer(bits, nbytes, sum(costs)))
        if probe is not None and bits == probed:
            factor = probe(-change.rows(slice(None)), offers[-1].cost)
        if bits <= CORRECTED:
            offers += _corrections(change, offers[-1], m, grams, roots, choices)
    if choices.bare:
        nothing = Offer(None, 0, 0.0)
        offers += _corrections(as_operator(weight), nothing, m, grams, roots, choices)
    return Priced(offers, factor)


def smallest_offers(m: Candidate, choices: Choices) -> list[Offer]:
    """The ways of storing a matrix among which the smallest one is, their costs unknown."""
    choices = choices_for(m, choices)
    found = [Offer(None, m.source_bytes, 0.0)]
    for bits in choices.bits:
        nbytes = m.matrices * packed_bytes(m.shape, bits, m.group_size, m.dtype)
        found.append(Offer(bits, nbytes, 0.0))
    for bits in choices.factor_bits if choices.bare else ():
        ranks = offered_ranks(m, Offer(None, 0, 0.0), bits, choices)
        found += [_with_rank(Offer(None, 0, 0.0), m, rank, bits, 0.0) for rank in ranks[:1]]
    return found


def _corrections(
    change: Operator,
    base: Offer,
    m: Candidate,
    grams: LossGrams,
    roots: Roots,
    choices: Choices,
) -> list[Offer]:
    """A backbone with corrections of many ranks, their costs as they are stored."""
    inputs, outputs = roots
    ranks = {bits: offered_ranks(m, base, bits, choices) for bits in choices.factor_bits}
    most = max((r[-1] for r in ranks.values() if r), default=0)
    if most == 0:
        return []
    factors = loss_factors(change, most, inputs=inputs, outputs=outputs)
    offers = []
    for bits in choices.factor_bits:
        if ranks[bits]:
            part = corrected(_leading(factors, ranks[bits][-1]), bits, grams, m)
            costs = correction_costs(change, part, inputs=inputs, outputs=outputs)
            offers += [_with_rank(base, m, r, bits, float(costs[r])) for r in ranks[bits]]
    return offers


def offered_ranks(m: Candidate, base: Offer, bits: int, choices: Choices) -> list[int]:
    """The ranks to offer for factors of so many bits, increasing; none where they cannot pay."""
    if bits != UNPACKED and None in map(factor_group, m.shape):
        return []
    per_rank = factor_bytes(m.shape, 1, bits, m.dtype)
    room = m.source_bytes - base.nbytes - 1
    if base.bits is not None:
        room = min(room, int(MOST_CORRECTION_BITS * m.weights / 8))
    most = min(*m.shape, room // per_rank)
    if choices.ranks:
        return [r for r in choices.ranks if r <= min(*m.shape, room // per_rank)]
    step = max(1, round(most / STEPS))
    return list(range(step, most + 1, step))


def _with_rank(base: Offer, m: Candidate, rank: int, bits: int, cost: float) -> Offer:
    nbytes = base.nbytes + factor_bytes(m.shape, rank, bits, m.dtype)
    return Offer(base.bits, nbytes, cost, rank, bits)


def _leading(factors: Factors, rank: int) -> Factors:
    U, S, Vh = factors
    return Factors(U[:, :rank], S[:rank], Vh[:rank])


def worthwhile(offers: Sequence[Offer]) -> list[Offer]:
    """By increasing bytes, those that cost less than all that take no more."""
    kept = list[Offer]()
    for offer in sorted(offers, key=lambda o: (o.nbytes, o.cost)):
        if not kept or offer.cost < kept[-1].cost:
            kept.append(offer)
    return kept
