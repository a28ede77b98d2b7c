"""A weight in 2 to 8 bits in MLX's affine format, rounded plainly or with error feedback."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple, Self

import mlx.core as mx
import numpy as np
from numpy.typing import DTypeLike, NDArray

from plastic_core.factors.operators import Operator
from plastic_core.factors.quantize import BITS, GROUP_SIZES
from plastic_core.linalg import Float32, Matrix, as_matrix, blocks, in_threads
from plastic_core.loss.feedback import Feedback
from plastic_core.loss.gram_root import IDENTITY, GramRoot
from plastic_core.loss.loss import check_fit
from plastic_core.rounding.rounded import Grid, Rounded

DTYPES = (mx.bfloat16, mx.float16, mx.float32)
"""What scales and biases may be stored in."""
LEAST_OUTPUT_DAMPING = 0.1
"""Damping of the Gram of the output gradients, at least (heuristic: 1e-2 leaves 2 to 20 percent
more of the predicted loss)."""
LARGEST_WEIGHT = 1e15
"""Largest magnitude of a weight: its square, summed over a group, is far within float32."""


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

    Examples:
        >>> backbone = round_to_nearest(np.ones((2, 64)), 4)
        >>> backbone.shape, backbone.nbytes, backbone.dequantized().mean().item()
        ((2, 64), 72, 1.0)
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
        """Return the weight that the codes stand for, shape ``(out, in)``, float32."""
        return self.rows(slice(None))


def round_to_nearest(
    W: Matrix, bits: int, *, group_size: int = 64, dtype: mx.Dtype = mx.bfloat16
) -> Backbone:
    """Round every entry of ``W`` by itself: ``mx.quantize`` of ``W`` in ``dtype``, bit for bit.

    Args:
        W: Weight of shape ``(out, in)``, NumPy or MLX, any floating dtype.
        bits: 2, 3, 4, 5, 6 or 8.
        group_size: 32, 64 or 128, a divisor of ``in``.
        dtype: The dtype of scales and biases; ``W`` is cast to it first, as ``mlx_lm.convert``
            does: bfloat16, float16 or float32.

    Returns:
        The backbone.

    Raises:
        TypeError: If ``W`` does not hold floating-point numbers.
        ValueError: If ``W`` is empty or not finite in ``dtype``, or an argument is not offered.

    Examples:
        >>> W = np.tile(np.float32([0, 1, 2, 3]), (2, 16))
        >>> round_to_nearest(W, 2, group_size=32).dequantized()[0, :4].tolist()
        [0.0, 1.0, 2.0, 3.0]
    """
    A = checked_weight(W, bits, group_size, dtype)
    cast = mx.array(A).astype(dtype, stream=mx.cpu)
    as_matrix(cast, "W")  # `mx.quantize` would hide what is not finite
    packed = mx.quantize(cast, group_size, bits, stream=mx.cpu)
    return Backbone(*packed, bits, group_size, (A.shape[0], A.shape[1]))


def error_feedback(
    W: Matrix,
    bits: int,
    *,
    inputs: GramRoot,
    outputs: GramRoot = IDENTITY,
    group_size: int = 64,
    dtype: mx.Dtype = mx.bfloat16,
    sweeps: int = 2,
) -> Backbone:
    r"""Round ``W`` so that the outputs, or the loss, change least.

    Least, as far as a greedy method finds it, is :math:`\mathrm{tr}(C E R E^T)` with the error
    :math:`E = W - \hat W`, both Grams damped: twice the `predicted_cost`; with C = I the squared
    change of the outputs. GPTQ's error feedback, along the outputs as well where there is a C, then
    coordinate descent on levels and codes, of which no step raises the sum. The groups come in the
    order of the power of their inputs, as do the inputs in a group and the outputs (a heuristic,
    GPTQ's ``act_order`` kept to MLX's groups); the scales are fitted, and rounded to ``dtype``
    first.

    Args:
        W: Weight of shape ``(out, in)``, NumPy or MLX, any floating dtype.
        bits: 2, 3, 4, 5, 6 or 8.
        inputs: R, the Gram of the inputs, of size ``in``, damped by about 1e-2. Where it has
            blocks, each must be of whole groups or of one input: parts that share no block are
            rounded by themselves. Its factors are kept for the next call.
        outputs: C, the Gram of the gradients at the outputs, of size ``out``; by default the
            identity. It is damped by a tenth at least (heuristic).
        group_size: 32, 64 or 128, a divisor of ``in``.
        dtype: The dtype of the scales and biases: bfloat16, float16 or float32.
        sweeps: Sweeps of coordinate descent; 0 for none.

    Returns:
        The backbone: the same bytes in every run on one machine, for any number of threads.

    Raises:
        TypeError: If ``W`` does not hold floating-point numbers.
        ValueError: If ``W`` is empty, not finite or beyond 1e15, an argument is not offered,
            a Gram does not fit ``W`` or is not positive definite after the damping, or the levels
            are beyond ``dtype``.

    Note:
        On the CPU, ``(1 + 2 sweeps) out in^2`` operations in float32, and as many times
        ``out^2 in`` more where there is a C; for the first call with a Gram of n entries
        ``n^3 / 3`` in float64. Memory for two float32 matrices of the shape of ``W``, and for two
        of the shape of each Gram that are kept; for four more of that shape while it is factored.
        Products run side by side in threads, as do rows where there is no C. A matrix of
        4096 x 4096 in 4 bits takes 8 s of one core with C and 4 s without, beside 1.2 s for the
        factorisation of each Gram (one core of 2026, 110 GFLOP/s). The loops are compiled by
        numba at the first call, which takes ten seconds where they are not on disk
        (``CompilingWarning``), and else half a second.

    Examples:
        >>> import numpy as np
        >>> W = np.tile(np.float32([[0, 1, 2, 3], [3, 2, 1, 0]]), 8)
        >>> R = GramRoot.of(np.ones((32, 32)), damping=1e-2)
        >>> backbone = error_feedback(W, 2, inputs=R, group_size=32)
        >>> bool((backbone.dequantized() == W).all()), backbone.nbytes
        (True, 24)

    References:
        Frantar et al., *GPTQ: accurate post-training quantization for generative pre-trained
        transformers*, arXiv 2210.17323. The descent on the codes: Behdin et al., *QuantEase*,
        arXiv 2309.01885, algorithm 2. Both Grams: Tseng, Sun and De Sa, *Model-preserving adaptive
        rounding*, arXiv 2505.22988.
    """
    A = checked_weight(W, bits, group_size, dtype)
    _check_feedback(A, inputs, outputs, group_size, sweeps)
    if inputs.gram is None:
        inputs = GramRoot.of(np.ones((A.shape[1], 1, 1)), damping=0.0)
    grid, packed = Grid(bits, group_size, dtype), Codes.empty(A.shape[0], A.shape[1], group_size)

    def round_part(part: tuple[Feedback, Feedback | None]) -> None:
        packed.put(_round_part(A, *part, grid, sweeps))

    in_threads(round_part, product(*_factors(inputs, outputs, group_size)))
    return packed.backbone(grid)


def _factors(
    inputs: GramRoot, outputs: GramRoot, group_size: int
) -> tuple[tuple[Feedback, ...], tuple[Feedback | None, ...]]:
    """The blocks of both Grams, factored; None where no output minds another."""
    R = inputs.feedback(group_size)
    C = outputs.feedback(least_damping=LEAST_OUTPUT_DAMPING)
    return R or (), C or (None,)


def _round_part(A: Float32, R: Feedback, C: Feedback | None, grid: Grid, sweeps: int) -> Placed:
    """Round a part of a weight whose Grams couple it with no other; without C all its outputs."""
    # Numba takes half a second to load, for those who round alone.
    from plastic_core.rounding.one_sided import round_one_sided
    from plastic_core.rounding.two_sided import round_two_sided

    outputs = np.arange(len(A)) if C is None else C.places
    W = A[np.ix_(outputs, R.places)]
    if C is None:
        return Placed(round_one_sided(W, R, grid, sweeps), R.places, outputs)
    return Placed(round_two_sided(W, R, C, grid, sweeps), R.places, outputs)


def checked_weight(W: Matrix, bits: int, group_size: int, dtype: mx.Dtype) -> Float32:
    """Return a weight as a matrix; raise unless it can be rounded like this."""
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
    A: Float32, inputs: GramRoot, outputs: GramRoot, group_size: int, sweeps: int
) -> None:
    check_fit((A.shape[0], A.shape[1]), inputs, outputs, "W")
    shape = (0, 0) if inputs.gram is None else inputs.gram.shape
    if len(shape) == 3 and shape[1] != 1 and shape[1] % group_size:
        raise ValueError(
            f"`inputs` must have blocks of whole groups of {group_size}, or of 1, got {shape}."
        )
    if sweeps < 0:
        raise ValueError(f"`sweeps` must not be negative, got {sweeps}.")
    check_magnitude(A)


def check_magnitude(A: Float32) -> None:
    """Refuse a weight whose squares are not far within float32."""
    largest = max(A.max(), -A.min())
    if not largest <= LARGEST_WEIGHT:
        raise ValueError(
            f"`W` must not exceed {LARGEST_WEIGHT:g} in magnitude, got {largest:.3g}. "
            "Scale it down first."
        )


class Placed(NamedTuple):
    """The result for a part of a weight, and the places of its inputs and outputs there.

    Attributes:
        result: n inputs by m outputs.
        inputs: Shape ``(n,)``, whole groups one after the other.
        outputs: Shape ``(m,)``.
    """

    result: Rounded
    inputs: NDArray[np.intp]
    outputs: NDArray[np.intp]


class Codes(NamedTuple):
    """The codes of a weight ``(out, in)``, and its levels ``(2, out, groups)``."""

    codes: NDArray[np.uint8]
    levels: Float32

    @classmethod
    def empty(cls, out: int, inputs: int, group_size: int) -> Self:
        """To be filled part by part."""
        levels = np.empty((2, out, inputs // group_size), np.float32)
        return cls(np.empty((out, inputs), np.uint8), levels)

    def put(self, part: Placed) -> None:
        """Fill in a part."""
        result, inputs, outputs = part
        size = result.grid.group_size
        self.codes[np.ix_(outputs, inputs)] = result.codes
        self.levels[:, outputs[:, None], inputs[::size] // size] = result.levels

    def backbone(self, grid: Grid) -> Backbone:
        """Return them as MLX stores them."""
        codes, (bits, group_size, dtype) = self.codes, grid
        scales, biases = (mx.array(a).astype(dtype, stream=mx.cpu) for a in self.levels)
        packed = np.concatenate([_pack(codes[part], bits) for part in blocks(*codes.shape)])
        shape = codes.shape[0], codes.shape[1]
        return Backbone(mx.array(packed), scales, biases, bits, group_size, shape)


def _pack(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint32]:
    """MLX's packing: the codes of a row one behind the other, lowest bit first."""
    stream = codes[:, :, None] >> np.arange(bits, dtype=np.uint8) & 1
    flat = stream.reshape(len(codes), -1)
    return np.packbits(flat, axis=1, bitorder="little").view("<u4")
