"""A plan as a whole, tried before it is carried out: what all its errors together cost."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from plastic_core import difference
from plastic_core.files import noting
from plastic_runtime import LossGrams
from plastic_runtime.distributed import Team

from plastic_export.checkpoint.tensors import module_path
from plastic_export.plan.gram_uses import Uses
from plastic_export.plan.measured import in_nine_digits
from plastic_export.plan.offers import BitsPlan, Offer, Offered, Tried
from plastic_export.plan.price_journal import PriceJournal
from plastic_export.plan.pricing import WeightRounding
from plastic_export.plan.probe import PriceProbe, WeightChange
from plastic_export.plan.storing import rounded_correction
from plastic_export.source.source import Source


class PlanTrial:
    """Tries plans: changes all weights by errors like those of the rounding, and runs the model.

    Prices are added up matrix by matrix. What several layers damage together is more than that
    where they damage much: at 2.5 bits a Llama of 5.8 M parameters moved 1.6 times as far as the
    sum says. Every weight is changed by the `expected_error` of its offer, scaled to what rounding
    in full left of the samples of its group; with a rank, by what the correction leaves of that,
    rounded as it is written.

    Args:
        source: The source.
        grams: Both Grams by module path.
        matrices: What each matrix offers.
        probe: Runs the model.
        journal: Knows the plans that were tried before, and is told of those that are now.
        team: The processes that try together, of which the journals know the same; by default this
            one alone.
    """

    def __init__(
        self,
        source: Source,
        grams: Mapping[str, LossGrams],
        matrices: Sequence[Offered],
        probe: PriceProbe,
        journal: PriceJournal | None = None,
        team: Team | None = None,
    ) -> None:
        self._source, self._grams, self._probe = source, grams, probe
        self._matrices = {module_path(m.name): m for m in matrices}
        self._journal, self._team = journal, team

    def of(self, plan: BitsPlan) -> Tried:
        """Return what a plan costs as a whole.

        Cost:
            A factorisation of both Grams of every matrix and its `expected_error`, and one pass
            over the tokens. The changes of one block are in memory at a time.
        """
        known = self._journal.trial(plan) if self._journal else None
        if known is not None:
            return known
        found = self._tried(plan)
        if self._journal:
            self._journal.add_trial(plan, found)
        return found

    def _tried(self, plan: BitsPlan) -> Tried:
        chosen = {path: plan.chosen[m.name] for path, m in self._matrices.items()}
        changed = [path for path, offer in chosen.items() if offer.bits or offer.rank]

        def changes(paths: list[str]) -> list[WeightChange]:
            return [c for path in paths for c in self._changes(self._matrices[path], chosen[path])]

        kl = self._probe.token_divergences(changed, changes, self._team)
        error = float(kl.std()) / math.sqrt(kl.size)
        return Tried(in_nine_digits(max(0.0, float(kl.mean()))), in_nine_digits(error), plan.cost)

    def _changes(self, offered: Offered, offer: Offer) -> Iterator[WeightChange]:
        """Return what an offer takes from a matrix, or from those of a stack."""
        m, uses = offered.matrix, Uses(offered.matrix, self._grams)
        with noting(f"at {m.name!r}"):
            for expert, weight in enumerate(self._source.matrices(self._source.layers[m.name])):
                rounding = WeightRounding.of(weight, m, uses.of(expert))
                if rounding.costly:
                    E = _expected(weight, offered, offer, rounding)
                    yield WeightChange(module_path(m.name), -E, expert)


def _expected(
    weight: NDArray[np.float32], offered: Offered, offer: Offer, rounding: WeightRounding
) -> NDArray[np.float32]:
    """Return about what an offer leaves of one matrix."""
    E = weight
    if offer.bits is not None:
        E = rounding.expected_error(offer.bits, offer.group_size)
        E *= np.float32(math.sqrt(offered.error_factors.get(offer.bits, 1.0)))
    if not offer.rank:
        return E
    correction = rounded_correction(E, offer, rounding.shared, offered.matrix)
    return difference(E, correction.operator()).rows(slice(None))
