"""Measurements of a model in one pass over a text: Gram matrices, gradients, Jacobian ranks.

Stands on no other room; ``surgery`` and ``manager`` use it.
"""

from plastic_runtime.measure.block_chain import BlockChain, block_of, model_blocks
from plastic_runtime.measure.gram_file import GRAM_FILE_VERSION, GramSum, append_grams
from plastic_runtime.measure.grams import LONGEST_DENSE_SIDE, is_dense
from plastic_runtime.measure.intercept import (
    AS_LINEAR,
    BoundCall,
    Interceptor,
    intercepted,
    modules_by_path,
)
from plastic_runtime.measure.numpy_products import numpy_product
from plastic_runtime.measure.recorder import chosen_experts, linear_layers, using_numpy

__all__ = [
    "AS_LINEAR",
    "GRAM_FILE_VERSION",
    "LONGEST_DENSE_SIDE",
    "BlockChain",
    "BoundCall",
    "GramSum",
    "Interceptor",
    "append_grams",
    "block_of",
    "chosen_experts",
    "intercepted",
    "is_dense",
    "linear_layers",
    "model_blocks",
    "modules_by_path",
    "numpy_product",
    "using_numpy",
]
