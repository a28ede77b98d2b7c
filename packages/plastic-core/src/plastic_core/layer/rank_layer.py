"""The layer whose rank is a dial: ``W = W0 + U diag(S) Vh``."""

from collections.abc import Sequence
from typing import Any, Self

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from plastic_core.factors.balancing import as_arrays, balance, factor_norm
from plastic_core.factors.directions import random_directions
from plastic_core.factors.factors import Factors
from plastic_core.factors.lowrank import factorized_lowrank
from plastic_core.layer.checks import (
    cast_factors,
    check_factors,
    check_indices,
    check_rank,
    check_threshold,
)
from plastic_core.layer.factored_linear import FactoredLinear
from plastic_core.layer.mlx_linear import Linear, dense_weight
from plastic_core.linalg import Matrix, as_matrix, as_vector, thin_svd
from plastic_core.loss.weighted import output_basis


class RankLayer(FactoredLinear):
    r"""A linear layer with a frozen backbone and a plastic part of changeable rank.

    .. math::

        y = W_0 x + U \, (S \odot V_h x) + b

    The backbone :math:`W_0` is absent, dense or quantised, and never trainable, not even after
    ``model.unfreeze()``; ``U``, ``S``, ``Vh`` and ``bias`` are. The dense weight is never formed in
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

    Example:
        >>> import mlx.core as mx
        >>> layer = RankLayer(mx.ones((4, 1)), mx.array([2.0]), mx.ones((1, 3)))
        >>> layer(mx.array([1.0, 0.0, 1.0])).tolist()
        [4.0, 4.0, 4.0, 4.0]
    """

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
            rank: From 0 to ``min(out, in)``.
            gram: Second moment ``E[x x^T]`` of the layer's input, shape ``(in, in)``.
            keep_base: Keep the weight as a frozen backbone.
            key: From ``mx.random.key``, for ``keep_base``; by default ``mx.random.key(0)``.

        Returns:
            A layer whose factors have the dtype of the (dequantised) weight.

        Raises:
            ValueError: If ``rank`` is out of range, the weight is not finite, or ``gram`` is given
                together with ``keep_base``.
            TypeError: If ``linear`` is not an MLX linear layer.
        """
        W = dense_weight(linear)
        check_rank(rank, W.shape)
        if not keep_base:
            return cls(*_best_factors(W, rank, gram), bias=linear.get("bias"))
        if gram is not None:
            raise ValueError("`gram` weighs what replaces a weight: leave it out with `keep_base`.")
        layer = cls(*_empty_factors(W), base=linear)
        layer.grow(rank, key=mx.random.key(0) if key is None else key)
        return layer

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
            k: From 0 to ``max_rank - rank``.
            key: From ``mx.random.key``; one key gives the same directions.

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

    def park(self, indices: Sequence[int]) -> Factors:
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
        check_indices("indices", indices, self.rank)
        parked = self.select(indices)
        self.set_factors(*self.select(self._others(indices)))
        return parked

    def keep(self, indices: Sequence[int]) -> Factors:
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
        check_indices("indices", indices, self.rank)
        parked = self.select(self._others(indices))
        self.set_factors(*self.select(indices))
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
        """
        check_threshold(tau)
        S = as_vector(self.S, "S")
        keep = np.flatnonzero(np.abs(S) > tau)
        shrunk = np.sign(S[keep]) * (np.abs(S[keep]) - tau)
        return keep.tolist(), mx.array(shrunk, dtype=self.S.dtype)

    def truncation_error(self, parked: Sequence[int]) -> float:
        """Return the Frobenius norm, in float64, of what removing ``parked`` takes from ``W``."""
        check_indices("parked", parked, self.rank)
        return factor_norm(*as_arrays(self.select(parked)))

    def balanced(self) -> Factors:
        """Return the same plastic part with orthonormal ``U`` and ``Vh`` and its spectrum as ``S``.

        The layer does not change.

        Returns:
            The factors in the layer's dtypes, ``S`` non-negative and non-increasing.

        Examples:
            >>> layer = RankLayer(mx.eye(2), mx.array([1.0, -3.0]), mx.eye(2))
            >>> layer.balanced().S.round(3).tolist()
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

    def select(self, indices: Sequence[int]) -> Factors:
        """Return the components ``indices``, in that order, bits unchanged; the layer keeps them.

        Examples:
            >>> layer = RankLayer(mx.eye(2), mx.array([1.0, 3.0]), mx.eye(2))
            >>> layer.select([1]).S.tolist()
            [3.0]
        """
        i = mx.array(list(indices), dtype=mx.int32)
        return Factors(self.U[:, i], self.S[i], self.Vh[i])

    def _others(self, indices: Sequence[int]) -> list[int]:
        """The components that ``indices`` leaves out, ascending."""
        return sorted(set(range(self.rank)).difference(indices))


def _best_factors(W: mx.array, rank: int, gram: Matrix | None) -> Factors:
    """The best approximation of ``W`` under ``gram``, in the dtype of ``W``."""
    if rank == 0:
        return _empty_factors(W)
    if gram is None:
        factors = factorized_lowrank(W, rank)
    else:
        A, U = as_matrix(W, "weight"), output_basis(W, gram=gram).U[:, :rank]
        P, S, Vh = thin_svd(U.T @ A)
        factors = Factors(mx.array(U @ P), mx.array(S), mx.array(Vh))
    return cast_factors(factors, 3 * [W.dtype])


def _empty_factors(W: mx.array) -> Factors:
    """A plastic part of rank 0 for ``W``."""
    (out, inner), dtype = W.shape, W.dtype
    return Factors(mx.zeros((out, 0), dtype), mx.zeros(0, dtype), mx.zeros((0, inner), dtype))
