from __future__ import annotations

from pathlib import Path

import mlx.core as mx
from mlx.utils import tree_flatten
from plastic_core.testing import bits
from plastic_export.calibration.reloading import Reloading
from plastic_export.model.load import load_model
from plastic_runtime.measure import modules_by_path


def test_a_module_has_equal_parameters_of_its_own_after_each_time(checkpoint_folder: Path) -> None:
    loads = []

    def load() -> object:
        loads.append(load_model(checkpoint_folder))
        return loads[-1]

    model = load_model(checkpoint_folder)
    block = modules_by_path(model)["model.layers.1"]
    forget = Reloading(model, load)  # type: ignore[arg-type]

    def parameters() -> dict[str, mx.array]:
        return dict(tree_flatten(block.parameters()))  # type: ignore[no-untyped-call]

    had = [parameters()]  # alive, so that no other array has the address of one
    wanted = {name: bits(array) for name, array in had[0].items()}
    for _ in range(2):
        forget("model.layers.0")
        forget("model.layers.1")
        seen = {id(array) for each in had for array in each.values()}
        had.append(parameters())
        assert not seen & {id(array) for array in had[-1].values()}
        assert {name: bits(array) for name, array in had[-1].items()} == wanted
    assert len(loads) == 2
