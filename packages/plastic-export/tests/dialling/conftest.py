"""Folders that can be dialled, of both formats."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from plastic_core.rounding import UNPACKED
from plastic_export.checkpoint.tensors import module_path
from plastic_export.compression.by_plan import execute_plan
from plastic_export.compression.by_rank import compress
from plastic_export.plan.offers import Choice

BLOCK = "model.layers.0."
CHOICES = {  # of every kind
    f"{BLOCK}self_attn.q_proj.weight": Choice(3, 6, 8),
    f"{BLOCK}self_attn.k_proj.weight": Choice(None, 7, 4),
    f"{BLOCK}mlp.gate_proj.weight": Choice(2, 5, UNPACKED),
    f"{BLOCK}mlp.up_proj.weight": Choice(2, 4, 4),
    f"{BLOCK}mlp.down_proj.weight": Choice(None, 9, UNPACKED),
    "model.layers.1.self_attn.q_proj.weight": Choice(5),
    "lm_head.weight": Choice(4, 3, UNPACKED),
}
MakePlan = Callable[..., Any]


@pytest.fixture
def choices() -> dict[str, Choice]:
    """Matrices of every kind."""
    return CHOICES


@pytest.fixture
def with_biases(make_checkpoint: Callable[..., Path], tiny_weights: dict[str, mx.array]) -> Path:
    """A checkpoint whose layers have biases."""
    weights = dict(tiny_weights)
    for number, name in enumerate(list(tiny_weights)):
        if name.endswith("_proj.weight"):
            size = weights[name].shape[:1]
            bias = mx.random.normal(size, key=mx.random.key(number)).astype(mx.bfloat16)
            weights[f"{module_path(name)}.bias"] = bias
    return make_checkpoint("biased", weights=weights, attention_bias=True, mlp_bias=True)


@pytest.fixture
def corrected(with_biases: Path, make_plan: MakePlan, tmp_path: Path) -> Path:
    """A folder of the format ``"corrected"``, with matrices of every kind."""
    make_plan(with_biases, tmp_path / "plan.json", CHOICES)
    return execute_plan(with_biases, tmp_path / "corrected", tmp_path / "plan.json").out


@pytest.fixture
def factored(checkpoint_folder: Path, tmp_path: Path) -> Path:
    """A folder of the format ``"factored"``."""
    return compress(checkpoint_folder, tmp_path / "factored", keep=0.6).out


@pytest.fixture(params=["corrected", "factored"])
def folder(request: pytest.FixtureRequest) -> Path:
    """Either of them."""
    found: Path = request.getfixturevalue(request.param)
    return found
