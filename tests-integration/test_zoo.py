"""The zoo: it has every type that mlx-lm has, and what it calls published loads as such."""

from __future__ import annotations

import pkgutil
from importlib import import_module

import mlx_lm.models
import pytest
from mlx_lm.utils import MODEL_REMAPPING
from zoo.building import CONFIGS
from zoo.skipped import PART, SKIPPED


def test_the_zoo_has_every_type_that_mlx_lm_has() -> None:
    modules = {module.name for module in pkgutil.iter_modules(mlx_lm.models.__path__)}
    assert {*CONFIGS, *SKIPPED} == modules | MODEL_REMAPPING.keys()


@pytest.mark.parametrize("name", [name for name, reason in SKIPPED.items() if reason is PART])
def test_a_part_of_models_is_no_model(name: str) -> None:
    assert not hasattr(import_module(f"mlx_lm.models.{name}"), "Model")
