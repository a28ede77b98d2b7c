"""A weight that is not finite is named, whatever became of it in the model."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import pytest
from plastic_core.files import FormatError
from plastic_export import (
    Calibration,
    compare,
    open_checkpoint,
    plan_checkpoint,
)
from plastic_export.checkpoint.finite import blaming_weights


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.q_proj.weight",
        "model.layers.1.input_layernorm.weight",
        "lm_head.weight",
    ],
)
def test_a_value_that_is_not_finite_is_named_by_its_tensor(
    make_readable: Callable[..., Path],
    tiny_weights: dict[str, mx.array],
    text: Path,
    tmp_path: Path,
    name: str,
) -> None:
    weight = tiny_weights[name].reshape(-1)
    weight = mx.where(mx.arange(weight.size) == 5, mx.array(float("nan"), weight.dtype), weight)
    source = make_readable(weights=tiny_weights | {name: weight.reshape(tiny_weights[name].shape)})
    few, said = Calibration(text, window=8, windows=8), rf"tensor '{name}': 1 of .* NaN or infinite"
    with pytest.raises(FormatError, match=said):
        plan_checkpoint(source, tmp_path / "p.json", calibration=few, budgets=[8])
    with pytest.raises(FormatError, match="are not finite") as caught:
        compare([source], [text], window=8, windows=2)
    assert re.search(said, caught.value.__notes__[0])


def test_other_errors_stay_what_they_are(checkpoint_folder: Path) -> None:
    with (
        pytest.raises(ValueError, match=r"^the loss is nan$"),
        open_checkpoint(checkpoint_folder) as checkpoint,
        blaming_weights(checkpoint),
    ):
        raise ValueError("the loss is nan")
