"""Second moments of what passes a place in the model, summed outside MLX."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Mapping
from functools import partial
from itertools import combinations_with_replacement, pairwise
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray
from plastic_core import block_side, linalg

from plastic_runtime.distributed import RunningSum

PANEL = 512  # rows and columns of a sum that are added to at a time
CHUNK = 2**23  # entries of the inputs of one product: 64 MiB in float64
ROWS = 4096  # and at most so many inputs


LONGEST_DENSE_SIDE = 16_384
"""The longest side of a dense Gram, which takes 2 GiB: see `is_dense`."""


class Gram(NamedTuple):
    """Second moment of what enters a layer.

    Attributes:
        matrix: ``E[x x^T]``, the mean over tokens, shape ``(in, in)``, float64, symmetric
            positive semidefinite up to rounding; or only the blocks along its diagonal, shape
            ``(in / b, b, b)``, of which the others are taken for zero.
        tokens: Number of inputs ``x`` it is the mean of.

    Examples:
        >>> Gram(np.eye(2), tokens=7).matrix.shape
        (2, 2)
    """

    matrix: NDArray[np.float64]
    tokens: int


class LossGrams(NamedTuple):
    r"""The two factors of a layer's Fisher information.

    A change D of the layer's weight raises the KL divergence to the model by about
    :math:`\tfrac12 \mathrm{tr}(C D R D^T)` nats per token.

    Attributes:
        input: ``R = E[x x^T]``, shape ``(in, in)``, the mean over all inputs of the layer.
        output: ``C = E[g g^T]``, shape ``(out, out)``: the sum over all outputs of the layer,
            divided by the tokens of the text. A layer that each token passes twice has the sum
            of both, a layer that half of the tokens pass has half.

    Examples:
        >>> grams = LossGrams(input=Gram(np.eye(3), 7), output=Gram(np.eye(2), 7))
        >>> grams.input.matrix.shape, grams.output.matrix.shape
        ((3, 3), (2, 2))
    """

    input: Gram
    output: Gram


def is_dense(side: int, widest: int, *, count: int = 1) -> bool:
    """Tell whether ``count`` Grams of a side may be dense together.

    Args:
        side: The side of each.
        widest: The longest side of a single one.
        count: How many are in memory at a time.

    Examples:
        >>> is_dense(4096, widest=16_384), is_dense(4096, widest=16_384, count=64)
        (True, False)
    """
    return count * side**2 <= widest**2


class Site:
    """The inputs of one place in the model, summed up.

    Args:
        size: Entries of one input.
        widest: The longest side of a dense sum.
        side: Of a larger one only blocks of this side along the diagonal are kept, by default of
            `block_side`; 1 for the diagonal alone.
        dtype: Type of the sum and of its products.

    Attributes:
        total: The sum of ``x x^T``, or its blocks; only lower triangles count until it is mirrored.
        tokens: How many inputs are in it.

    Note:
        In float32 each product is off by at most ``4096 * 2^-24`` of ``sqrt(G_ii G_jj)``, where all
        roundings of its 4096 inputs agree, and by about 1e-6 in fact; the sum of k products adds
        ``k 2^-24`` at most.
    """

    def __init__(
        self,
        size: int,
        widest: int = LONGEST_DENSE_SIDE,
        *,
        side: int | None = None,
        dtype: type[np.floating[Any]] = np.float64,
    ) -> None:
        self.size = size
        side = side or block_side(size)
        shape = (size, size) if is_dense(size, widest) else (size // side, side, side)
        self.total: NDArray[Any] = np.zeros(shape, dtype)
        self.tokens = 0

    @classmethod
    def of(cls, total: NDArray[Any]) -> Site:
        """Return a site that has a sum already, of no input that is counted."""
        site = cls(0)
        site.size, site.total = total.shape[-1], total
        return site

    def add(self, x: mx.array) -> None:
        """Add all rows of ``x``; see `add_rows`."""
        self.add_rows(linalg.as_matrix(linalg.to_numpy(x).reshape(-1, self.size), "x"))

    def add_rows(self, X: NDArray[np.float32]) -> None:
        """Add inputs, shape ``(tokens, size)``.

        Beside the sum, a few panels of it are in memory. Products run in NumPy, the same bits for
        any number of threads, or in float32 on a GPU that computes in float32.
        """
        step = max(1, min(ROWS, CHUNK // max(1, self.size)))
        for start in range(0, len(X), step):
            part = X[start : start + step]
            rows = (
                linalg.place(part) if linalg.on_gpu() else part.astype(self.total.dtype, copy=False)
            )
            if self.total.ndim == 2:
                _add_products(self.total, rows)
            elif self.total.shape[1] == 1:
                self.total[:, 0, 0] += _squares(rows)
            else:
                side = self.total.shape[1]
                for i, block in enumerate(self.total):
                    _add_products(block, rows[:, i * side : (i + 1) * side])
        self.tokens += len(X)

    def mean(self, tokens: int) -> Gram:
        """Return the sum over ``tokens``: the site is used up."""
        total = self.total.astype(np.float64, copy=False)
        mirror(total)
        total /= max(tokens, 1)
        return Gram(total, tokens)

    def gram(self) -> Gram:
        """Return the mean over the inputs so far."""
        return Site.of(self.total.copy()).mean(self.tokens)


class TokenSite(Site):
    """The tokens that enter an embedding: as inputs of a linear layer, rows of the identity.

    The sum of ``x x^T`` is the diagonal of how often each token came.

    Args:
        size: Number of tokens there are.
    """

    def __init__(self, size: int) -> None:
        super().__init__(0)
        self.size, self.total = size, np.zeros((size, 1, 1))

    def add(self, x: mx.array) -> None:
        """Add all entries of ``x``, whole numbers below the size."""
        tokens = np.asarray(x).reshape(-1)
        self.total[:, 0, 0] += np.bincount(tokens, minlength=self.size)
        self.tokens += tokens.size


def _add_products(total: NDArray[Any], rows: linalg.Matrix) -> None:
    """Add ``rows.T @ rows`` to the lower triangle of a matrix, in equal panels side by side."""

    def add(panels: tuple[slice, slice]) -> None:
        j, i = panels
        total[i, j] += linalg.to_numpy(rows[:, i].T @ rows[:, j])

    pairs = combinations_with_replacement(_panels(len(total)), 2)
    if isinstance(rows, mx.array):
        for pair in pairs:
            add(pair)
    else:
        linalg.in_threads(add, pairs)


def _squares(rows: linalg.Matrix) -> NDArray[Any]:
    """Return the sum of the squares of every column."""
    squares: NDArray[Any] = (
        linalg.to_numpy((rows * rows).sum(axis=0))
        if isinstance(rows, mx.array)
        else np.einsum("ij,ij->j", rows, rows)
    )
    return squares


def _panels(size: int) -> list[slice]:
    """Cut a side into as few equal parts as `PANEL` allows."""
    count = -(-size // PANEL)
    edges = [size * k // count for k in range(count + 1)]
    return [slice(*ends) for ends in pairwise(edges)]


def mirror(A: NDArray[Any]) -> None:
    """Copy the lower triangle of a square matrix, or of each of a stack, onto the upper one."""
    if A.ndim == 3:
        for block in A if A.shape[1] > 1 else ():
            mirror(block)
        return
    for j in range(0, len(A), PANEL):
        end = min(j + PANEL, len(A))
        lower = np.tril(A[j:end, j:end])
        A[j:end, j:end] = lower + np.tril(lower, -1).T
        A[j:end, end:] = A[end:, j:end].T


class RoutedSite:
    """The inputs of a stack of experts: a `Site` for each, or one for all.

    Args:
        size: Entries of one input.
        count: How many experts there are, or 1.
        options: Of the sites.

    Attributes:
        sites: The sums.
    """

    def __init__(self, size: int, count: int, **options: Any) -> None:
        self.sites = [Site(size, **options) for _ in range(count)]

    def add(self, x: mx.array, indices: mx.array) -> None:
        """Add the inputs ``x (..., rows, size)``, of which those at ``i`` go to ``indices[i]``.

        The leading axes of ``x`` and the axes of ``indices`` are broadcast.
        """
        size, rows = x.shape[-1], x.shape[-2]
        shape = np.broadcast_shapes(x.shape[:-2], indices.shape)
        X = linalg.to_numpy(mx.broadcast_to(x, (*shape, rows, size))).reshape(-1, size)
        X = linalg.as_matrix(X, "x")
        experts = np.repeat(np.broadcast_to(np.asarray(indices), shape).reshape(-1), rows)
        if len(self.sites) == 1:
            self.sites[0].add_rows(X)
            return
        for expert in np.unique(experts):
            self.sites[expert].add_rows(X[experts == expert])


AnySite = Site | RoutedSite


def flat_sites(sites: Mapping[str, AnySite]) -> dict[str, Site]:
    """Map paths to sites; experts of a stack have its path and their number: ``mlp.up.3``.

    A stack whose experts share one sum has it under its own path.
    """
    flat: dict[str, Site] = {}
    for path, site in sites.items():
        if isinstance(site, Site):
            flat[path] = site
        elif len(site.sites) == 1:
            flat[path] = site.sites[0]
        else:
            flat |= {f"{path}.{i}": single for i, single in enumerate(site.sites)}
    return flat


def go_on_from(earlier: dict[str, RunningSum], path: str, site: AnySite) -> AnySite:
    """Let a new site go on from sums that another process began, which are used up.

    Args:
        earlier: Sums by path, of experts by that of `flat_sites`.
        path: That of the site.
        site: The site, which has nothing in it.
    """
    for name, single in flat_sites({path: site}).items():
        if name in earlier:
            single.total, single.tokens = earlier.pop(name)
    return site


class GramRecorder:
    """Sends the input of every call to the site of its path, each array of a pass once.

    Args:
        widest: The longest side of a dense sum.

    Attributes:
        earlier: Sums that another process began, by the first path of their sites.
    """

    def __init__(self, widest: int = sys.maxsize) -> None:
        self.sites: dict[str, AnySite] = {}
        self.earlier: dict[str, RunningSum] = {}
        self.passes = 0
        self.widest = widest
        self._seen: dict[tuple[int, str], tuple[weakref.ref[mx.array], AnySite]] = {}

    def new_pass(self) -> None:
        self.passes += 1
        self._seen.clear()

    def around(self, path: str, call: Callable[[mx.array], mx.array], x: mx.array) -> mx.array:
        if mx.issubdtype(x.dtype, mx.floating):
            self.record(path, "", partial(Site, x.shape[-1], self.widest), x)
        return call(x)

    def record(
        self, path: str, kind: str, make: Callable[[], AnySite], x: mx.array, *more: mx.array
    ) -> None:
        """Add an input to the site of a path, unless the very array was added to it in this pass.

        Args:
            path: The path.
            kind: Paths of one kind that one and the same array enters have one site.
            make: Makes a site of that kind.
            x: The input.
            more: What the site's ``add`` takes beside it.

        Raises:
            ValueError: If it is not finite; a note names the layer.
        """
        alive, entered = self._seen.get((id(x), kind), (None, None))
        if alive is None or alive() is not x:  # another array may come to live at the address
            entered = None
        if path not in self.sites:
            self.sites[path] = entered or go_on_from(self.earlier, path, make())
        site: Any = self.sites[path]  # `more` is what its kind takes
        if site is entered:
            return
        try:
            site.add(x, *more)
        except ValueError as error:
            error.add_note(f"while measuring the inputs of layer '{path}'")
            raise
        self._seen[id(x), kind] = weakref.ref(x), site
