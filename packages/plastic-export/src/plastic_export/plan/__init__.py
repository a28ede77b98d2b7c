"""The offers of every matrix, their prices, and those that a budget buys.

Stands on ``calibration`` and below.
"""

from plastic_export.plan.gram_uses import DAMPING, gram_roots
from plastic_export.plan.offers import factor_bytes, packed_bytes
from plastic_export.plan.pricing import (
    backbones_of,
    choices_for,
    corrected_backbones,
    offered_ranks,
    offers_of,
    pareto,
    rounded,
)

__all__ = [
    "DAMPING",
    "backbones_of",
    "choices_for",
    "corrected_backbones",
    "factor_bytes",
    "gram_roots",
    "offered_ranks",
    "offers_of",
    "packed_bytes",
    "pareto",
    "rounded",
]
