"""The layer whose rank is a dial: RankLayer, low-rank factors, quantised factors, for MLX."""

from importlib.metadata import version

from plastic_core.block import PlasticBlock
from plastic_core.certificate import certify
from plastic_core.factors import Certificate, Factors
from plastic_core.isolated import WorkerError, run_isolated
from plastic_core.layer import RankLayer
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
    "Basis",
    "Certificate",
    "Factors",
    "Operator",
    "PackedMatrix",
    "PlasticBlock",
    "Projection",
    "QuantizedFactors",
    "RankLayer",
    "WorkerError",
    "add_factors",
    "certify",
    "dequantize_factors",
    "difference",
    "factorized_lowrank",
    "grow_factors",
    "output_basis",
    "projections",
    "quantize_factors",
    "run_isolated",
    "svd_lowrank",
    "weighted_spectrum",
]
