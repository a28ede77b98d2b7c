"""The measured cost of a change of one weight on a few windows, to correct its prices."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from numpy.typing import NDArray
from plastic_core.layer import is_stack, linear_from
from plastic_core.linalg import on_cpu
from plastic_runtime import untracked
from plastic_runtime.measure import (
    BoundCall,
    Interceptor,
    chosen_experts,
    intercepted,
    linear_layers,
    modules_by_path,
    numpy_product,
    using_numpy,
)

from plastic_export.calibration.loss_grams import use_float32
from plastic_export.calibration.text import Calibration
from plastic_export.checkpoint.reader import Checkpoint
from plastic_export.evaluation.measures import Reference, Windows, measure_texts
from plastic_export.model.load import load_model
from plastic_export.model.text import evenly_spread

PROBED_WINDOWS = 8
"""How many windows are measured (heuristic: a factor is then sure to about 5 percent)."""
REFERENCE_BYTES = 2**30
"""Bytes of log-probabilities of the unchanged model that are held."""
LEAST_RESOLVED = 1e-7
"""Nats per token that float32 can tell from nothing."""


class PriceProbe:
    """Measures the divergence that a change of one linear layer causes.

    Predictions rest on the Kronecker form of the Fisher information: inputs and output gradients
    of a layer are taken to be independent, tokens too. How wrong that is differs from layer to
    layer and hardly at all from one number of bits to another, so one measurement per matrix
    corrects the prices of all that it offers.

    Args:
        model: Maps tokens to logits, its activations in float32. It is put back exactly after
            every measurement.
        tokens: Windows, shape ``(windows, length)``; as many of them are used as
            `REFERENCE_BYTES` hold.
    """

    def __init__(self, model: nn.Module, tokens: mx.array) -> None:
        self._model = model
        self._modules = modules_by_path(model)
        self._linears, _ = linear_layers(model, None)
        vocabulary = model(tokens[:1, :1]).shape[-1]
        fitting = max(1, REFERENCE_BYTES // (4 * tokens.shape[1] * vocabulary))
        self._texts = [Windows("calibration", tokens[:fitting])]
        self._reference = Reference(model, room=2 * REFERENCE_BYTES)
        self._measured()  # and what it was compared with, itself, is held from now on

    @classmethod
    def of(cls, checkpoint: Checkpoint, calibration: Calibration) -> PriceProbe:
        """Probe a checkpoint on windows of the calibration text that it is not calibrated on.

        Where the text has no others, on some of the same: a factor is the same on both (measured:
        1.38 and 1.41 for the head of a model of 5.8 M parameters, 1.29 and 1.35 elsewhere).

        Raises:
            FormatError: If the model or the text cannot be read.
            ValueError: If the text is shorter than one window.
        """
        everything = calibration.all_tokens(checkpoint)
        rows = mx.array(probed_rows(len(everything), calibration.windows))
        model = load_model(checkpoint.folder)
        use_float32(model)
        return cls(model, everything[rows])

    def divergence(self, path: str, change: NDArray[np.float32], *, expert: int = 0) -> float:
        """Return KL(model || model with ``change`` added to the layer's weight), nats per token.

        Args:
            path: Path of a linear layer, an embedding or a stack of experts.
            change: Shape ``(out, in)``, of an embedding ``(tokens, width)``.
            expert: The expert whose weight is changed, in a stack.
        """
        module = self._modules[path]
        chosen = expert if is_stack(module) else None
        with intercepted({path: module}, _plus(mx.array(change), chosen)):
            return self._measured()

    def factor(
        self, path: str, change: NDArray[np.float32], predicted: float, *, expert: int = 0
    ) -> float:
        """Return the measured divergence over the predicted one; 1 where neither differs from 0."""
        measured = max(self.divergence(path, change, expert=expert), 0.0)
        return (measured + LEAST_RESOLVED) / (predicted + LEAST_RESOLVED)

    def _measured(self) -> float:
        with using_numpy(self._linears):
            (measured,) = measure_texts(self._model, self._texts, self._reference, untracked)
        return float(measured[1].mean())


def _plus(change: mx.array, expert: int | None) -> Interceptor:
    """Adds ``x @ change.T`` to what a layer, or one expert of a stack, computes of ``x``.

    For an embedding, where tokens are looked up, adds their rows of the change.
    """
    linear = linear_from(change, None)
    numpy = on_cpu()

    def around(path: str, call: BoundCall, x: mx.array) -> mx.array:
        y: mx.array = call(x)
        if not mx.issubdtype(x.dtype, mx.floating):
            return y + change[x].astype(y.dtype)
        wide = x.astype(mx.float32)
        added: mx.array = numpy_product(wide, linear) if numpy else linear(wide)
        if expert is not None:
            added = mx.where((chosen_experts(call) == expert)[..., None, None], added, 0.0)
        return y + added.astype(y.dtype)

    return around


def probed_rows(windows: int, calibrated: int) -> NDArray[np.intp]:
    """Choose the windows of a text to probe on, away from the ``calibrated`` ones.

    Args:
        windows: The number of windows of the text.
        calibrated: At most so many are calibrated on.

    Returns:
        At most `PROBED_WINDOWS` numbers, evenly spread over the windows that are left; over all of
        them where none is.
    """
    taken = min(windows, calibrated)
    used = evenly_spread(taken, windows)  # as `text_windows` takes them
    left = np.setdiff1d(np.arange(windows), used)
    pool = left if len(left) else used
    return pool[evenly_spread(min(PROBED_WINDOWS, len(pool)), len(pool))]
