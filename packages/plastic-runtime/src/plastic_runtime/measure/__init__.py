"""Measurements of a model in one pass over a text: Gram matrices, gradients, Jacobian ranks.

Stands on no other room; ``surgery`` and ``manager`` use it.
"""

from plastic_runtime.measure.block_chain import Chain
from plastic_runtime.measure.gram_file import VERSION, Sum, append
from plastic_runtime.measure.grams import LONGEST_DENSE_SIDE, is_dense
from plastic_runtime.measure.intercept import AS_LINEAR, Around, Bound, intercepted, modules_by_path
from plastic_runtime.measure.numpy_products import numpy_product
from plastic_runtime.measure.recorder import chosen_experts, hosted, linear_layers

__all__ = [
    "AS_LINEAR",
    "LONGEST_DENSE_SIDE",
    "VERSION",
    "Around",
    "Bound",
    "Chain",
    "Sum",
    "append",
    "chosen_experts",
    "hosted",
    "intercepted",
    "is_dense",
    "linear_layers",
    "modules_by_path",
    "numpy_product",
]
