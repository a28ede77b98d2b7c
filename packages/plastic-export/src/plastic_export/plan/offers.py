"""From what every matrix offers to the bits, group size and rank of each, for budgets. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

from plastic_core import factor_group
from plastic_core.files import ITEM_BYTES
from plastic_core.rounding import UNPACKED
from plastic_select import Option, allocate

from plastic_export.checkpoint.tensors import Kind
from plastic_export.plan.budgets import Budget, Totals, check_budget

Overhead = Callable[["Candidate", "Offer"], int]
"""Bytes that an offer takes in the headers of the files, beside its own."""


SPREAD = 0.2
"""Standard deviation of the logarithm of what is measured over what a trial finds, where the
tokens are many (heuristic: see the decision on trials)."""
NINE_OF_TEN = 1.645
"""Standard deviations on either side of the mean that hold nine cases of ten."""


class Choice(NamedTuple):
    """What tells the offers of a matrix apart; see `Offer`. A group size of 0 is the usual one."""

    bits: int | None
    rank: int = 0
    factor_bits: int = 0
    group_size: int = 0


class Offer(NamedTuple):
    """One way of storing a matrix: a backbone, a correction, both, or as it is.

    Attributes:
        bits: The bits of the backbone's codes; None for no backbone.
        nbytes: Bytes on disk, scales and offsets counted.
        cost: Predicted rise of the KL divergence to the source, nats per token.
        rank: The correction's rank; 0 for none. Without bits and rank the matrix stays as it
            is in the source.
        factor_bits: The bits of an entry of the correction; 16: in the matrix's own type.
        group_size: Neighbouring inputs that share a scale of the backbone; 0 without one.
        parked: Components that sleep beside it, of the same packing; they take no bytes of it.

    Examples:
        >>> Offer(4, nbytes=2560, cost=1e-3, rank=8, factor_bits=8, group_size=64).kind
        '4 bits, groups of 64 + rank'
        >>> Offer(None, nbytes=8192, cost=0.0).kind
        'source'
    """

    bits: int | None
    nbytes: int
    cost: float
    rank: int = 0
    factor_bits: int = 0
    group_size: int = 0
    parked: int = 0

    @classmethod
    def nothing(cls) -> Offer:
        """No bytes: what offers of a stack are summed from, what a bare correction is added to."""
        return cls(None, 0, 0.0)

    @classmethod
    def unchanged(cls, m: Candidate) -> Offer:
        """Return a matrix as it is in the source."""
        return cls(None, m.source_bytes, 0.0)

    @property
    def choice(self) -> Choice:
        """Return what tells it from the other offers of the matrix."""
        return Choice(self.bits, self.rank, self.factor_bits, self.group_size)

    @property
    def kind(self) -> str:
        """``"source"``, ``"4 bits, groups of 64"``, the same with ``" + rank"``, or ``"rank"``."""
        if self.bits is None:
            return "rank" if self.rank else "source"
        return f"{self.bits} bits, groups of {self.group_size}{' + rank' if self.rank else ''}"


@dataclass(frozen=True)
class Candidate:
    """A matrix of the source that can be quantised, or a stack of them that share their bits.

    Attributes:
        name: Tensor name; of a stack, that of the tensor that mlx-lm makes of it.
        shape: ``(out, in)`` of the dense weight, ``(tokens, width)`` of an embedding.
        dtype: Storage type of the scales: the weight's own, or its scales' where it is packed.
        group_size: Neighbouring inputs that share a scale, where no other number is chosen.
        source_bytes: Bytes in the source, scales and offsets counted.
        kind: What layer it is the weight of.
        experts: How many matrices are stacked; 0 for a single one.

    Examples:
        >>> Candidate("w", (64, 32), "BF16", group_size=32, source_bytes=4096).weights
        2048
    """

    name: str
    shape: tuple[int, int]
    dtype: str
    group_size: int
    source_bytes: int
    kind: Kind = field(default="linear", kw_only=True)
    experts: int = field(default=0, kw_only=True)

    @property
    def matrices(self) -> int:
        """How many matrices it is."""
        return max(1, self.experts)

    @property
    def weights(self) -> int:
        """Entries of the dense weight."""
        return self.matrices * math.prod(self.shape)


@dataclass(frozen=True)
class Offered:
    """A matrix and all the ways of storing it.

    Attributes:
        matrix: The matrix.
        offers: The offers by increasing bytes; the last one leaves it as it is.
        price_factors: By bits, what predicted costs were multiplied by, for what was measured of
            this matrix and those like it.
        error_factors: By bits, what the predicted cost of an `expected_error` is multiplied by, for
            what rounding in full left of those like it.

    Examples:
        >>> m = read_plan("plan.json").matrices[0]
        >>> m.offer(4).nbytes < m.matrix.source_bytes
        True
    """

    matrix: Candidate
    offers: tuple[Offer, ...]
    price_factors: Mapping[int, float] = field(default_factory=dict)
    error_factors: Mapping[int, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name of the matrix."""
        return self.matrix.name

    def offer(
        self, bits: int | None, rank: int = 0, factor_bits: int = 0, group_size: int = 0
    ) -> Offer:
        """Return the offer of these bits, rank, bits of the factors and group size.

        Args:
            bits: The bits of the backbone; None for no backbone.
            rank: The rank of the correction.
            factor_bits: The bits of its entries.
            group_size: That of the backbone; 0 for the matrix's usual one (`Candidate`).

        Raises:
            ValueError: If there is none.
        """
        size = 0 if bits is None else group_size or self.matrix.group_size
        same = [o for o in self.offers if (o.bits, o.factor_bits) == (bits, factor_bits)]
        if not same:
            known = ", ".join(sorted({_written(o.bits) for o in self.offers}))
            known += f", `factor_bits` one of {sorted({o.factor_bits for o in self.offers})}"
            raise ValueError(
                f"`bits` of {self.name!r} must be one of {known}, got {bits!r} and {factor_bits!r}"
            )
        sizes = sorted({o.group_size for o in same})
        if size not in sizes:
            known = ", ".join(map(str, sizes))
            raise ValueError(
                f"`group_size` of {self.name!r} in {bits} bits must be one of {known}, got {size!r}"
            )
        ranks = {o.rank: o for o in same if o.group_size == size}
        if rank not in ranks:
            known = ", ".join(map(str, ranks))
            raise ValueError(f"`rank` of {self.name!r} must be one of {known}, got {rank!r}")
        return ranks[rank]


