"""The zoo's checkpoints as they are published: stock mlx-lm loads what it loads of its own form."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from mlx_lm.utils import load_model
from zoo.building import PUBLISHED, build_checkpoint
from zoo.dense import Weights

COMPUTED = {"falcon_h1", "gpt_oss"}
"""Types whose published values mlx-lm computes with, so that the drawn ones are not met."""


def loaded(folder: Path) -> Weights:
    model, _ = load_model(folder)
    return dict(tree_flatten(model.parameters()))


def check_same(one: Weights, other: Weights) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert tensor.dtype == other[name].dtype, name
        assert mx.array_equal(tensor, other[name]), name


@pytest.mark.parametrize("model_type", sorted(PUBLISHED))
def test_published_form_loads_like_the_form_of_mlx(tmp_path, model_type):
    published = build_checkpoint(tmp_path / "published", model_type, "published")
    expected = loaded(published)
    own = build_checkpoint(tmp_path / "mlx", model_type, "mlx")
    if model_type in COMPUTED:
        (own / "config.json").write_text((published / "config.json").read_text())
        mx.save_safetensors(str(own / "model.safetensors"), expected)
    check_same(expected, loaded(own))
