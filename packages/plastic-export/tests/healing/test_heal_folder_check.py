"""What was healed is loaded again and measured before it replaces anything."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from plastic_core.files import load_safetensors
from plastic_export import Calibration, HealingOptions, execute_plan, heal, verify
from plastic_export.evaluation.output_check import FailedCheckError
from plastic_export.healing import heal_folder
from plastic_export.plan.offers import Choice

FEW = HealingOptions(steps=2, batch=2)


@pytest.fixture
def packed(readable: Path, tmp_path: Path, make_plan: Callable[..., Any]) -> Path:
    """The checkpoint with three matrices in four bits."""
    paths = ("mlp.up_proj", "mlp.down_proj", "self_attn.q_proj")
    choices: dict[str, Choice] = {f"model.layers.0.{path}.weight": Choice(4) for path in paths}
    make_plan(readable, tmp_path / "plan.json", choices, "mixed")
    return execute_plan(readable, tmp_path / "out", tmp_path / "plan.json").out


def test_it_is_measured_as_mlx_lm_loads_it(packed: Path, readable: Path, text: Path) -> None:
    few = Calibration(text, window=24, windows=16)
    result = heal(packed, readable, calibration=few, options=FEW)
    assert result.kl_loaded == pytest.approx(result.kl_after, rel=1e-2, abs=1e-4)
    assert heal(packed, readable, calibration=few, options=FEW, check=False).kl_loaded is None


def test_what_loads_as_something_worse_replaces_nothing(
    packed: Path, readable: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = heal_folder.write_healed

    def spoiled(*inputs: Any, **options: Any) -> None:
        written(*inputs, **options)
        (file,) = Path(inputs[4]).glob("model*.safetensors")
        tensors = load_safetensors(file)
        mx.eval(tensors)
        tensors["lm_head.weight"] = tensors["lm_head.weight"][::-1]
        mx.save_safetensors(str(file), tensors, {"format": "mlx"})

    monkeypatch.setattr(heal_folder, "write_healed", spoiled)
    with pytest.raises(FailedCheckError, match="nothing was replaced"):
        heal(packed, readable, calibration=Calibration(text, 24, 16), options=FEW)
    assert verify(packed) == []
