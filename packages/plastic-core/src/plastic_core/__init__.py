"""The layer whose rank is a dial: RankLayer, low-rank factors, quantised factors, for MLX."""

from importlib.metadata import version

from plastic_core.backbone import Backbone, error_feedback, round_to_nearest
from plastic_core.block import PlasticBlock
from plastic_core.certificate import certify
from plastic_core.correction import Correction, correction_costs, factor_group
from plastic_core.factors import Certificate, Factors
from plastic_core.gramroot import GramRoot, block_side
from plastic_core.isolated import Worker, WorkerError, run_isolated
from plastic_core.layer import RankLayer
from plastic_core.loss import loss_factors, loss_spectrum, predicted_cost
from plastic_core.lowrank import factorized_lowrank, svd_lowrank
from plastic_core.operators import Operator, difference
from plastic_core.projection import Projection, projections
from plastic_core.quantize import (
    PackedMatrix,
    QuantizedFactors,
    dequantize_factors,
    quantize_factors,
)
from plastic_core.updating import add_factors, grow_factors
from plastic_core.weighted import Basis, output_basis, weighted_spectrum

__version__ = version("plastic-core")

__all__ = [
    "Backbone",
    "Basis",
    "Certificate",
    "Correction",
    "Factors",
    "GramRoot",
    "Operator",
    "PackedMatrix",
    "PlasticBlock",
    "Projection",
    "QuantizedFactors",
    "RankLayer",
    "Worker",
    "WorkerError",
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
    "projections",
    "quantize_factors",
    "round_to_nearest",
    "run_isolated",
    "svd_lowrank",
    "weighted_spectrum",
]
