"""The layers themselves: ``RankLayer``, the blocks made of it, and what MLX's own layers hold.

Stands on ``linalg``, ``factors`` and ``loss``.
"""

from plastic_core.layer.checks import cast_factors
from plastic_core.layer.mlx_linear import Linear, dense_weight, is_stack, linear_from, linear_shape

__all__ = ["Linear", "cast_factors", "dense_weight", "is_stack", "linear_from", "linear_shape"]
