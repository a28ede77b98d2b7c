"""The offers of every matrix, their prices, and those that a budget buys.

Stands on ``calibration`` and below.
"""

from plastic_export.plan.choices import (
    backbones_of,
    choices_for,
    corrected_backbones,
    offered_ranks,
)
from plastic_export.plan.gram_uses import DAMPING, gram_roots
from plastic_export.plan.likeness import alike, in_a_block, samples_of
from plastic_export.plan.offers import factor_bytes, packed_bytes
from plastic_export.plan.pricing import corrected_offers, expected_offers, pareto, rounded_offers
from plastic_export.plan.probe import PROBED_TOKENS, TRIED_TOKENS
from plastic_export.plan.storing import rounded

__all__ = [
    "DAMPING",
    "PROBED_TOKENS",
    "TRIED_TOKENS",
    "alike",
    "backbones_of",
    "choices_for",
    "corrected_backbones",
    "corrected_offers",
    "expected_offers",
    "factor_bytes",
    "gram_roots",
    "in_a_block",
    "offered_ranks",
    "packed_bytes",
    "pareto",
    "rounded",
    "rounded_offers",
    "samples_of",
]
