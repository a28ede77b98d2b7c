"""What alike matrices really cost, as a few of them show: the factors of their prices."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from plastic_core.files import noting
from plastic_core.linalg import in_threads
from plastic_runtime import LossGrams

from plastic_export.checkpoint.tensors import module_path
from plastic_export.plan.choices import Choices, backbones_of
from plastic_export.plan.gram_uses import Uses
from plastic_export.plan.likeness import in_a_block
from plastic_export.plan.offers import Candidate
from plastic_export.plan.pricing import WeightRounding, expected_offers
from plastic_export.plan.probe import PriceProbe, WeightChange
from plastic_export.source.source import Source

ROUNDED_BITS = 4
"""Most bits in which samples are rounded: from there on an expected cost is off by one factor."""
PROBED_BITS = 3
"""Most bits of changes that are run inside the blocks (heuristic: beyond, factors are the same)."""
LEAST_RESOLVED = 1e-7
"""Nats per token that float32 can tell from nothing."""
DIGITS = 9
"""Significant digits of a price: sums of one and of two threads differ in the last two of 17."""


class GroupCost(NamedTuple):
    """The samples of a group, all rounded to some bits.

    Attributes:
        expected: The sum of their `expected_costs`, nats per token.
        predicted: The sum of what they are predicted to cost as they were rounded.
        foreseen: The sum of what their `expected_error` is predicted to cost.
        divergence: What they cost together; None where it was not measured.
    """

    expected: float
    predicted: float
    foreseen: float
    divergence: float | None


GroupCosts = Mapping[int, GroupCost]
"""By bits."""


def group_costs(
    source: Source,
    samples: Sequence[Candidate],
    grams: Mapping[str, LossGrams],
    choices: Choices,
    probe: PriceProbe,
) -> dict[int, GroupCost]:
    """Round some matrices in full, and run the model with all of them changed.

    Args:
        source: The source.
        samples: Matrices of one group.
        grams: Both Grams by module path.
        choices: What is offered.
        probe: Runs the model.

    Returns:
        By bits; empty where nothing of it costs anything, or it is not known which expert of a
        stack the text reached.
    """
    taken = [found for m in samples if (found := _Sample.of(source, m, grams, choices))]
    if not taken:
        return {}
    widths = _widths(choices, ROUNDED_BITS)
    probed = _widths(choices, PROBED_BITS) if all(map(in_a_block, samples)) else widths
    return {bits: _measured(taken, bits, probe if bits in probed else None) for bits in widths}


def _widths(choices: Choices, most: int) -> list[int]:
    """Return the bits on offer up to ``most``; the fewest where there are none."""
    return [bits for bits in choices.bits if bits <= most] or [min(choices.bits)]


def _usual_size(m: Candidate, choices: Choices) -> int:
    """Return the group size on offer that is nearest to the one a matrix has without a choice."""
    sizes = {size for _, size in backbones_of(m, choices)}
    return min(sizes, key=lambda size: abs(size - m.group_size))


def _measured(samples: Sequence[_Sample], bits: int, probe: PriceProbe | None) -> GroupCost:
    with noting(f"at {samples[0].m.name!r}"):
        errors = in_threads(lambda sample: sample.error(bits), samples)
    expected = in_nine_digits(math.fsum(sample.expected[bits] for sample in samples))
    predicted = in_nine_digits(math.fsum(error.predicted for error in errors))
    foreseen = in_nine_digits(math.fsum(error.foreseen for error in errors))
    if probe is None:
        return GroupCost(expected, predicted, foreseen, None)
    changes = [
        WeightChange(module_path(sample.m.name), -error.E, sample.expert)
        for sample, error in zip(samples, errors, strict=True)
    ]
    return GroupCost(expected, predicted, foreseen, in_nine_digits(probe.divergence(changes)))


class _Error(NamedTuple):
    """What rounding takes from a weight, its predicted cost, and that of what was expected."""

    E: NDArray[np.float32]
    predicted: float
    foreseen: float


class _Sample(NamedTuple):
    """A matrix, or the expert of a stack that most tokens reached, and its expected costs."""

    m: Candidate
    expert: int
    rounding: WeightRounding
    group_size: int
    expected: Mapping[int, float]

    @classmethod
    def of(
        cls, source: Source, m: Candidate, grams: Mapping[str, LossGrams], choices: Choices
    ) -> _Sample | None:
        """Read one; None where no change of it costs anything, or none is known to."""
        uses, size = Uses(m, grams), _usual_size(m, choices)
        if uses.busiest < 0:
            return None
        weights = source.matrices(source.layers[m.name])
        weight = next(islice(weights, uses.busiest, None))
        grams_of_uses = uses.of(uses.busiest)
        rounding = WeightRounding.of(weight, m, grams_of_uses)
        if not rounding.costly:
            return None
        plain = Choices(bits=choices.bits, group_sizes=(size,))
        offers = expected_offers(weight, m, grams_of_uses, plain)
        expected = {offer.bits: offer.cost for offer in offers if offer.bits}
        return cls(m, uses.busiest, rounding, size, expected)

    def error(self, bits: int) -> _Error:
        E = self.rounding.error(bits, self.group_size)
        foreseen = self.rounding.expected_error(bits, self.group_size)
        cost = self.rounding.cost
        return _Error(E.rows(slice(None)), cost(E), cost(foreseen))


class PriceFactors:
    """What the prices of a group of matrices are multiplied by, from what its samples show.

    Args:
        costs: By bits; empty where nothing was measured.

    Examples:
        >>> two, three = GroupCost(1.0, 2.0, 4.0, 3.0), GroupCost(1.0, 1.1, 1.0, None)
        >>> factors = PriceFactors({2: two, 3: three})
        >>> factors.of_predicted(2), factors.of_predicted(8)
        (1.5, 1.5)
        >>> factors.of_expected(2), round(factors.of_expected(8), 9), factors.of_foreseen(2)
        (3.0, 1.65, 0.5)
    """

    def __init__(self, costs: GroupCosts) -> None:
        self._all = costs
        self._run = {bits: m for bits, m in costs.items() if m.divergence is not None}

    def of_predicted(self, bits: int | None) -> float:
        """Return the divergence over the predicted cost; 1 where neither differs from nothing.

        Args:
            bits: Of the backbone; None for a correction alone.
        """
        if not self._run:
            return 1.0
        measured = _nearest(self._run, bits)
        assert measured.divergence is not None
        return (measured.divergence + LEAST_RESOLVED) / (measured.predicted + LEAST_RESOLVED)

    def of_expected(self, bits: int | None) -> float:
        """Return the divergence over the expected cost."""
        if not self._all:
            return 1.0
        nearest = _nearest(self._all, bits)
        return self.of_predicted(bits) * _ratio(nearest.predicted, nearest.expected)

    def of_foreseen(self, bits: int | None) -> float:
        """Return the predicted cost of what was rounded in full over that of what was expected."""
        if not self._all:
            return 1.0
        nearest = _nearest(self._all, bits)
        return _ratio(nearest.predicted, nearest.foreseen)


def _ratio(a: float, b: float) -> float:
    return a / b if b else 1.0


def _nearest(costs: GroupCosts, bits: int | None) -> GroupCost:
    """Return that of the most bits that are not more than ``bits``, or of the fewest."""
    below = [known for known in costs if bits is None or known <= bits]
    return costs[max(below, default=min(costs))]


def in_nine_digits(price: float) -> float:
    """Return a price without the digits that may depend on how many threads summed.

    Examples:
        >>> in_nine_digits(0.12345678912345)
        0.123456789
    """
    return float(f"{price:.{DIGITS}g}")
