"""Components as they are stored: every bit, or rounded to a few bits with the error stated."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
from plastic_core import (
    PackedMatrix,
    QuantizedFactors,
    dequantize_factors,
    linalg,
    quantize_factors,
)
from plastic_core.files import MLX_DTYPES, array_bytes, array_from_bytes, dtype_name

from plastic_runtime.sleep.record import Draft, Entry, piece
from plastic_runtime.sleep.sleep_dict import Parked, component_of, named_arrays

GROUP_SIZE = 64
LARGEST = 1e38  # twice that is still a float32
_LEAVES = ("weight", "scales", "biases")


def draft(parked: Parked, bits: int | None) -> Draft:
    """Return the component as it will be written: rounded where ``bits`` is given and it can be."""
    arrays, coding = dict(named_arrays(parked)), None
    if bits is not None and _can_be_rounded(parked):
        arrays, coding = _rounded(parked, arrays, bits)
    pieces = (piece(n, dtype_name(a), tuple(a.shape), array_bytes(a)) for n, a in arrays.items())
    return Draft(parked.id, parked.path, coding, tuple(pieces))


def load(entry: Entry) -> Parked:
    """Read a component from the disk.

    Raises:
        FormatError: If a byte of it has changed; names tensor and component.
        OSError: If it cannot be read.
    """
    arrays = {
        name: array_from_bytes(entry.read(name), info.dtype, info.shape)
        for name, info in entry.tensors.items()
    }
    if entry.coding is not None:
        arrays = _restored(arrays, entry.coding)
    return component_of(entry.id, entry.path, arrays)


def _can_be_rounded(parked: Parked) -> bool:
    """Tell whether it is finite, not empty, and no range of a group overflows float32."""
    sides = (parked.U, parked.Vh, parked.S.reshape(1))
    return all(a.size and bool((mx.abs(a.astype(mx.float32)) < LARGEST).all()) for a in sides)


def _rounded(
    parked: Parked, arrays: dict[str, mx.array], bits: int
) -> tuple[dict[str, mx.array], dict[str, Any]]:
    """Return U and Vh as codes, scales and starts; S and the optimizer state stay."""
    one = mx.array([1.0])
    q = quantize_factors(parked.U[:, None], one, parked.Vh[None], bits, group_size=GROUP_SIZE)
    dtypes = {"U": dtype_name(parked.U), "Vh": dtype_name(parked.Vh)}
    coded = {
        f"{name}.{leaf}": getattr(packed, leaf)
        for name, packed in (("U", q.Ut), ("Vh", q.Vh))
        for leaf in _LEAVES
    }
    others = {name: array for name, array in arrays.items() if name not in dtypes}
    coding = {
        "bits": bits,
        "dtypes": dtypes,
        "sizes": {"U": parked.U.size, "Vh": parked.Vh.size},
        "awake": {"U": parked.U.nbytes, "Vh": parked.Vh.nbytes},
    }
    back = _restored(coded, coding)
    return coded | others, coding | {"error": _error(parked, back["U"], back["Vh"])}


def _restored(arrays: dict[str, mx.array], coding: dict[str, Any]) -> dict[str, mx.array]:
    """Return the arrays with U and Vh in the place of their codes."""
    sides = {
        name: PackedMatrix(**{leaf: arrays[f"{name}.{leaf}"] for leaf in _LEAVES}, columns=size)
        for name, size in coding["sizes"].items()
    }
    q = QuantizedFactors(sides["U"], mx.array([1.0]), sides["Vh"], coding["bits"], GROUP_SIZE)
    U, _, Vh = dequantize_factors(q)
    dtypes = {name: MLX_DTYPES[dtype] for name, dtype in coding["dtypes"].items()}
    coded = {f"{name}.{leaf}" for name in sides for leaf in _LEAVES}
    others = {name: array for name, array in arrays.items() if name not in coded}
    return {"U": U[:, 0].astype(dtypes["U"]), "Vh": Vh[0].astype(dtypes["Vh"])} | others


def _error(parked: Parked, U: mx.array, Vh: mx.array) -> float:
    r"""Return a bound on the change of the component in the Frobenius norm, in float64.

    :math:`s(u v^T - \hat u \hat v^T) = s((u - \hat u) v^T + \hat u (v - \hat v)^T)`.
    """
    u, v, rounded_u, rounded_v = (_float64(a) for a in (parked.U, parked.Vh, U, Vh))
    s = float(abs(_float64(parked.S)))
    change_u, change_v = np.linalg.norm(u - rounded_u), np.linalg.norm(v - rounded_v)
    return s * float(change_u * np.linalg.norm(v) + np.linalg.norm(rounded_u) * change_v)


def _float64(array: mx.array) -> linalg.Float64:
    return linalg.to_numpy(array.astype(mx.float32)).astype(np.float64)
