"""Second moments of what passes a place in the model, summed outside MLX."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import NamedTuple

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray
from plastic_core import linalg


class Gram(NamedTuple):
    """Second moment of what enters a layer.

    Attributes:
        matrix: ``E[x x^T]``, the mean over tokens, shape ``(in, in)``, float64, symmetric
            positive semidefinite up to rounding.
        tokens: Number of inputs ``x`` it is the mean of.
    """

    matrix: NDArray[np.float64]
    tokens: int


class Site:
    """The inputs of one place in the model, summed up."""

    def __init__(self, size: int) -> None:
        self.total = np.zeros((size, size))
        self.tokens = 0

    @classmethod
    def of(cls, total: NDArray[np.float64], tokens: int) -> Site:
        """A sum over ``tokens`` that was kept elsewhere."""
        site = cls(0)
        site.total, site.tokens = total, tokens
        return site

    def add(self, x: mx.array) -> None:
        rows = linalg.to_numpy(x).reshape(-1, x.shape[-1])
        self.total += linalg.gram(rows)
        self.tokens += len(rows)

    def gram(self) -> Gram:
        return Gram(self.total / max(self.tokens, 1), self.tokens)


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
