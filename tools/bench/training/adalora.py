"""AdaLoRA by its published rule: Zhang et al., ICLR 2023, arXiv 2303.10512.

A layer is ``W0 + scale P diag(L) Q``. Importance of an entry is the moving average of its
sensitivity ``|w dL/dw|`` times that of the sensitivity's deviation (equations 8 to 11), of a
triplet that of its L plus the means over its column of P and row of Q (equation 7). All triplets
of the model compete for a budget that falls along a cubic (equation 12); the L of those that lose
are set to zero, and may come back. ``P`` and ``Q`` are kept orthogonal by a penalty (equation 4).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_unflatten
from plastic_core import projections

NAMES = ("P", "L", "Q")


class SVDLinear(nn.Module):
    """A frozen linear layer and its triplets."""

    def __init__(self, base: nn.Linear, rank: int, scale: float, key: mx.array) -> None:
        super().__init__()
        out, inner = base.weight.shape
        left, right = mx.random.split(key)
        self.base, self.scale = base, scale
        self.P = mx.random.normal((out, rank), scale=0.02, key=left)
        self.L = mx.zeros(rank)
        self.Q = mx.random.normal((rank, inner), scale=0.02, key=right)

    def __call__(self, x: mx.array) -> mx.array:
        y = ((x @ self.Q.T) * self.L) @ self.P.T
        return self.base(x) + self.scale * y

    @property
    def triplet_bytes(self) -> int:
        """Bytes of one triplet."""
        return 4 * (self.P.shape[0] + self.Q.shape[1] + 1)

    def penalty(self) -> mx.array:
        """Measure how far ``P`` and ``Q`` are from orthogonal (equation 4)."""
        eye = mx.eye(self.L.size)
        left, right = self.P.T @ self.P - eye, self.Q @ self.Q.T - eye
        return mx.square(left).sum() + mx.square(right).sum()


class AdaLoraRule(NamedTuple):
    """The numbers of the rule; the betas and the penalty are the paper's."""

    final: int  # bytes
    steps: int
    warm: float = 0.1  # share of the steps before the budget falls
    settle: float = 0.4  # share of the steps after it has fallen
    every: int = 5
    beta1: float = 0.85
    beta2: float = 0.85
    gamma: float = 0.1


class Allocator:
    """Measures the triplets of a model and masks those that do not earn their place."""

    def __init__(self, layers: Mapping[str, SVDLinear], rule: AdaLoraRule) -> None:
        self.layers, self.rule = layers, rule
        self.first = sum(layer.triplet_bytes * layer.L.size for layer in layers.values())
        self.awake = {path: mx.ones(layer.L.size) for path, layer in layers.items()}
        self._mean = {path: self._zeros(layer) for path, layer in layers.items()}
        self._spread = {path: self._zeros(layer) for path, layer in layers.items()}

    @property
    def nbytes(self) -> int:
        """Bytes of the triplets awake."""
        return sum(
            layer.triplet_bytes * int(self.awake[path].sum()) for path, layer in self.layers.items()
        )

    def observe(self, gradients: Mapping[str, Mapping[str, mx.array]]) -> None:
        """Take in the gradients of one step (equations 8 to 10)."""
        b1, b2 = self.rule.beta1, self.rule.beta2
        for path, layer in self.layers.items():
            for name in NAMES:
                sensitivity = mx.abs(layer[name] * gradients[path][name])
                mean = b1 * self._mean[path][name] + (1 - b1) * sensitivity
                deviation = mx.abs(sensitivity - mean)
                self._spread[path][name] = b2 * self._spread[path][name] + (1 - b2) * deviation
                self._mean[path][name] = mean
        mx.eval(self._mean, self._spread)

    def budget(self, step: int) -> int:
        """Bytes awake after ``step`` steps (equation 12)."""
        begin, end = self.rule.warm * self.rule.steps, (1 - self.rule.settle) * self.rule.steps
        left = min(max((end - step) / (end - begin), 0.0), 1.0)
        return self.rule.final + round((self.first - self.rule.final) * left**3)

    def allocate(self, step: int) -> None:
        """Choose who is awake, when that is due, and mask the others."""
        end = round((1 - self.rule.settle) * self.rule.steps)
        if step == end or (step < end and step % self.rule.every == 0):
            self._choose(self.budget(step))
        for path, layer in self.layers.items():
            layer.L = layer.L * self.awake[path]

    def _choose(self, budget: int) -> None:
        scores = [
            (float(score) / layer.triplet_bytes, path, i)
            for path, layer in self.layers.items()
            for i, score in enumerate(np.array(self._scores(path)))
        ]
        chosen: dict[str, list[float]] = {p: [0.0] * m.L.size for p, m in self.layers.items()}
        for _, path, i in sorted(scores, reverse=True):
            if self.layers[path].triplet_bytes <= budget:
                chosen[path][i] = 1.0
                budget -= self.layers[path].triplet_bytes
        self.awake = {path: mx.array(mask) for path, mask in chosen.items()}

    def _scores(self, path: str) -> mx.array:
        """Importance of every triplet (equations 7 and 11)."""
        P, L, Q = (self._mean[path][name] * self._spread[path][name] for name in NAMES)
        return L + P.mean(axis=0) + Q.mean(axis=1)

    @staticmethod
    def _zeros(layer: SVDLinear) -> dict[str, mx.array]:
        return {name: mx.zeros_like(layer[name]) for name in NAMES}


def svd_layers(model: nn.Module, rank: int, scale: float, seed: int) -> dict[str, SVDLinear]:
    """Put triplets on every projection of a frozen model."""
    found = [p for p in projections(model) if isinstance(p.module, nn.Linear)]
    keys = mx.random.split(mx.random.key(seed), len(found))
    layers = {
        p.path: SVDLinear(p.module, min(rank, *p.shape), scale, key)
        for p, key in zip(found, keys, strict=True)
        if isinstance(p.module, nn.Linear)
    }
    model.update_modules(tree_unflatten(list(layers.items())))
    return layers
