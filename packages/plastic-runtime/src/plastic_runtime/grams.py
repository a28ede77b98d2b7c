"""Second moments of what passes a place in the model, summed outside MLX."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import NamedTuple

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray
from plastic_core import linalg

PANEL = 512  # columns of a sum that are added to at a time
CHUNK = 2**23  # entries of the inputs widened to float64 at a time: 64 MiB


class Gram(NamedTuple):
    """Second moment of what enters a layer.

    Attributes:
        matrix: ``E[x x^T]``, the mean over tokens, shape ``(in, in)``, float64, symmetric
            positive semidefinite up to rounding.
        tokens: Number of inputs ``x`` it is the mean of.
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
    """

    input: Gram
    output: Gram


class Site:
    """The inputs of one place in the model, summed up.

    Attributes:
        total: The sum of ``x x^T``; only its lower triangle counts until it is mirrored.
        tokens: How many inputs are in it.
    """

    def __init__(self, size: int) -> None:
        self.total = np.zeros((size, size))
        self.tokens = 0

    def add(self, x: mx.array) -> None:
        """Add all rows of ``x``.

        Beside the sum, a few panels of it are in memory. Products are float64 in NumPy, or float32
        on a GPU that computes in float32.
        """
        size = len(self.total)
        X = linalg.as_matrix(linalg.to_numpy(x).reshape(-1, size), "x")
        step = max(1, CHUNK // max(1, size))
        for start in range(0, len(X), step):
            part = X[start : start + step]
            rows = linalg.place(part) if linalg.on_gpu() else part.astype(np.float64)
            for j in range(0, size, PANEL):
                product = rows[:, j:].T @ rows[:, j : j + PANEL]
                self.total[j:, j : j + PANEL] += linalg.to_numpy(product)
        self.tokens += len(X)

    def mean(self, tokens: int) -> Gram:
        """The sum over ``tokens``, in its own memory: the site is used up."""
        mirror(self.total)
        self.total /= max(tokens, 1)
        return Gram(self.total, tokens)

    def gram(self) -> Gram:
        """The mean over the inputs so far."""
        copy = Site(0)
        copy.total = self.total.copy()
        return copy.mean(self.tokens)


def mirror(A: NDArray[np.float64]) -> None:
    """Copy the lower triangle of a square matrix onto the upper one, in place."""
    for j in range(0, len(A), PANEL):
        end = min(j + PANEL, len(A))
        lower = np.tril(A[j:end, j:end])
        A[j:end, j:end] = lower + np.tril(lower, -1).T
        A[j:end, end:] = A[end:, j:end].T


class GramRecorder:
    """Sends the input of every call to the site of its path, each array of a pass once."""

    def __init__(self) -> None:
        self.sites: dict[str, Site] = {}
        self.passes = 0
        self._seen: dict[int, tuple[weakref.ref[mx.array], Site]] = {}

    def new_pass(self) -> None:
        self.passes += 1
        self._seen.clear()

    def around(self, path: str, call: Callable[[mx.array], mx.array], x: mx.array) -> mx.array:
        if mx.issubdtype(x.dtype, mx.floating):
            try:
                self._record(path, x)
            except ValueError as error:
                error.add_note(f"while measuring the inputs of layer '{path}'")
                raise
        return call(x)

    def _record(self, path: str, x: mx.array) -> None:
        alive, entered = self._seen.get(id(x), (None, None))
        if alive is None or alive() is not x:  # another array may come to live at the address
            entered = None
        own = self.sites.setdefault(path, entered or Site(x.shape[-1]))
        if own is not entered:
            own.add(x)
            self._seen[id(x)] = weakref.ref(x), own
