"""The price of every way of storing every matrix, in bytes and in nats per token."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from plastic_core.files import noting
from plastic_core.linalg import in_threads, workers
from plastic_runtime import LossGrams, Track, Weighted, untracked
from plastic_runtime.distributed import Team, dealt

from plastic_export.estimate.phases import counted_work
from plastic_export.plan.choices import Choices, choices_for
from plastic_export.plan.gram_uses import Uses
from plastic_export.plan.likeness import alike, samples_of
from plastic_export.plan.measured import PriceFactors, group_costs, in_nine_digits
from plastic_export.plan.offers import Candidate, Choice, Offer, Offered
from plastic_export.plan.price_journal import PriceJournal
from plastic_export.plan.pricing import corrected_offers, expected_offers, pareto, rounded_offers
from plastic_export.plan.probe import PriceProbe
from plastic_export.source.source import Source

SIDE_BY_SIDE_BYTES = 2**30
"""Bytes of the Grams of matrices that are priced at the same time, at most."""


def price(
    source: Source,
    candidates: Sequence[Candidate],
    grams: Mapping[str, LossGrams],
    choices: Choices | None = None,
    *,
    probe: PriceProbe | None = None,
    thorough: bool = False,
    journal: PriceJournal | None = None,
    track: Track = untracked,
    team: Team | None = None,
) -> tuple[Offered, ...]:
    """Predict what every way of storing every matrix costs.

    Backbones alone have their `expected_costs`; what corrections are offered for, is rounded in
    full. Then a few of each group of alike matrices are rounded in full and run
    (`plastic_export.plan.measured`), and all prices of the group are multiplied by what that shows.

    Args:
        source: The source.
        candidates: The matrices, each with Grams.
        grams: Both Grams by module path.
        choices: What to offer; by default every number of bits.
        probe: Runs the model with changes; without it no price is corrected.
        thorough: Whether every matrix is rounded in every way, and run by itself: about a hundred
            times the work, and what the quick way is compared with.
        journal: Knows the matrices and groups that were priced before, and is told of those that
            are now.
        track: Wraps the loops over the matrices and over the groups.
        team: Processes that price together, each with the same arguments and a journal of its own:
            matrices and groups are dealt out by their cost. By default this one alone.

    Returns:
        What each offers, in the order of ``candidates``: every way that makes it smaller than it
        is in the source and, unless ranks are prescribed, costs less than all that take no more
        bytes; then as it is, at no cost.

    Raises:
        FormatError: If a weight cannot be read or is not finite.
        ValueError: If a weight cannot be quantised, or no token reached any expert of a stack.
    """
    pricing = _Pricing(source, grams, choices or Choices(), thorough, journal)
    if team is not None and team.size > 1:
        pricing.share(candidates, probe, track, team)
    offers = pricing.offers(candidates, track)
    factors = {} if probe is None else pricing.factors(candidates, probe, track)
    nothing = PriceFactors({})
    return tuple(
        pricing.offered(m, offers[m.name], factors.get(m.name, nothing)) for m in candidates
    )


class _Pricing(NamedTuple):
    source: Source
    grams: Mapping[str, LossGrams]
    choices: Choices
    thorough: bool
    journal: PriceJournal | None

    def share(
        self,
        candidates: Sequence[Candidate],
        probe: PriceProbe | None,
        track: Track,
        team: Team,
    ) -> None:
        """Let the journal know all prices: each process finds out some of them."""
        if self.journal is None:
            raise ValueError("`journal` must be given where several processes price, got None.")
        self.journal.exchange(team)
        missing = [m for m in candidates if self.journal.offers(m) is None]
        hand = dealt([_work(m) for m in missing], team.size)[team.rank]
        self.offers([missing[number] for number in hand], track)
        self.journal.exchange(team)
        if probe is None:
            return
        groups = [
            group
            for group in self._groups(candidates)
            if self.journal.group_costs([m.name for m in group]) is None
        ]
        costs = [sum(_work(m) for m in samples_of(group)) for group in groups]
        hand = dealt(costs, team.size)[team.rank]
        self._measure([groups[number] for number in hand], probe, track)
        self.journal.exchange(team)

    def offers(self, candidates: Sequence[Candidate], track: Track) -> dict[str, list[Offer]]:
        """Return what is offered by name, at costs that no factor has corrected."""
        found = dict[str, list[Offer]]()
        batches = side_by_side(candidates, workers())
        work = [sum(map(_work, batch)) for batch in batches]
        for batch in track(Weighted(batches, work), "pricing"):
            known = {m.name: self.journal.offers(m) for m in batch} if self.journal else {}
            found |= {name: offers for name, offers in known.items() if offers is not None}
            missing = [m for m in batch if m.name not in found]
            found |= self._priced(missing)
            if self.journal:
                for m in missing:
                    self.journal.add_offers(m, found[m.name])
        return found

    def _priced(self, batch: Sequence[Candidate]) -> dict[str, list[Offer]]:
        """Price some matrices side by side; of a stack the costs of its experts are added."""
        totals: dict[str, dict[Choice, Offer]] = {m.name: {} for m in batch}
        weights = (weight for m in batch for weight in self._weights(m))
        while several := list(islice(weights, workers())):
            for weight, offers in zip(several, in_threads(self._offers_of, several), strict=True):
                total = totals[weight.m.name]
                for offer in offers:
                    before = total.get(offer.choice, Offer.nothing())
                    nbytes, cost = before.nbytes + offer.nbytes, before.cost + offer.cost
                    total[offer.choice] = offer._replace(nbytes=nbytes, cost=cost)
        return {
            m.name: [o._replace(cost=in_nine_digits(o.cost)) for o in totals[m.name].values()]
            for m in batch
        }

    def _weights(self, m: Candidate) -> Iterator[_Weight]:
        """Read a matrix, or those of a stack one by one, with their Grams."""
        with noting(f"at {m.name!r}"):
            uses = Uses(m, self.grams)
            for expert, matrix in enumerate(self.source.matrices(self.source.layers[m.name])):
                yield _Weight(m, matrix, uses.of(expert))

    def _offers_of(self, weight: _Weight) -> list[Offer]:
        own = weight.matrix, weight.m, weight.uses, choices_for(weight.m, self.choices)
        with noting(f"at {weight.m.name!r}"):
            plain = rounded_offers(*own) if self.thorough else expected_offers(*own)
            return plain + corrected_offers(*own)

    def factors(
        self, candidates: Sequence[Candidate], probe: PriceProbe, track: Track
    ) -> dict[str, PriceFactors]:
        """Return what the prices of every matrix are multiplied by, by name."""
        return self._measure(self._groups(candidates), probe, track)

    def _groups(self, candidates: Sequence[Candidate]) -> list[list[Candidate]]:
        """Return the matrices that are measured together."""
        return [[m] for m in candidates] if self.thorough else alike(candidates)

    def _measure(
        self, groups: Sequence[list[Candidate]], probe: PriceProbe, track: Track
    ) -> dict[str, PriceFactors]:
        """Return the factors of the matrices of some groups, by name."""
        found = dict[str, PriceFactors]()
        for group in track(groups, "measuring prices"):
            names = [m.name for m in group]
            measured = None if self.journal is None else self.journal.group_costs(names)
            if measured is None:
                samples = samples_of(group)
                measured = group_costs(self.source, samples, self.grams, self.choices, probe)
                if self.journal is not None:
                    self.journal.add_group_costs(names, measured)
            found |= dict.fromkeys(names, PriceFactors(measured))
        return found

    def offered(self, m: Candidate, offers: Sequence[Offer], factors: PriceFactors) -> Offered:
        """Return what a matrix offers, at its corrected prices."""

        def factor(bits: int | None, rank: int = 0) -> float:
            in_full = self.thorough or rank > 0
            return factors.of_predicted(bits) if in_full else factors.of_expected(bits)

        smaller = [o for o in offers if o.nbytes < m.source_bytes]
        smaller = [
            o._replace(cost=in_nine_digits(factor(o.bits, o.rank) * o.cost)) for o in smaller
        ]
        if choices_for(m, self.choices).ranks:  # of which only one will be allowed
            smaller.sort(key=lambda offer: offer.nbytes)
        else:
            smaller = pareto(smaller)
        bits = self.choices.bits
        known = {b: in_nine_digits(factor(b)) for b in bits}
        errors = {b: in_nine_digits(factors.of_foreseen(b)) for b in bits}
        return Offered(m, (*smaller, Offer.unchanged(m)), known, errors)


def _work(m: Candidate) -> float:
    """Return how much work a matrix is, in any unit."""
    return counted_work(m.weights, m.shape)


class _Weight(NamedTuple):
    """A matrix, or one of a stack, and the Grams of its uses."""

    m: Candidate
    matrix: NDArray[np.float32]
    uses: tuple[LossGrams, ...]


def side_by_side(matrices: Sequence[Candidate], count: int) -> list[list[Candidate]]:
    """Split matrices, in their order, into runs to be priced at the same time.

    Args:
        matrices: The matrices.
        count: At most so many in a run; fewer where their Grams take `SIDE_BY_SIDE_BYTES`.
    """
    runs, room = list[list[Candidate]](), 0
    for m in matrices:
        nbytes = sum(8 * side**2 for side in m.shape)
        if not runs or len(runs[-1]) == count or nbytes > room:
            runs.append([])
            room = SIDE_BY_SIDE_BYTES
        runs[-1].append(m)
        room -= nbytes
    return runs
