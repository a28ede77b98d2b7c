"""The first step of a run, tried before anything is written: what cannot train is named."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from plastic_core import RankLayer
from plastic_core.files import FormatError
from plastic_runtime import ResumableBatches, gradient_factors

from plastic_export.checkpoint.reader import Checkpoint
from plastic_export.model.library import brief
from plastic_export.training.data.training_data import TrainingData
from plastic_export.training.settings import TrainingOptions

_SIDES = {"weight", "scales", "biases"}


class FirstStep:
    """One row of the training data, and what a model makes of it.

    Args:
        checkpoint: What the model was loaded from.
        model: The model, with plastic parts or without yet.
        rows: The data.
        training: How they are cut.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        model: nn.Module,
        rows: TrainingData,
        training: TrainingOptions,
    ) -> None:
        from mlx_lm.tuner import trainer

        self._trainer, self._checkpoint, self._model = trainer, checkpoint, model
        order = ResumableBatches(trainer.iterate_batches, seed=training.seed)
        self._row = next(order(rows.train, 1, training.window))

    def written_by_the_model(self) -> set[str]:
        """Return the paths of the modules whose weight the model replaces when it runs.

        Raises:
            FormatError: If mlx-lm's code of the model cannot be trained, or its loss is not finite.
        """
        modules: list[tuple[str, nn.Module]] = self._model.named_modules()  # type: ignore[no-untyped-call]
        before = {path: _arrays(module) for path, module in modules}
        with self._named():
            self._model.freeze()
            self._model.train()
            loss = float(self._loss())
        if not math.isfinite(loss):
            raise self._not_finite(loss)
        return {path for path, module in modules if _replaced(before[path], _arrays(module))}

    def learning(self, layers: Mapping[str, RankLayer]) -> dict[str, RankLayer]:
        """Return the layers that a gradient reaches.

        Raises:
            FormatError: If mlx-lm's code of the model cannot be trained, a gradient is not finite,
                or none arrives.
        """
        with self._named():
            self._compile()
            gradients = gradient_factors(self._model, self._loss)
        broken = [path for path in layers if path in gradients and not gradients[path].finite]
        if broken:
            reason = f"before the first step the gradient is not finite in the layer '{broken[-1]}'"
            raise self._refusal(reason, "no learning rate mends this: take other weights or rows")
        reached = {path: layer for path, layer in layers.items() if path in gradients}
        if not reached:
            reason = "no gradient of the loss reaches any of the layers that were chosen"
            raise self._refusal(reason, "choose others with --include")
        return reached

    def _compile(self) -> None:
        """Trace the model as mlx-lm's trainer does; nothing is computed."""
        model: Any = self._model
        modules: list[nn.Module] = model.modules()
        before = [_arrays(module) for module in modules]
        mx.compile(self._loss_of, inputs=self._model.state)(*self._row)
        for module, arrays in zip(modules, before, strict=True):
            dict.update(module, arrays)

    def _loss(self) -> mx.array:
        return self._loss_of(*self._row)

    def _loss_of(self, batch: mx.array, lengths: mx.array) -> mx.array:
        loss: mx.array = self._trainer.default_loss(self._model, batch, lengths)[0]
        return loss

    def _not_finite(self, loss: float) -> FormatError:
        """Name the weight to blame for a loss, if it is one."""
        model: Any = self._model
        parameters: Any = tree_flatten(model.parameters())
        for name, array in parameters:
            if mx.issubdtype(array.dtype, mx.floating) and not mx.isfinite(array).all().item():
                reason = (
                    f"the weight '{name}' is not finite, and the loss is {loss} before any step"
                )
                return self._refusal(reason, "download the checkpoint again or take another")
        reason = f"the loss is {loss} before any step, though every weight is finite"
        return self._refusal(reason, "numbers overflow in the model: take another checkpoint")

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        """Say in a line what mlx-lm's code of a model raises, which may be anything."""
        try:
            yield
        except (MemoryError, OSError):
            raise
        except Exception as error:
            type_ = self._checkpoint.config.get("model_type")
            reason = (
                f"mlx-lm's model of type {type_!r} cannot be trained: "
                f"{type(error).__name__}: {brief(error)}"
            )
            remedy = "leave layers out with --exclude, or wait for an mlx-lm that mends it"
            raise self._refusal(reason, remedy) from error

    def _refusal(self, reason: str, remedy: str) -> FormatError:
        return FormatError.about(self._checkpoint.folder, reason, remedy)


def _arrays(module: nn.Module) -> dict[str, mx.array]:
    """Return the arrays of a linear layer."""
    return {name: value for name, value in module.items() if name in _SIDES}


def _replaced(before: dict[str, mx.array], after: dict[str, mx.array]) -> bool:
    return any(after.get(name) is not array for name, array in before.items())
