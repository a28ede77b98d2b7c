"""What is known of the errors of a matrix once components of it are left out."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from plastic_core import Backbone
from plastic_core.files import array_from_bytes
from plastic_core.linalg import Float32, Float64, spectral_norm, squared_norm
from plastic_runtime.dialling import MatrixRecord, decoded_spectrum
from plastic_select.rules import NEED_GRAM

from plastic_export.dialling.rows import Bytes
from plastic_export.dialling.turning import Turnable
from plastic_export.folder.shards import as_float32
from plastic_export.format.parts import Part, Parts
from plastic_export.plan.offers import Offer

SQUARINGS = 3
"""Of the product of two Grams: a norm is overestimated by at most ``k^(1/16)`` for k components."""
_TOLERANCE = 1e-2  # of `spectral_norm`, which is a lower bound


class StoredSides(NamedTuple):
    """All components of a matrix as rows of bytes, in the order of their worth.

    Attributes:
        u: How the output directions were stored.
        u_rows: One array per tensor of it, a row per component.
        v: How the input directions were stored.
        v_rows: The same of them.
    """

    u: Part | None
    u_rows: list[Bytes]
    v: Part | None
    v_rows: list[Bytes]

    def outputs(self, start: int) -> Float32:
        """Return the output directions from a component on, shape (k, out)."""
        return _values(self.u, [rows[start:] for rows in self.u_rows])

    def inputs(self, start: int) -> Float32:
        """Return the input directions from a component on, shape (k, in)."""
        return _values(self.v, [rows[start:] for rows in self.v_rows])


def _values(part: Part | None, tensors: list[Bytes]) -> Float32:
    """Return what rows of bytes stand for."""
    assert part is not None
    whole = replace(part, shape=(len(tensors[0]), part.shape[1]), transposed=False)
    arrays = [
        array_from_bytes(np.ascontiguousarray(rows).reshape(-1), spec.dtype, spec.shape)
        for rows, spec in zip(tensors, whole.specs, strict=True)
    ]
    if part.bits is None:
        return as_float32(arrays[0])
    codes, scales, biases = arrays
    return Backbone(codes, scales, biases, part.bits, part.group_size, whole.shape).dequantized()


def product_norm_bound(Ut: Float32, V: Float32) -> float:
    r"""Return an upper bound of the spectral norm of ``Ut^T V``, from two Grams of size k.

    The eigenvalues of :math:`G = (Ut Ut^T)(V V^T)` are the squared singular values of the product,
    so :math:`\|Ut^T V\|_2 \le \mathrm{tr}(G^8)^{1/16}`.

    Examples:
        >>> round(product_norm_bound(np.eye(2, 3), np.diag([3.0, 1.0])), 3)
        3.0
    """
    if not len(Ut):
        return 0.0
    wide_U, wide_V = Ut.astype(np.float64), V.astype(np.float64)
    G: Float64 = (wide_U @ wide_U.T) @ (wide_V @ wide_V.T)
    scale, power = 0.0, 1.0
    for _ in range(SQUARINGS):
        norm = float(np.abs(G).max())
        if norm == 0.0:
            return 0.0
        scale, G = scale + math.log(norm) / power, (G / norm) @ (G / norm)
        power *= 2
    trace = max(float(np.trace(G)), 0.0)
    return math.exp((scale + math.log(trace) / power) / 2) if trace else 0.0


def turned_record(m: Turnable, offer: Offer, parts: Parts, stored: StoredSides) -> MatrixRecord:
    """Return the record of a matrix that was turned.

    By prices, the Frobenius error is the one that was measured when it was compressed, and the
    spectral one an upper bound where components are left out: the error with all of them awake, and
    a bound of the norm of what is left out. By a strategy, both are what the spectrum or the
    factors tell, whose output directions are orthonormal but for the rounding to their type.

    Args:
        m: The matrix.
        offer: How it is stored now.
        parts: What it is stored as.
        stored: All its components as the folder had them.
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
        same = _by_curve(same, stored) if r.curve else _by_strategy(same, m.strategy, stored)
    return same if same.components == r.components else _forgotten(same)


def _by_curve(r: MatrixRecord, stored: StoredSides) -> MatrixRecord:
    curve = r.curve
    assert curve is not None
    spectral = curve.spectral_error
    if r.rank < curve.ranks[-1]:
        cut = product_norm_bound(stored.outputs(r.rank), stored.inputs(r.rank))
        spectral += cut / curve.spectral_norm
    return replace(
        r,
        relative_error=curve.at(r.rank)[1],
        spectral_error=spectral,
        restored_error=curve.relative_error[-1],
    )


def _by_strategy(r: MatrixRecord, strategy: str | None, stored: StoredSides) -> MatrixRecord:
    s = decoded_spectrum(r.spectrum)
    energy = s**2
    retained = float(energy[: r.rank].sum() / energy.sum())
    if strategy in NEED_GRAM:
        relative, spectral = _of_orthonormal(r, stored)
    else:  # the spectrum is that of the matrix itself
        relative, spectral = (
            math.sqrt(max(0.0, 1 - retained)),
            float(s[r.rank :].max(initial=0.0) / s[0]),
        )
    own = r.restored_error
    return replace(
        r,
        relative_error=math.hypot(relative, own),
        spectral_error=spectral + own * float(np.linalg.norm(s) / s[0]),
        retained_energy=retained,
    )


def _of_orthonormal(r: MatrixRecord, stored: StoredSides) -> tuple[float, float]:
    """Return both errors of ``W ~ U V`` from V, which has the norms of the product."""
    V = stored.inputs(0)
    cut, total = V[r.rank :], squared_norm(V)
    return (
        math.sqrt(squared_norm(cut) / total),
        spectral_norm(cut) / (1 - _TOLERANCE) / spectral_norm(V),
    )


def _forgotten(r: MatrixRecord) -> MatrixRecord:
    """Return the record of a matrix of which components are gone."""
    curve = r.curve.until(r.rank, r.spectral_error) if r.curve and r.rank else None
    return replace(r, restored_error=r.relative_error, curve=curve)
