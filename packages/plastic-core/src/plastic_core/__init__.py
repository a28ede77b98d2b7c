"""The layer whose rank is a dial: RankLayer, low-rank factors, quantised factors, for MLX."""

from importlib.metadata import version

from plastic_core.block import PlasticBlock
from plastic_core.layer import RankLayer
from plastic_core.lowrank import (
    Certificate,
    Factors,
    certify,
    factorized_lowrank,
    svd_lowrank,
)
from plastic_core.projection import Projection, projections
from plastic_core.quantize import (
    PackedMatrix,
    QuantizedFactors,
    dequantize_factors,
    quantize_factors,
)
from plastic_core.weighted import Basis, output_basis, weighted_spectrum

__version__ = version("plastic-core")

__all__ = [
    "Basis",
    "Certificate",
    "Factors",
    "PackedMatrix",
    "PlasticBlock",
    "Projection",
    "QuantizedFactors",
    "RankLayer",
    "certify",
    "dequantize_factors",
    "factorized_lowrank",
    "output_basis",
    "projections",
    "quantize_factors",
    "svd_lowrank",
    "weighted_spectrum",
]
