"""The layer whose rank is a dial: RankLayer, low-rank factors, quantised factors, for MLX."""

from importlib.metadata import version

from plastic_core.factors.certificate import certify
from plastic_core.factors.factors import Certificate, Factors
from plastic_core.factors.lowrank import factorized_lowrank, svd_lowrank
from plastic_core.factors.operators import Operator, difference
from plastic_core.factors.quantize import (
    PackedMatrix,
    QuantizedFactors,
    dequantize_factors,
    quantize_factors,
)
from plastic_core.factors.updating import add_factors, grow_factors
from plastic_core.layer.block import PlasticBlock
from plastic_core.layer.projection import Projection, projections
from plastic_core.layer.rank_layer import RankLayer
from plastic_core.loss.damping import block_side
from plastic_core.loss.gram_root import GramRoot
from plastic_core.loss.loss import loss_factors, loss_spectrum, predicted_cost
from plastic_core.loss.weighted import OutputBasis, output_basis, weighted_spectrum
from plastic_core.rounding.backbone import Backbone, error_feedback, round_to_nearest
from plastic_core.rounding.correction import (
    Correction,
    correction_costs,
    factor_group,
    priced_corrections,
)

__version__ = version("plastic-core")

__all__ = [
    "Backbone",
    "Certificate",
    "Correction",
    "Factors",
    "GramRoot",
    "Operator",
    "OutputBasis",
    "PackedMatrix",
    "PlasticBlock",
    "Projection",
    "QuantizedFactors",
    "RankLayer",
    "add_factors",
    "block_side",
    "certify",
    "correction_costs",
    "dequantize_factors",
    "difference",
    "error_feedback",
    "factor_group",
    "factorized_lowrank",
    "grow_factors",
    "loss_factors",
    "loss_spectrum",
    "output_basis",
    "predicted_cost",
    "priced_corrections",
    "projections",
    "quantize_factors",
    "round_to_nearest",
    "svd_lowrank",
    "weighted_spectrum",
]
