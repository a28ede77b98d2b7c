"""What cannot train is named before the first step, and what cannot learn is left alone."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from plastic_core.files import FormatError
from plastic_export.training.data.training_data import TrainingData
from plastic_export.training.first_step import FirstStep
from plastic_export.training.settings import TrainingOptions
from plastic_runtime import attach

CHECKPOINT: Any = SimpleNamespace(config={"model_type": "odd"}, folder=Path("odd"))
ROWS = TrainingData([([1, 2, 3, 4], 0)] * 2, [([1, 2, 3], 0)], 8, 4, {})


class Odd(nn.Module):
    """Two numbered layers and whatever a test makes of what passes them."""

    def __init__(self, between: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.embed = nn.Embedding(8, 8)
        self.layers = [nn.Linear(8, 8), nn.Linear(8, 8)]
        self.between = between

    def __call__(self, tokens: mx.array) -> mx.array:
        return self.layers[1](self.between(self, self.layers[0](self.embed(tokens))))


def trial(between: Any) -> tuple[FirstStep, Odd]:
    model = Odd(between)
    return FirstStep(CHECKPOINT, model, ROWS, TrainingOptions()), model


def broken(model: Odd, x: mx.array) -> mx.array:
    raise KeyError("routed\nexperts")


def rewritten(model: Odd, x: mx.array) -> mx.array:
    if model.training:
        model.layers[1].weight = mx.clip(model.layers[1].weight, -1, 1)
    return x


def counted(model: Odd, x: mx.array) -> mx.array:
    return x * len(x.tolist())


def test_a_model_that_raises_anything_is_refused_by_its_type() -> None:
    first, _ = trial(broken)
    message = r"odd: mlx-lm's model of type 'odd' cannot be trained: KeyError: 'routed\\nexperts'"
    with pytest.raises(FormatError, match=message):
        first.written_by_the_model()


def test_a_model_that_cannot_be_compiled_is_refused() -> None:
    first, model = trial(counted)
    assert first.written_by_the_model() == set()
    with pytest.raises(FormatError, match=r"cannot be trained: ValueError: .eval. Attempting to"):
        first.learning(attach(model, 2))


def test_a_layer_whose_weight_the_model_replaces_is_told() -> None:
    first, model = trial(rewritten)
    assert first.written_by_the_model() == {"layers.1"}
    assert set(first.learning(attach(model, 2, keys=["layers.0"]))) == {"layers.0"}
    assert mx.isfinite(model(mx.array([[1]]))).all()


def test_a_gradient_that_is_not_finite_is_named_by_the_layer_it_comes_from() -> None:
    first, model = trial(lambda model, x: x + mx.sqrt(x - x))
    assert first.written_by_the_model() == set()
    with pytest.raises(FormatError, match=r"the gradient is not finite in the layer 'layers.0'"):
        first.learning(attach(model, 2))


def test_layers_that_no_gradient_reaches_do_not_learn() -> None:
    first, model = trial(lambda model, x: mx.stop_gradient(x))
    first.written_by_the_model()
    assert set(first.learning(attach(model, 2))) == {"layers.1"}
    first, model = trial(lambda model, x: mx.stop_gradient(x))
    first.written_by_the_model()
    with pytest.raises(FormatError, match="no gradient of the loss reaches any of the layers"):
        first.learning(attach(model, 2, keys=["layers.0"]))


def test_a_weight_that_is_not_finite_is_named() -> None:
    first, model = trial(lambda model, x: x)
    model.layers[1].weight[0, 0] = float("nan")
    with pytest.raises(FormatError, match=r"the weight 'layers\.1\.weight' is not finite"):
        first.written_by_the_model()
    first, _ = trial(lambda model, x: x * 1e30 * 1e30)
    with pytest.raises(FormatError, match="before any step, though every weight is finite"):
        first.written_by_the_model()
