"""A weight in 2 to 8 bits in MLX's affine format, rounded plainly or with error feedback."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import mlx.core as mx
import numpy as np
from numpy.typing import DTypeLike, NDArray

from plastic_core.factors.operators import Operator
from plastic_core.factors.quantize import BITS, GROUP_SIZES
from plastic_core.linalg import Float32, Float64, Matrix, as_matrix, blocks
from plastic_core.loss.gram_root import damped_gram
from plastic_core.rounding.one_sided import Rounded, descend, round_with_feedback
from plastic_core.rounding.two_sided import descend_both_ways, round_both_ways

DTYPES = (mx.bfloat16, mx.float16, mx.float32)
OUTPUT_DAMPING = 0.1  # of the mean of the diagonal
LARGEST = 1e15  # its square, summed over a group, is far within float32


@dataclass(frozen=True)
class Backbone(Operator):
    """A weight as ``nn.QuantizedLinear`` stores it: ``scales * code + biases`` in every group.

    It is an operator: `difference` and all that takes its result read it a block at a time.

    Attributes:
        weight: The codes, packed, uint32 of shape ``(out, in * bits / 32)``.
        scales: Shape ``(out, in / group_size)``, bfloat16, float16 or float32.
        biases: Shape and dtype of ``scales``.
        bits: 2, 3, 4, 5, 6 or 8.
        group_size: Neighbouring inputs that share a scale and a bias: 32, 64 or 128.
        shape: ``(out, in)``.
    """

    weight: mx.array
    scales: mx.array
    biases: mx.array
    bits: int
    group_size: int
    shape: tuple[int, int]

    @property
    def nbytes(self) -> int:
        """Bytes of codes, scales and biases: all there is to store."""
        return self.weight.nbytes + self.scales.nbytes + self.biases.nbytes

    def arrays(self) -> dict[str, mx.array]:
        """``weight``, ``scales`` and ``biases``, named as the parameters of the layer."""
        return {"weight": self.weight, "scales": self.scales, "biases": self.biases}

    def rows(self, rows: slice, dtype: DTypeLike = np.float32) -> NDArray[Any]:
        """Some rows, their float32 products and sums not rounded to the dtype of the scales."""
        scales, biases = (
            a[rows].astype(mx.float32, stream=mx.cpu) for a in (self.scales, self.biases)
        )
        block = mx.dequantize(
            self.weight[rows], scales, biases, self.group_size, self.bits, stream=mx.cpu
        )
        return as_matrix(block, "weight").astype(dtype, copy=False)

    def dequantized(self) -> Float32:
        """The weight that the codes stand for, shape ``(out, in)``, float32."""
        return self.rows(slice(None))


def round_to_nearest(
    W: Matrix, bits: int, *, group_size: int = 64, dtype: mx.Dtype = mx.bfloat16
) -> Backbone:
    """Round every entry of ``W`` by itself: ``mx.quantize`` of ``W`` in ``dtype``, bit for bit.

    Args:
        W: Weight of shape ``(out, in)``, NumPy or MLX, any floating dtype.
        bits: 2, 3, 4, 5, 6 or 8.
        group_size: 32, 64 or 128, a divisor of ``in``.
        dtype: Of the scales and biases, and what ``W`` is cast to first, as ``mlx_lm.convert``
            does: bfloat16, float16 or float32.

    Returns:
        The backbone.

    Raises:
        TypeError: If ``W`` does not hold floating-point numbers.
        ValueError: If ``W`` is empty or not finite in ``dtype``, or an argument is not offered.
    """
    A = _checked(W, bits, group_size, dtype)
    cast = mx.array(A).astype(dtype, stream=mx.cpu)
    as_matrix(cast, "W")  # `mx.quantize` would hide what is not finite
    packed = mx.quantize(cast, group_size, bits, stream=mx.cpu)
    return Backbone(*packed, bits, group_size, (A.shape[0], A.shape[1]))


def error_feedback(
    W: Matrix,
    bits: int,
    gram: Matrix,
    *,
    output_gram: Matrix | None = None,
    group_size: int = 64,
    dtype: mx.Dtype = mx.bfloat16,
    damping: float = 1e-2,
    sweeps: int = 2,
) -> Backbone:
    r"""Round ``W`` so that the outputs, or the loss, change least.

    Least, as far as a greedy method finds it, is :math:`\mathrm{tr}(C E R E^T)` with the error E of
    the weight, both Grams damped: twice the `predicted_cost`; without an output Gram, C = I, the
    squared change of the outputs. GPTQ's error feedback (`round_with_feedback`, along the outputs
    as well in `round_both_ways`), then coordinate descent (`descend`, `descend_both_ways`). The
    groups come in the order of the power of their inputs, as do the inputs in a group and the
    outputs (a heuristic, GPTQ's ``act_order`` kept to MLX's groups); the scales are fitted, and
    rounded to ``dtype`` first.

    Args:
        W: Weight of shape ``(out, in)``, NumPy or MLX, any floating dtype.
        bits: 2, 3, 4, 5, 6 or 8.
        gram: R, the mean of ``x x^T`` over the inputs, symmetric positive semidefinite of shape
            ``(in, in)``; or the blocks of a block-diagonal one, ``(in / b, b, b)``, each of whole
            groups or of one input: parts that share no block are rounded by themselves.
        output_gram: C, the mean of ``g g^T`` over the gradients at the outputs, symmetric positive
            semidefinite of shape ``(out, out)`` or in blocks; None for the identity. A tenth of the
            mean of its diagonal is added to it (heuristic: 1e-2 leaves 2 to 20 percent more).
        group_size: 32, 64 or 128, a divisor of ``in``.
        dtype: Of the scales and biases: bfloat16, float16 or float32.
        damping: Fraction of the mean of the diagonal of R that is added to it; positive where R is
            singular.
        sweeps: Sweeps of coordinate descent; 0 for none.

    Returns:
        The backbone, the same in every run on one machine.

    Raises:
        TypeError: If ``W`` or ``gram`` does not hold floating-point numbers.
        ValueError: If ``W`` is empty, not finite or beyond 1e15, an argument is not offered,
            a Gram does not fit ``W``, is not finite, zero, or not positive definite after the
            damping, or the levels are beyond ``dtype``.

    Note:
        On the CPU, ``in^3 / 3`` operations in float64 and ``(1 + 2 sweeps) out in^2`` in float32;
        memory for three float32 matrices of the shape of ``W`` and six of the shape of R. A matrix
        of 4096 x 4096 takes 20 s on two cores, five of them for the factorisation of H.

    References:
        Frantar et al., *GPTQ: accurate post-training quantization for generative pre-trained
        transformers*, arXiv 2210.17323. The descent on the codes: Behdin et al., *QuantEase*,
        arXiv 2309.01885, algorithm 2. Both Grams: Tseng, Sun and De Sa, *Model-preserving adaptive
        rounding*, arXiv 2505.22988.
    """
    A = _checked(W, bits, group_size, dtype)
    _check_feedback(A, gram, output_gram, group_size, sweeps)
    inputs = _in_groups(damped_gram(gram, damping), group_size)
    outputs = None if output_gram is None else _coupled(damped_gram(output_gram, OUTPUT_DAMPING))
    packed = Codes.empty(A.shape[0], A.shape[1], group_size)
    for columns, R in inputs:
        for rows, C in [(slice(None), None)] if outputs is None else outputs:
            found = _round(A[rows, columns], R, C, bits, group_size, dtype, sweeps)
            packed.put(found, rows, columns)
    return packed.backbone(bits, group_size, dtype)


def _round(
    A: Float32,
    H: Float64,
    output: Float64 | None,
    bits: int,
    group_size: int,
    dtype: mx.Dtype,
    sweeps: int,
) -> Placed:
    """Round a part of a weight whose Grams couple it with no other part."""
    order = _by_power(np.diagonal(H), group_size)
    R = _normalised(H, order)
    if output is None:
        found = round_with_feedback(np.ascontiguousarray(A.T[order]), R, bits, group_size, dtype)
        narrow = R.astype(np.float32)
        for _ in range(sweeps):
            descend(found, narrow)
        return Placed(found, order, np.arange(len(A)))
    rows = np.argsort(-np.diagonal(output), kind="stable")
    C = _normalised(output, rows)
    W = np.ascontiguousarray(A.T[np.ix_(order, rows)])
    found = round_both_ways(W, R, C, bits, group_size, dtype)
    narrow, outputs = R.astype(np.float32), C.astype(np.float32)
    for _ in range(sweeps):
        descend_both_ways(found, narrow, outputs)
    return Placed(found, order, rows)


def _in_groups(H: Float64, group_size: int) -> list[tuple[slice, Float64]]:
    """The blocks of the Gram of the inputs, each of whole groups, and the inputs of each."""
    if H.ndim == 2:
        return [(slice(None), H)]
    if H.shape[1] == 1:
        H = H.reshape(-1, group_size, 1) * np.eye(group_size)
    return list(zip(_slices(H), H, strict=True))


def _coupled(H: Float64) -> list[tuple[slice, Float64]] | None:
    """The same of the Gram of the outputs; None for a diagonal, under which no row minds another"""
    if H.ndim == 2:
        return [(slice(None), H)]
    return None if H.shape[1] == 1 else list(zip(_slices(H), H, strict=True))


def _slices(H: Float64) -> list[slice]:
    count, side = H.shape[:2]
    return [slice(start, start + side) for start in range(0, count * side, side)]


def _normalised(H: Float64, order: NDArray[np.int64]) -> Float64:
    """``H`` in another order, with a mean eigenvalue of one."""
    ordered: Float64 = H[np.ix_(order, order)]
    ordered *= len(H) / np.trace(H)
    return ordered


def _checked(W: Matrix, bits: int, group_size: int, dtype: mx.Dtype) -> Float32:
    for name, value, offered in (
        ("bits", bits, BITS),
        ("group_size", group_size, GROUP_SIZES),
        ("dtype", dtype, DTYPES),
    ):
        if value not in offered:
            raise ValueError(f"`{name}` must be one of {offered}, got {value}.")
    A = as_matrix(W, "W")
    if A.size == 0 or A.shape[1] % group_size:
        raise ValueError(
            f"`W` must have rows, and columns in multiples of `group_size` = {group_size}, got "
            f"shape {A.shape}. Choose a smaller group or leave it dense."
        )
    return A


def _check_feedback(
    A: Float32, gram: Matrix, output_gram: Matrix | None, group_size: int, sweeps: int
) -> None:
    for name, given, side, what in (
        ("gram", gram, A.shape[1], "columns"),
        ("output_gram", output_gram, A.shape[0], "rows"),
    ):
        if given is None:
            continue
        shape = np.shape(given)
        blocks = len(shape) == 3 and shape[1] == shape[2] and shape[0] * shape[1] == side
        if shape != (side, side) and not blocks:
            raise ValueError(
                f"`{name}` must have shape {(side, side)} for a matrix of {side} {what}, "
                f"got {shape}, which are no blocks of it either."
            )
        if name == "gram" and blocks and shape[1] != 1 and shape[1] % group_size:
            raise ValueError(
                f"`gram` must have blocks of whole groups of {group_size}, or of 1, got {shape}."
            )
    if sweeps < 0:
        raise ValueError(f"`sweeps` must not be negative, got {sweeps}.")
    if not np.abs(A).max() <= LARGEST:
        raise ValueError(
            f"`W` must not exceed {LARGEST:g} in magnitude, got {np.abs(A).max():.3g}. "
            "Scale it down first."
        )


def _by_power(power: Float64, group_size: int) -> NDArray[np.int64]:
    """The groups in descending order of their power, and so the inputs of each."""
    groups = np.arange(len(power)).reshape(-1, group_size)
    groups = groups[np.argsort(-power[groups].sum(axis=1), kind="stable")]
    inner = np.argsort(-power[groups], axis=1, kind="stable")
    return np.take_along_axis(groups, inner, axis=1).ravel()


class Placed(NamedTuple):
    """What was found for a part of a weight, and the places of its inputs and outputs there."""

    found: Rounded
    order: NDArray[np.int64]
    rows: NDArray[np.int64]


class Codes(NamedTuple):
    """The codes of a weight ``(out, in)``, and its levels ``(2, out, groups)``."""

    codes: NDArray[np.uint8]
    levels: Float32

    @classmethod
    def empty(cls, out: int, inputs: int, group_size: int) -> Self:
        """To be filled part by part."""
        levels = np.empty((2, out, inputs // group_size), np.float32)
        return cls(np.empty((out, inputs), np.uint8), levels)

    def put(self, part: Placed, rows: slice, columns: slice) -> None:
        """Fill the part of these rows and columns."""
        found, order, outputs = part
        self.codes[rows, columns][np.ix_(outputs, order)] = found.codes.T
        size = found.group_size
        first = (columns.start or 0) // size
        for group, grid in zip(order[::size] // size, found.grids, strict=True):
            levels = self.levels[:, rows, first + group]
            levels[:, outputs] = grid.step, grid.start

    def backbone(self, bits: int, group_size: int, dtype: mx.Dtype) -> Backbone:
        """As MLX stores them."""
        codes = self.codes
        scales, biases = (mx.array(a).astype(dtype, stream=mx.cpu) for a in self.levels)
        packed = np.concatenate([_pack(codes[part], bits) for part in blocks(*codes.shape)])
        shape = codes.shape[0], codes.shape[1]
        return Backbone(mx.array(packed), scales, biases, bits, group_size, shape)


def _pack(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint32]:
    """MLX's packing: the codes of a row one behind the other, lowest bit first."""
    stream = codes[:, :, None] >> np.arange(bits, dtype=np.uint8) & 1
    flat = stream.reshape(len(codes), -1)
    return np.packbits(flat, axis=1, bitorder="little").view("<u4")
