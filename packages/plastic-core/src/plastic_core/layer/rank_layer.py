"""The layer whose rank is a dial: ``W = W0 + U diag(S) Vh``."""

import copy
from collections.abc import Sequence
from typing import Any, Self

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from numpy.typing import NDArray

from plastic_core.factors.balancing import as_arrays, balance, factor_norm
from plastic_core.factors.directions import random_directions
from plastic_core.factors.factors import Factors
from plastic_core.layer.checks import (
    Indices,
    cast_factors,
    check_factors,
    check_rank,
    check_shape,
    check_threshold,
    checked_indices,
)
from plastic_core.layer.mlx_linear import Linear, dense_weight, linear_from, quantized, without_bias
from plastic_core.layer.module import Module
from plastic_core.layer.starting_factors import best_factors, empty_factors
from plastic_core.linalg import Matrix, as_matrix, as_vector


class RankLayer(Module):
    r"""A linear layer with a frozen backbone and a plastic part of changeable rank.

    .. math::

        y = W_0 x + U \, (S \odot V_h x) + b

    The backbone :math:`W_0` is absent, dense or quantised, and not trainable, not even after
    ``model.unfreeze()``: only ``layer.base.unfreeze()`` makes it so. ``U``, ``S``, ``Vh`` and
    ``bias`` are trainable. The dense weight is never formed in
    a forward pass, which costs ``r (in + out)`` multiplications per token beside the backbone's.
    The output has the dtype that ``nn.Linear`` would give.

    Every change of rank ends in ``set_factors``. An optimizer's state for ``U``, ``S`` and ``Vh``
    has to change with it.

    Args:
        U: Left factors, shape ``(out, r)``, ``0 <= r <= min(out, in)``, any floating dtype.
        S: Weights of the components, shape ``(r,)``, any sign.
        Vh: Right factors, shape ``(r, in)``.
        base: The backbone, of shape ``(out, in)``; it is frozen in place and keeps its own bias.
        bias: Shape ``(out,)``; only where the backbone has none.

    Raises:
        ValueError: If shapes disagree, the rank exceeds ``min(out, in)``, or there are two biases.
        TypeError: If ``base`` is not an MLX linear layer, or a factor is not floating.

    Examples:
        >>> layer = RankLayer(mx.ones((4, 1)), mx.array([2.0]), mx.ones((1, 3)))
        >>> layer(mx.array([1.0, 0.0, 1.0])).tolist()
        [4.0, 4.0, 4.0, 4.0]
    """

    U: mx.array
    S: mx.array
    Vh: mx.array
    base: Linear | None

    def __init__(
        self,
        U: mx.array,
        S: mx.array,
        Vh: mx.array,
        *,
        base: Linear | None = None,
        bias: mx.array | None = None,
    ) -> None:
        super().__init__()
        check_factors(U, S, Vh)
        self.U, self.S, self.Vh = U, S, Vh
        self.base = base
        if bias is not None:
            check_shape("bias", bias, self.shape[:1])
            self.bias = bias
        if base is not None:
            check_shape("base", dense_weight(base), self.shape)
            if "bias" in self and "bias" in base:
                raise ValueError("`bias` must be None where `base` has a bias of its own.")
            base.freeze()

    def __call__(self, x: mx.array) -> mx.array:
        """Apply the layer to ``x`` of shape ``(..., in)``; returns shape ``(..., out)``."""
        y = ((x @ self.Vh.T) * self.S) @ self.U.T
        if self.base is not None:
            backbone = self.base(x)
            y = backbone + y.astype(backbone.dtype)
        return y + self.bias if "bias" in self else y

    @classmethod
    def from_linear(
        cls,
        linear: Linear,
        rank: int,
        *,
        gram: Matrix | None = None,
        keep_base: bool = False,
        key: mx.array | None = None,
    ) -> Self:
        """Turn an MLX linear layer into a ``RankLayer``.

        By default the weight is *replaced* by its best approximation of rank ``rank``, in the
        Frobenius norm or, with ``gram``, in the mean squared error of the layer's output. With
        ``keep_base`` it *stays*, frozen, and gets a plastic part that changes nothing yet:
        ``S = 0`` on random orthonormal directions.

        Args:
            linear: The layer; frozen in place with ``keep_base``, else left as it is.
            rank: The rank, from 0 to ``min(out, in)``.
            gram: Second moment ``E[x x^T]`` of the layer's input, shape ``(in, in)``.
            keep_base: Keep the weight as a frozen backbone.
            key: A key of ``mx.random.key``, for ``keep_base``; by default ``mx.random.key(0)``.

        Returns:
            A layer whose factors have the dtype of the (dequantised) weight.

        Raises:
            ValueError: If ``rank`` is out of range, the weight is not finite, or ``gram`` is given
                together with ``keep_base``.
            TypeError: If ``linear`` is not an MLX linear layer.

        Examples:
            >>> linear = nn.Linear(6, 4)
            >>> RankLayer.from_linear(linear, 2)
            RankLayer(input_dims=6, output_dims=4, rank=2, bias=True)
            >>> x, plastic = mx.ones(6), RankLayer.from_linear(linear, 2, keep_base=True)
            >>> mx.array_equal(plastic(x), linear(x)).item()
            True
        """
        W = dense_weight(linear)
        check_rank(rank, W.shape)
        if not keep_base:
            return cls(*best_factors(W, rank, gram), bias=linear.get("bias"))
        if gram is not None:
            raise ValueError("`gram` weighs what replaces a weight: leave it out with `keep_base`.")
        as_matrix(W, "weight")
        layer = cls(*empty_factors(W), base=linear)
        layer.grow(rank, key=mx.random.key(0) if key is None else key)
        return layer

    @property
    def shape(self) -> tuple[int, int]:
        """``(out, in)``."""
        return self.U.shape[0], self.Vh.shape[1]

    @property
    def rank(self) -> int:
        """Number of components in the plastic part."""
        return self.S.shape[0]

    @property
    def max_rank(self) -> int:
        """``min(out, in)``."""
        return min(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of ``U``, ``S`` and ``Vh``."""
        return self.U.nbytes + self.S.nbytes + self.Vh.nbytes

    @property
    def bytes_per_rank(self) -> int:
        """Bytes of one component."""
        out, inner = self.shape
        return out * self.U.itemsize + self.S.itemsize + inner * self.Vh.itemsize

    def children(self) -> dict[str, Any]:
        """Return nothing: for MLX's walks over modules the layer is one leaf, backbone included.

        So ``model.unfreeze()`` does not reach the backbone, and tools that convert layers meet this
        one and not the ``nn.Linear`` inside. ``parameters()`` does contain the backbone's arrays.
        """
        return {}

    def factors(self) -> Factors:
        """Return the plastic part as it is stored."""
        return Factors(self.U, self.S, self.Vh)

    @property
    def weight(self) -> mx.array:
        """The dense ``W``, shape ``(out, in)``, of the backbone's dtype, else that of the factors.

        MLX's tools ask a linear layer for it, mostly for its shape: it is lazy, so that is free.
        """
        plastic = Factors(*(a.astype(mx.float32) for a in self.factors())).dense()
        if self.base is None:
            return plastic.astype(self.U.dtype)
        W = dense_weight(self.base)
        return (W.astype(mx.float32) + plastic).astype(W.dtype)

    def set_factors(self, U: mx.array, S: mx.array, Vh: mx.array) -> None:
        """Replace the plastic part; a factor that was frozen stays frozen.

        Raises:
            ValueError: If the shapes disagree with each other or with the layer's.
            TypeError: If a factor is not floating.
        """
        check_factors(U, S, Vh)
        if (U.shape[0], Vh.shape[1]) != self.shape:
            raise ValueError(
                f"`U` and `Vh` must fit a layer of shape {self.shape}, "
                f"got shapes {U.shape} and {Vh.shape}."
            )
        self.U, self.S, self.Vh = U, S, Vh

    def grow(self, k: int, *, key: mx.array) -> None:
        """Append ``k`` components without changing the function.

        They enter with ``S = 0`` on random orthonormal directions, orthogonal to the present ones.

        Args:
            k: The number of components, from 0 to ``max_rank - rank``.
            key: A key of ``mx.random.key``; one key gives the same directions.

        Raises:
            ValueError: If ``k`` is out of range or a factor is not finite.

        Examples:
            >>> layer = RankLayer(mx.eye(3, 1), mx.array([2.0]), mx.eye(1, 3))
            >>> layer.grow(1, key=mx.random.key(0))
            >>> layer.rank, layer.S.tolist()
            (2, [2.0, 0.0])
        """
        room = self.max_rank - self.rank
        if not 0 <= k <= room:
            raise ValueError(
                f"`k` must be between 0 and max_rank - rank = {room} for a layer of shape "
                f"{self.shape} and rank {self.rank}, got {k}."
            )
        U, _, Vh = as_arrays(self.factors())
        left, right = random_directions(U, Vh, k, key)
        self.wake(self.in_its_dtypes(left, np.zeros(k), right))

    def wake(self, factors: Factors) -> None:
        """Append components, their bits unchanged.

        Args:
            factors: The components, such as ``park`` returned.

        Raises:
            ValueError: If they do not fit the layer or exceed ``max_rank``.
            TypeError: If their dtypes are not the layer's.
        """
        for name, old, new in zip(Factors._fields, self.factors(), factors, strict=True):
            if new.dtype != old.dtype:
                raise TypeError(f"`{name}` must be {old.dtype} as in the layer, got {new.dtype}.")
        self.set_factors(
            mx.concatenate([self.U, factors.U], axis=1),
            mx.concatenate([self.S, factors.S]),
            mx.concatenate([self.Vh, factors.Vh]),
        )

    def park(self, indices: Indices) -> Factors:
        """Remove the components ``indices`` and return them; the others keep their order.

        Bits are unchanged on both sides: ``wake(park(indices))`` restores the function.

        Args:
            indices: Distinct indices from 0 to ``rank - 1``.

        Returns:
            The parked components, in the order of ``indices``.

        Raises:
            ValueError: If an index is out of range or appears twice.

        Examples:
            >>> layer = RankLayer(mx.eye(3), mx.array([3.0, 2.0, 1.0]), mx.eye(3))
            >>> asleep = layer.park([2])
            >>> layer.rank, layer.S.tolist(), asleep.S.tolist()
            (2, [3.0, 2.0], [1.0])
            >>> layer.wake(asleep)
            >>> layer.S.tolist()
            [3.0, 2.0, 1.0]
        """
        chosen = checked_indices("indices", indices, self.rank)
        parked = self.select(chosen)
        self.set_factors(*self.select(self._others(chosen)))
        return parked

    def keep(self, indices: Indices) -> Factors:
        """Keep the components ``indices``, in that order; remove all others and return them.

        Bits are unchanged on both sides: ``wake(keep(indices))`` restores the function.

        Args:
            indices: Distinct indices from 0 to ``rank - 1``.

        Returns:
            The parked components, in ascending order of their indices.

        Raises:
            ValueError: If an index is out of range or appears twice.

        Examples:
            >>> layer = RankLayer(mx.eye(3), mx.array([3.0, 2.0, 1.0]), mx.eye(3))
            >>> asleep = layer.keep([0])
            >>> layer.S.tolist(), asleep.S.tolist()
            ([3.0], [2.0, 1.0])
        """
        chosen = checked_indices("indices", indices, self.rank)
        parked = self.select(self._others(chosen))
        self.set_factors(*self.select(chosen))
        return parked

    def soft_threshold(self, tau: float) -> tuple[list[int], mx.array]:
        r"""Return what soft thresholding would leave: indices, and their new ``S``.

        :math:`S_i \leftarrow \mathrm{sign}(S_i) \max(|S_i| - \tau, 0)`, the proximal operator of
        :math:`\tau \|S\|_1`, in balanced form that of the nuclear norm. The sign stays with ``S``;
        the layer does not change.

        Args:
            tau: Threshold, not negative, in units of ``S``.

        Returns:
            The indices with ``|S| > tau``, ascending, and their thresholded values, in the dtype of
            ``S``.

        Raises:
            ValueError: If ``tau`` is negative or not a number.

        References:
            Cai, Candes and Shen, *A singular value thresholding algorithm for matrix completion*,
            SIAM J. Optim. 20(4), 2010, theorem 2.1, https://doi.org/10.1137/080738970.

        Examples:
            >>> layer = RankLayer(mx.eye(3), mx.array([3.0, -2.0, 1.0]), mx.eye(3))
            >>> indices, S = layer.soft_threshold(1.5)
            >>> indices, S.tolist()
            ([0, 1], [1.5, -0.5])
        """
        check_threshold(tau)
        S = as_vector(self.S, "S")
        keep = np.flatnonzero(np.abs(S) > tau)
        shrunk = np.sign(S[keep]) * (np.abs(S[keep]) - tau)
        return keep.tolist(), mx.array(shrunk, dtype=self.S.dtype)

    def truncation_error(self, parked: Indices) -> float:
        """Return the Frobenius norm, in float64, of what removing ``parked`` takes from ``W``.

        Examples:
            >>> layer = RankLayer(mx.eye(3), mx.array([5.0, 4.0, 3.0]), mx.eye(3))
            >>> layer.truncation_error([1, 2])
            5.0
        """
        return factor_norm(*as_arrays(self.select(checked_indices("parked", parked, self.rank))))

    def balanced(self) -> Factors:
        """Return the same plastic part with orthonormal ``U`` and ``Vh`` and its spectrum as ``S``.

        The layer does not change.

        Returns:
            The factors in the layer's dtypes, ``S`` non-negative and non-increasing.

        Examples:
            >>> layer = RankLayer(mx.eye(2), mx.array([1.0, -3.0]), mx.eye(2))
            >>> layer.balanced().S.round().tolist()
            [3.0, 1.0]
        """
        return self.in_its_dtypes(*balance(*as_arrays(self.factors())))

    def in_its_dtypes(self, U: NDArray[Any], S: NDArray[Any], Vh: NDArray[Any]) -> Factors:
        """Return arrays as factors in the dtypes of the layer's own.

        Raises:
            ValueError: If a number is beyond its new dtype.

        Examples:
            >>> layer = RankLayer(mx.eye(2), mx.array([1.0, 3.0]), mx.eye(2))
            >>> layer.in_its_dtypes(np.eye(2), np.ones(2), np.eye(2)).S.dtype
            mlx.core.float32
        """
        return cast_factors(Factors(*map(mx.array, (U, S, Vh))), [a.dtype for a in self.factors()])

    def select(self, indices: Indices) -> Factors:
        """Return the components ``indices``, in that order, bits unchanged; the layer keeps them.

        Examples:
            >>> layer = RankLayer(mx.eye(2), mx.array([1.0, 3.0]), mx.eye(2))
            >>> layer.select([1]).S.tolist()
            [3.0]
        """
        i = mx.array(checked_indices("indices", indices, self.rank), dtype=mx.int32)
        return Factors(self.U[:, i], self.S[i], self.Vh[i])

    def _others(self, indices: Sequence[int]) -> list[int]:
        """Return the components that ``indices`` leaves out, ascending."""
        return sorted(set(range(self.rank)).difference(indices))

    def to_linear(self) -> nn.Linear:
        """Return the dense layer, backbone included, as a stock ``nn.Linear``.

        Examples:
            >>> layer = RankLayer(mx.eye(2), mx.array([1.0, 3.0]), mx.eye(2))
            >>> layer.to_linear().weight.tolist()
            [[1.0, 0.0], [0.0, 3.0]]
        """
        owner = self if self.base is None or "bias" in self else self.base
        return linear_from(self.weight, owner.get("bias"))

    def fuse(self, dequantize: bool = True) -> nn.Linear:
        """Return ``to_linear()``, under the name and keyword by which mlx-lm asks for it.

        The result is dense even where ``mlx_lm.fuse`` would rather have the quantised backbone's
        format (``dequantize=False``): quantising again would round the plastic part away.
        """
        return self.to_linear()

    def to_quantized(
        self, group_size: int | None = None, bits: int | None = None, mode: str = "affine"
    ) -> "nn.QuantizedLinear | RankLayer":
        """Return this layer with its dense weight quantised, as ``nn.quantize`` asks for it.

        Args:
            group_size: Entries per scale, by default that of ``mode``; it must divide ``in``.
            bits: Bits per entry, by default those of ``mode``.
            mode: A mode of ``mx.quantize``.

        Returns:
            Without a backbone an ``nn.QuantizedLinear`` of the product; with one a ``RankLayer``
            with the same factors over the quantised backbone; the layer itself where the backbone
            is quantised already.

        Raises:
            ValueError: If the weight is not finite, which ``mx.quantize`` would hide.
        """
        if self.base is None:
            return quantized(self.to_linear(), group_size, bits, mode)
        if isinstance(self.base, nn.QuantizedLinear):
            return self
        base = quantized(self.base, group_size, bits, mode)
        return type(self)(*self.factors(), base=base, bias=self.get("bias"))

    def to_lora(self, r: int = 8, dropout: float = 0.0, scale: float = 20.0) -> nn.Module:
        """Return mlx-lm's ``LoRALinear`` of rank ``r`` on top of this layer.

        Raises:
            ImportError: If mlx-lm is not installed.
        """
        from mlx_lm.tuner.lora import LoRALinear

        lora: nn.Module = LoRALinear.from_base(self._bias_outside(), r, dropout, scale)
        return lora

    def _extra_repr(self) -> str:
        out, inner = self.shape
        owner = self if self.base is None else self.base
        text = f"input_dims={inner}, output_dims={out}, rank={self.rank}, bias={'bias' in owner}"
        return text if self.base is None else f"{text}, base={self.base}"

    def _bias_outside(self) -> "RankLayer":
        """Return the layer with the backbone's bias as its own: ``LoRALinear.fuse`` looks there."""
        if self.base is None or "bias" not in self.base:
            return self
        layer = copy.copy(self)
        layer._no_grad = copy.copy(self._no_grad)
        layer.base, layer.bias = without_bias(self.base), self.base.bias
        layer.freeze(recurse=False, keys="bias")
        return layer
