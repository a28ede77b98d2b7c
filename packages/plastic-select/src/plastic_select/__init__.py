"""Which rank? Spectra, stable rank, and rank selection for any matrix."""

from importlib.metadata import version

from plastic_select.allocation.allocation import Allocation, allocate
from plastic_select.allocation.options import Option, rank_options
from plastic_select.budget import break_even_rank, budget_rank
from plastic_select.choose import STRATEGIES, choose_rank, choose_rank_from_spectrum
from plastic_select.polynomial import RankIdentity, gcd_and_lcm, horner, rank_identity
from plastic_select.rules.rule import RankChoice
from plastic_select.rules.theorem import rank_bracket, theorem_guided_rank, theorem_rank
from plastic_select.rules.threshold import optimal_threshold_rank
from plastic_select.spectrum import (
    effective_rank,
    effective_rank_of_spectrum,
    energy_rank,
    singular_values,
    stable_rank,
    stable_rank_of_spectrum,
    weighted_singular_values,
)
from plastic_select.together import choose_ranks

__version__ = version("plastic-select")

__all__ = [
    "STRATEGIES",
    "Allocation",
    "Option",
    "RankChoice",
    "RankIdentity",
    "allocate",
    "break_even_rank",
    "budget_rank",
    "choose_rank",
    "choose_rank_from_spectrum",
    "choose_ranks",
    "effective_rank",
    "effective_rank_of_spectrum",
    "energy_rank",
    "gcd_and_lcm",
    "horner",
    "optimal_threshold_rank",
    "rank_bracket",
    "rank_identity",
    "rank_options",
    "singular_values",
    "stable_rank",
    "stable_rank_of_spectrum",
    "theorem_guided_rank",
    "theorem_rank",
    "weighted_singular_values",
]
