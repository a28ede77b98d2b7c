"""The dial on a finished run: how far the model moves from its base on other text, and by how much
less where every ``S`` is turned down."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from plastic_core import RankLayer

from plastic_export.model.divergence import divergences, log_softmax

SCALES = (1.0, 0.85, 0.7, 0.5, 0.25, 0.0)
STEP = 0.01


class DialPoint(NamedTuple):
    """What a factor on every ``S`` makes of a run.

    Attributes:
        scale: The factor.
        loss: Validation loss, in nats per token.
        forgotten: KL divergence from the base on text that was not trained on, nats per token.

    Examples:
        >>> DialPoint(scale=0.7, loss=3.25, forgotten=0.02).scale
        0.7
    """

    scale: float
    loss: float
    forgotten: float


class SDial:
    """One factor on the ``S`` of every layer.

    Args:
        model: The model that the layers are in.
        layers: The layers by path, with the factors that a scale of 1 stands for.
        tokens: Text that was not trained on, token ids, shape (windows, length).
        loss: Measures the validation loss of the model as it is.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Mapping[str, RankLayer],
        tokens: mx.array,
        loss: Callable[[], float],
    ) -> None:
        self._model, self._tokens, self._loss = model, tokens, loss
        self._turned = [(layer, layer.factors()) for layer in layers.values()]

    def turn(self, scale: float) -> None:
        """Give every ``S`` the factor."""
        for layer, (U, S, Vh) in self._turned:
            layer.set_factors(U, S * scale, Vh)

    def points(self, scales: Sequence[float]) -> list[DialPoint]:
        """Measure both losses at some scales.

        Cost:
            A validation and a pass over the tokens per scale; the pass of scale 0 is the base's.
        """
        losses = []
        for scale in scales:
            self.turn(scale)
            losses.append(self._loss())
        moved = np.mean([self._divergences(row[None], scales) for row in self._tokens], axis=0)
        return [DialPoint(*each) for each in zip(scales, losses, moved.tolist(), strict=True)]

    def _divergences(self, row: mx.array, scales: Sequence[float]) -> list[float]:
        """Return the mean KL divergence from the base over one window at every scale."""
        base = log_softmax(self._logits(row, 0.0))
        return [float(divergences(self._logits(row, s), base).mean()) if s else 0.0 for s in scales]

    def _logits(self, row: mx.array, scale: float) -> mx.array:
        self.turn(scale)
        self._model.eval()
        logits: mx.array = self._model(row)
        return logits.astype(mx.float32)


def scale_within(points: Sequence[DialPoint], limit: float) -> float:
    """Return about the largest scale that forgets no more than a limit.

    The divergence grows like the square of the scale, so its root is drawn straight between two
    points.

    Args:
        points: Measured points, 0 and 1 among the scales.
        limit: Nats per token.

    Returns:
        A multiple of a hundredth, rounded down.

    Examples:
        >>> square = [DialPoint(s, 0.0, 0.04 * s * s) for s in (1.0, 0.5, 0.0)]
        >>> scale_within(square, 0.01), scale_within(square, 0.05)
        (0.5, 1.0)
    """
    rising = sorted(points)
    roots = np.maximum.accumulate(np.sqrt([max(0.0, p.forgotten) for p in rising]))
    if roots[-1] ** 2 <= limit:
        return 1.0
    scale = float(np.interp(np.sqrt(limit), roots, [p.scale for p in rising]))
    return round(math.floor(scale / STEP + 1e-9) * STEP, 2)


def turned_within(dial: SDial, points: Sequence[DialPoint], limit: float) -> DialPoint:
    """Turn a dial to the scale of the lowest validation loss within a limit, and leave it there.

    Returns:
        What was measured there, at one of the points or at the largest scale within the limit; its
        ``forgotten`` is within the limit.
    """
    scale = scale_within(points, limit)
    while True:
        known = next((p for p in points if p.scale == scale), None)
        largest = known or dial.points([scale])[0]
        if largest.forgotten <= limit or scale <= 0:
            break
        scale = max(0.0, round(scale - STEP, 2))
    within = [largest, *(p for p in points if p.scale < largest.scale)]
    best = min(within, key=lambda point: point.loss)
    dial.turn(best.scale)
    return best
