"""What is known of the errors of a matrix once components of it are left out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from plastic_core import Backbone
from plastic_core.files import array_from_bytes
from plastic_core.linalg import Float32, Float64, spectral_norm, squared_norm

from plastic_export.compression.spectra import decoded_spectrum
from plastic_export.dialling.turning import Turnable
from plastic_export.folder.manifest import MatrixRecord
from plastic_export.folder.shards import as_float32
from plastic_export.format.parts import Part, Parts
from plastic_export.plan.offers import Offer

SQUARINGS = 3
"""Of the product of two Grams: a norm is overestimated by at most ``k^(1/16)`` for k components."""


class Sides(NamedTuple):
    """Some components ``Ut^T V`` as float32.

    Attributes:
        Ut: Output directions, shape (k, out).
        V: Input directions, shape (k, in).
    """

    Ut: Float32
    V: Float32


def side_values(part: Part, tensors: Sequence[NDArray[np.uint8]]) -> Float32:
    """Return what the rows of one side stand for.

    Args:
        part: How that side is stored.
        tensors: Its rows of bytes, as `ComponentRows.of` returns them.
    """
    count = len(tensors[0])
    whole = replace(part, shape=(count, part.shape[1]), transposed=False)
    arrays = [
        array_from_bytes(np.ascontiguousarray(rows).reshape(-1), spec.dtype, spec.shape)
        for rows, spec in zip(tensors, whole.specs, strict=True)
    ]
    if part.bits is None:
        return as_float32(arrays[0])
    codes, scales, biases = arrays
    return Backbone(codes, scales, biases, part.bits, part.group_size, whole.shape).dequantized()


def product_norm_bound(sides: Sides) -> float:
    r"""Return an upper bound of the spectral norm of ``Ut^T V``, from two Grams of size k.

    The eigenvalues of :math:`G = (Ut Ut^T)(V V^T)` are the squared singular values of the product,
    so :math:`\|Ut^T V\|_2 \le \mathrm{tr}(G^8)^{1/16}`.

    Examples:
        >>> sides = Sides(np.eye(2, 3, dtype=np.float32), np.diag(np.float32([3.0, 1.0])))
        >>> round(product_norm_bound(sides), 3)
        3.0
    """
    if not len(sides.Ut):
        return 0.0
    U, V = (side.astype(np.float64) for side in sides)
    G: Float64 = (U @ U.T) @ (V @ V.T)
    scale, power = 0.0, 1.0
    for _ in range(SQUARINGS):
        norm = float(np.abs(G).max())
        if norm == 0.0:
            return 0.0
        scale, G = scale + math.log(norm) / power, (G / norm) @ (G / norm)
        power *= 2
    trace = max(float(np.trace(G)), 0.0)
    return math.exp((scale + math.log(trace) / power) / 2) if trace else 0.0


def turned_record(m: Turnable, offer: Offer, parts: Parts, stored: Sides) -> MatrixRecord:
    """Return the record of a matrix that was turned.

    Its spectral error is an upper bound where components are left out: the error with all of them
    awake, and a bound of the norm of what is left out. The other errors are those that were
    measured when it was compressed; of a matrix without a backbone, what its orthonormal factors
    tell, but for the rounding to their type.

    Args:
        m: The matrix.
        offer: How it is stored now.
        parts: What it is stored as.
        stored: All its components as the folder had them, in the order of their worth.
    """
    r = m.record
    same = replace(
        r,
        stored_bytes=offer.nbytes,
        rank=offer.rank,
        parked=offer.parked,
        factor_bits=offer.factor_bits,
        factor_group_sizes=parts.factor_group_sizes,
        predicted_kl=offer.cost,
    )
    if offer.rank != r.rank:
        same = (_by_curve if r.curve else _by_spectrum)(same, stored)
    return same if same.components == r.components else _forgotten(same)


def _by_curve(r: MatrixRecord, stored: Sides) -> MatrixRecord:
    """Take the errors from the curve."""
    curve, cut = r.curve, Sides(stored.Ut[r.rank :], stored.V[r.rank :])
    assert curve is not None
    spectral = curve.spectral_error
    if len(cut.V):
        spectral += product_norm_bound(cut) / curve.spectral_norm
    return replace(
        r,
        relative_error=curve.at(r.rank)[1],
        spectral_error=spectral,
        restored_error=curve.relative_error[-1],
    )


def _by_spectrum(r: MatrixRecord, stored: Sides) -> MatrixRecord:
    """Take the errors from the factors ``W ~ U V`` with U orthonormal, of which V has the norms."""
    cut = Sides(stored.Ut[r.rank :], stored.V[r.rank :])
    total = squared_norm(stored.V) / (1 - r.restored_error**2)
    largest = spectral_norm(stored.V)
    rest = r.restored_error * math.sqrt(total)
    s = decoded_spectrum(r.spectrum) ** 2
    return replace(
        r,
        relative_error=math.sqrt(r.restored_error**2 + squared_norm(cut.V) / total),
        spectral_error=(rest + product_norm_bound(cut)) / largest,
        retained_energy=float(s[: r.rank].sum() / s.sum()),
    )


def _forgotten(r: MatrixRecord) -> MatrixRecord:
    """Return the record of a matrix of which components are gone."""
    curve = r.curve.until(r.rank, r.spectral_error) if r.curve and r.rank else None
    return replace(r, restored_error=r.relative_error, curve=curve)
