"""The size of a run that was given none."""

import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten
from mlx_lm.tuner.utils import linear_to_lora_layers
from plastic_export.training.default_size import default_size


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up_proj = nn.Linear(12, 20, bias=False)
        self.down_proj = nn.Linear(20, 6, bias=False)


class Blocks(nn.Module):
    def __init__(self, count: int) -> None:
        super().__init__()
        self.layers = [Block() for _ in range(count)]


@pytest.mark.parametrize("count", [1, 16, 19])
def test_size_is_that_of_mlx_lms_own_defaults(count: int) -> None:
    model = Blocks(count)
    shapes = {
        path: module.weight.shape
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear)
    }
    model.freeze()
    linear_to_lora_layers(model, 16, {"rank": 8, "dropout": 0.0, "scale": 20.0})
    trained = sum(array.nbytes for _, array in tree_flatten(model.trainable_parameters()))
    wide = sum(4 * 2 * 20 for _ in range(min(count, 16)))  # rank 8 of a matrix with 6 rows
    assert default_size(shapes) == trained - wide - sum(4 * 2 * 6 for _ in range(min(count, 16)))


def test_layers_outside_blocks_count_where_there_are_no_others() -> None:
    assert default_size({"lm_head": (64, 32)}) == 4 * 8 * 96
    assert default_size({"lm_head": (64, 32), "layers.0.q_proj": (4, 4)}) == 4 * 4 * 8