def _written(bits: int | None) -> str:
    """Return bits as a plan in JSON has them."""
    return "null" if bits is None else str(bits)


class Tried(NamedTuple):
    """What a plan was found to cost as a whole; see `PlanTrial`.

    Attributes:
        kl: Nats per token.
        error: Its standard error, over the tokens that it was tried on.
        cost: The sum of the predicted costs of the choices that were tried.
    """

    kl: float
    error: float
    cost: float


@dataclass(frozen=True)
class BitsPlan:
    """One budget, and the offer that every matrix takes under it.

    Attributes:
        budget: Bits per weight that the budget allows.
        asked: The budget as it was asked for: ``"3.5"``, ``"3000000 bytes"``, ``"keep 0.4"``.
        weights: Entries of all the matrices.
        lower_bound: No choice within the budget is predicted to cost less, nats per token: the
            optimum of the linear relaxation.
        chosen: The offer of each matrix, by tensor name, in the order of the checkpoint.
        tried: What it was found to cost as a whole; None where it was not tried.
        by: What chose: the prices, or the trial of one width for all (`one_width`).
        rival_kl: What the other of the two was found to cost, nats per token; None where there is
            none.

    Examples:
        >>> plan = read_plan("plan.json").budget(4.5)
        >>> plan.bits_per_weight <= 4.5, plan.rank
        (True, 0)
    """

    budget: float
    asked: str
    weights: int
    lower_bound: float
    chosen: Mapping[str, Offer]
    tried: Tried | None = None
    by: Literal["prices", "one width"] = "prices"
    rival_kl: float | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of all the matrices on disk."""
        return sum(offer.nbytes for offer in self.chosen.values())

    @property
    def bits_per_weight(self) -> float:
        """Bits on disk per entry of the matrices, scales and offsets counted."""
        return 8 * self.nbytes / self.weights

    @property
    def cost(self) -> float:
        """The sum of the predicted costs of the matrices, nats per token."""
        return math.fsum(offer.cost for offer in self.chosen.values())

    @property
    def predicted(self) -> float:
        """Predicted KL divergence to the source, nats per token.

        What the trial found, or the sum of the costs; for choices that were edited since, the sum
        times what the trial found of the others.
        """
        if self.tried is None or self.tried.cost == 0:
            return self.cost
        return self.cost * (self.tried.kl / self.tried.cost)

    @property
    def interval(self) -> tuple[float, float] | None:
        """Between what it lies in nine cases of ten, nats per token; None without a trial."""
        if self.tried is None or self.tried.kl == 0:
            return None
        spread = math.hypot(SPREAD, self.tried.error / self.tried.kl)
        factor = math.exp(NINE_OF_TEN * spread)
        return self.predicted / factor, self.predicted * factor

    @property
    def gap(self) -> float:
        """``cost`` above ``lower_bound``, as a fraction of that; infinite above a bound of 0."""
        if self.cost <= self.lower_bound:
            return 0.0
        return self.cost / self.lower_bound - 1 if self.lower_bound else math.inf

    @property
    def mix(self) -> dict[str, int]:
        """How many matrices are stored in which way (`Offer.kind`), fewest bits first."""
        ordered = sorted(self.chosen.values(), key=_by_bits)
        return dict(Counter(offer.kind for offer in ordered))

    @property
    def rank(self) -> int:
        """The greatest rank of a correction, 0 where there is none."""
        return max((offer.rank for offer in self.chosen.values()), default=0)


def _by_bits(offer: Offer) -> tuple[bool, float, int, bool]:
    """Order offers by the bits of their backbones, then by what their scales take."""
    is_source = offer.kind == "source"
    return is_source, offer.bits or math.inf, -offer.group_size, offer.rank > 0


def packed_bytes(shape: tuple[int, int], bits: int, group_size: int, dtype: str) -> int:
    """Return the bytes of a matrix in MLX's affine format: codes, scales and offsets.

    Examples:
        >>> packed_bytes((64, 32), 4, 32, "BF16")  # 1024 of codes, 256 of scales and offsets
        1280
    """
    entries = math.prod(shape)
    return entries * bits // 8 + 2 * (entries // group_size) * ITEM_BYTES[dtype]


def factor_bytes(shape: tuple[int, int], rank: int, bits: int, dtype: str) -> int:
    """Return the bytes of a correction: both factors, with scales and offsets if packed.

    Examples:
        >>> factor_bytes((64, 32), 8, 16, "BF16")
        1536
    """
    if bits == UNPACKED:
        return rank * sum(shape) * ITEM_BYTES[dtype]
    return sum(
        packed_bytes((rank, side), bits, factor_group(side) or side, dtype) for side in shape
    )


def plan_bits(
    matrices: Sequence[Offered],
    budgets: Sequence[float | Budget],
    *,
    left_bytes: int = 0,
    one_rank: bool = False,
    overhead: Overhead | None = None,
) -> tuple[BitsPlan, ...]:
    """Choose how to store every matrix so that the predicted divergence is least.

    Args:
        matrices: What each matrix offers.
        budgets: One per plan wanted; a plain number is bits per weight: bytes of all the matrices
            on disk, scales and factors counted, times 8, over their entries.
        left_bytes: Bytes of all other tensors and of what is fixed in the headers of the files,
            which a budget for the whole checkpoint counts.
        one_rank: Whether all corrections have one rank, the best of those on offer.
        overhead: What an offer adds to the headers, which a budget for the whole checkpoint counts
            too; nothing by default.

    Returns:
        One plan per budget, in that order, never over it. None depends on the others.

    Raises:
        ValueError: If there are no matrices, or a budget is below the least possible or above
            the size of the source.

    Examples:
        >>> matrices = read_plan("plan.json").matrices
        >>> small, large = plan_bits(matrices, [3, 6])
        >>> small.nbytes < large.nbytes, small.cost > large.cost
        (True, True)
    """
    if not matrices:
        raise ValueError("no matrix can be quantised; drop an --exclude")
    stated = [b if isinstance(b, Budget) else Budget("bits_per_weight", b) for b in budgets]
    plans: dict[int, BitsPlan] = {}
    for counted in (False, True):
        places = [i for i, budget in enumerate(stated) if budget.counts_headers == counted]
        extra = overhead if overhead and counted else no_overhead
        found = _planned(matrices, [stated[i] for i in places], left_bytes, one_rank, extra)
        plans |= zip(places, found, strict=True)
    return tuple(plans[i] for i in range(len(stated)))


def _planned(
    matrices: Sequence[Offered],
    budgets: Sequence[Budget],
    left_bytes: int,
    one_rank: bool,
    overhead: Overhead,
) -> tuple[BitsPlan, ...]:
    """Return the plans of budgets that all count headers, or all do not."""
    totals = totals_of([m.matrix for m in matrices], left_bytes, overhead)
    least = sum(min(o.nbytes + overhead(m.matrix, o) for o in m.offers) for m in matrices)
    for budget in budgets:
        check_budget(budget, least, totals)
    if not one_rank:
        return _allocated(matrices, budgets, totals, overhead)
    ranks = sorted({o.rank for m in matrices for o in m.offers if o.rank})
    candidates = [_allocated(_of_rank(matrices, r), budgets, totals, overhead) for r in (0, *ranks)]
    return tuple(min(plans, key=lambda plan: plan.cost) for plans in zip(*candidates, strict=True))


def no_overhead(m: Candidate, offer: Offer) -> int:
    """Return 0: budgets for matrices alone count no headers."""
    return 0


def totals_of(
    matrices: Sequence[Candidate], left_bytes: int, overhead: Overhead = no_overhead
) -> Totals:
    """Return the totals that budgets for these matrices are measured against."""
    weights = sum(m.weights for m in matrices)
    whole = sum(m.source_bytes + overhead(m, Offer.unchanged(m)) for m in matrices)
    return Totals(weights, whole, left_bytes)


def _of_rank(matrices: Sequence[Offered], rank: int) -> list[Offered]:
    """Return the matrices with no other corrections than those of a rank."""
    return [replace(m, offers=tuple(o for o in m.offers if o.rank in (0, rank))) for m in matrices]


def _allocated(
    matrices: Sequence[Offered], budgets: Sequence[Budget], totals: Totals, overhead: Overhead
) -> tuple[BitsPlan, ...]:
    offers = {
        m.name: [Option(o.nbytes + overhead(m.matrix, o), o.cost, o) for o in m.offers]
        for m in matrices
    }
    allowed = [budget.nbytes(totals) for budget in budgets]
    return tuple(
        BitsPlan(
            budget=budget.value if budget.kind == "bits_per_weight" else 8 * n / totals.weights,
            asked=str(budget),
            weights=totals.weights,
            lower_bound=found.lower_bound,
            chosen={name: offers[name][i].label for name, i in found.chosen.items()},
        )
        for budget, n, found in zip(budgets, allowed, allocate(offers, allowed), strict=True)
    )
