"""Bits and group sizes by the error of the weights alone: a knapsack without a text, as in MINT.

What rounding to nearest loses of a matrix, relative to its squared norm and times its entries, is
the price of every width and group size; one allocation spends the budget. A way of storing a matrix
whose signal is less than 9 dB above its noise is taken only where the budget leaves no other.
"""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray
from plastic_core.files import MLX_DTYPES
from plastic_export import Candidate, Choices, Offer, Offered, plan_bits
from plastic_export.checkpoint import module_path
from plastic_export.plan import backbones_of, packed_bytes, pareto

from bakeoff.bench import BakeOff
from bakeoff.quantizers import Unsupported
from bakeoff.stock import converted
from bakeoff.written import Written, weigh

LEAST_SIGNAL = 9.0  # decibels over the noise


def knapsack(bench: BakeOff, out: Path, budget: float) -> Written:
    """Round to nearest what the allocation says."""
    if any(m.experts for m in bench.matrices):
        raise Unsupported("the knapsack over rounding to nearest takes no stacks of experts")
    bench.check_budget(budget)
    (plan,) = plan_bits([_offered(bench, m) for m in bench.matrices], [budget])
    chosen = {module_path(name): offer for name, offer in plan.chosen.items()}
    packing = {path: (o.bits, o.group_size) for path, o in chosen.items() if o.bits is not None}
    converted(bench, out, packing)
    return weigh(out)


def _offered(bench: BakeOff, m: Candidate) -> Offered:
    W = bench.checkpoint.matrix(m.name)
    offers = [_offer(W, m, bits, size, bench.weights) for bits, size in backbones_of(m, Choices())]
    return Offered(m, (*pareto(offers), Offer.unchanged(m)))


def _offer(W: NDArray[np.float32], m: Candidate, bits: int, group_size: int, veto: int) -> Offer:
    """Return an offer; under the least signal it costs more than all others together."""
    lost = rounding_loss(W, bits, group_size, MLX_DTYPES[m.dtype])
    cost = m.weights * lost + (veto if lost > 10 ** (-LEAST_SIGNAL / 10) else 0)
    return Offer(
        bits, packed_bytes(m.shape, bits, group_size, m.dtype), cost, group_size=group_size
    )


def rounding_loss(W: NDArray[np.float32], bits: int, group_size: int, dtype: mx.Dtype) -> float:
    """Return the squared error of rounding to nearest over the squared norm; 0 of zeros."""
    packed = mx.quantize(mx.array(W).astype(dtype), group_size, bits)
    near = mx.dequantize(*packed, group_size, bits).astype(mx.float32)
    return float(((near - mx.array(W)) ** 2).sum()) / (float((W**2).sum()) or 1.0)
