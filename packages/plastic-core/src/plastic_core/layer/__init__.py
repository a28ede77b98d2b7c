"""The layers: ``RankLayer``, the blocks made of it, and access to MLX's own layers.

Stands on ``linalg``, ``factors`` and ``loss``.
"""

from plastic_core.layer.checks import Indices, check_threshold, checked_indices
from plastic_core.layer.mlx_linear import Linear, dense_weight, is_stack, linear_from, linear_shape
from plastic_core.layer.module import Module

__all__ = [
    "Indices",
    "Linear",
    "Module",
    "check_threshold",
    "checked_indices",
    "dense_weight",
    "is_stack",
    "linear_from",
    "linear_shape",
]
