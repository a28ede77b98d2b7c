"""A plastic part on any model: nothing changes, nothing but factors trains, quantised bases too."""

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten
from plastic_core import RankLayer
from plastic_runtime import attach

DIMS = 64


class Block(nn.Module):
    """Two projections, one of them narrow."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.up_proj = nn.Linear(DIMS, 2 * DIMS)
        self.down_proj = nn.Linear(2 * DIMS, DIMS, bias=False)
        self.k_proj = nn.Linear(DIMS, 3, bias=False)


class Net(nn.Module):
    """Two numbered blocks and a head."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        mx.random.seed(0)
        self.layers = [Block(), Block()]
        self.head = nn.Linear(DIMS, 5)

    def __call__(self, x: mx.array) -> mx.array:
        for block in self.layers:
            narrow = block.k_proj(x).sum(axis=-1, keepdims=True)
            x = x + block.down_proj(mx.tanh(block.up_proj(x))) + narrow
        return self.head(x)


def batch() -> mx.array:
    return mx.random.normal((4, DIMS), key=mx.random.key(7))


@pytest.mark.parametrize("bits", [None, 4])
def test_the_function_is_exactly_what_it_was(bits: int | None) -> None:
    model = Net()
    if bits is not None:
        nn.quantize(model, bits=bits, class_predicate=lambda path, m: path.endswith("up_proj"))
    before = model(batch())
    layers = attach(model, 4)
    assert mx.array_equal(model(batch()), before)
    assert len(layers) == 6
    assert {layer.rank for layer in layers.values()} == {3, 4}  # k_proj has no room for more


def test_only_the_factors_train_and_in_their_own_type() -> None:
    model = Net()
    model.set_dtype(mx.bfloat16)
    attach(model, 2)
    names = {name for name, _ in tree_flatten(model.trainable_parameters())}
    assert {name.rpartition(".")[2] for name in names} == {"U", "S", "Vh"}
    assert all(array.dtype == mx.float32 for _, array in tree_flatten(model.trainable_parameters()))
    assert model(batch().astype(mx.bfloat16)).dtype == mx.bfloat16


def test_keys_are_last_parts_or_full_paths() -> None:
    model = Net()
    layers = attach(model, 1, keys=["layers.0.up_proj", "k_proj"])
    assert sorted(layers) == ["layers.0.k_proj", "layers.0.up_proj", "layers.1.k_proj"]
    assert isinstance(model.layers[0].up_proj, RankLayer)
    assert not isinstance(model.layers[1].up_proj, RankLayer)


def test_what_cannot_be_adapted_is_refused_and_left_as_it_was() -> None:
    model = Net()
    with pytest.raises(ValueError, match=r"`keys` must name layers such as '.*', got 'proj'"):
        attach(model, 1, keys=["proj"])
    with pytest.raises(ValueError, match="`rank` must not be negative, got -1"):
        attach(model, -1)
    assert all(isinstance(m, nn.Linear) for m in (model.layers[0].up_proj, model.head))
    assert "up_proj" in str(model.layers[0].trainable_parameters())
    with pytest.raises(ValueError, match="`model` must have a linear layer in a numbered block"):
        attach(nn.Linear(3, 3), 1)


def test_directions_follow_the_seed() -> None:
    first, same, other = (attach(Net(), 2, seed=seed)["layers.0.up_proj"] for seed in (1, 1, 2))
    assert mx.array_equal(first.U, same.U)
    assert not mx.array_equal(first.U, other.U)


def test_layers_outside_the_blocks_are_named_and_may_have_their_own_rank() -> None:
    model = Net()
    assert attach(model, 2, also={"head": 3})["head"].rank == 3
    assert attach(Net(), 2, also=["head"])["head"].rank == 2
    with pytest.raises(ValueError, match=r"`also` must name linear layers; at 'tail' .* nothing"):
        attach(Net(), 2, also=["tail"])
    with pytest.raises(ValueError, match=r"at .layers.0. the model has a Block"):
        attach(Net(), 2, also=["layers.0"])


class Unstarted(Net):
    """A model as mlx-lm's recurrent_gemma: no module before its parts are set."""

    def __init__(self) -> None:
        self.layers = [Block()]
        self.head = nn.Linear(DIMS, 5)


def test_a_model_that_cannot_be_frozen_is_refused_before_anything_changes() -> None:
    model = Unstarted()
    with pytest.raises(ValueError, match=r"does not call `nn.Module.__init__`"):
        attach(model, 4)
    assert type(model.layers[0].up_proj) is nn.Linear
