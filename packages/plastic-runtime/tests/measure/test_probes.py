import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlx.utils import tree_flatten
from numpy.typing import NDArray
from plastic_core import RankLayer
from plastic_core.testing import (
    bits,
    gaussian,
    matrix_from_spectrum,
    repeatable,
    spectra,
    tolerance,
)
from plastic_runtime.measure.intercept import modules_by_path
from plastic_runtime.measure.jacobian import jacobian_rank
from plastic_runtime.measure.probes import input_grams

WIDTH, HIDDEN = 4, 6


class Block(nn.Module):
    """Layers of every kind: two share an input, one takes what the others give."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        rng = np.random.default_rng(0)
        self.embed = nn.Embedding(10, WIDTH)
        self.left = linear(rng, HIDDEN, WIDTH)
        self.right = RankLayer.from_linear(linear(rng, HIDDEN, WIDTH), 2, keep_base=True)
        self.out = [RankLayer.from_linear(linear(rng, WIDTH, HIDDEN), 3)]
        self.embed.weight = gaussian(rng, 10, WIDTH)

    def __call__(self, tokens: mx.array) -> mx.array:
        x = self.embed(tokens)
        return self.out[0](mx.tanh(self.left(x)) * self.right(x))


def linear(rng: np.random.Generator, out: int, inner: int) -> nn.Linear:
    layer = nn.Linear(inner, out)
    layer.weight, layer.bias = gaussian(rng, out, inner), gaussian(rng, out)
    return layer


def tokens(*shape: int, seed: int = 0) -> mx.array:
    return mx.array(np.random.default_rng(seed).integers(0, 10, shape))


def inputs(model: Block, batches: list[mx.array]) -> dict[str, mx.array]:
    """What enters each site, written out by hand."""
    x = mx.concatenate([model.embed(b).reshape(-1, WIDTH) for b in batches])
    return {"left": x, "right": x, "out.0": mx.tanh(model.left(x)) * model.right(x)}


def picture(model: nn.Module) -> object:
    """Everything of a model that could change: modules, their classes, parameters, flags."""
    modules = [(p, id(m), type(m), m.training) for p, m in modules_by_path(model).items()]
    trainable = model.trainable_parameters()  # type: ignore[no-untyped-call]
    arrays = dict(tree_flatten(model.parameters()))  # type: ignore[no-untyped-call]
    return modules, list(dict(tree_flatten(trainable))), [(n, bits(a)) for n, a in arrays.items()]


def test_a_gram_is_the_mean_outer_product_of_all_inputs() -> None:
    model, batches = Block(), [tokens(2, 5), tokens(3, 4, seed=1)]
    grams = input_grams(model, batches)
    assert grams.keys() == {"left", "right", "out.0"}
    for path, x in inputs(model, batches).items():
        X = np.array(x, dtype=np.float64)
        assert grams[path].tokens == len(X) == 22
        assert np.abs(grams[path].matrix - X.T @ X / 22).max() <= tolerance(1.0, X.shape), path


def test_layers_that_one_array_enters_share_one_gram() -> None:
    grams = input_grams(Block(), [tokens(2, 5), tokens(1, 3)])
    assert grams["left"] is grams["right"]
    assert grams["left"] is not grams["out.0"]


def test_an_array_at_the_address_of_a_dead_one_is_counted() -> None:
    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()  # type: ignore[no-untyped-call]
            self.layer = nn.Linear(2, 2, bias=False)

        def __call__(self, x: mx.array) -> None:
            for i in range(20):
                self.layer(x + i)
                mx.synchronize()

    assert input_grams(Loop(), [mx.ones((1, 2))])["layer"].tokens == 20


def test_only_the_paths_asked_for_are_measured() -> None:
    assert input_grams(Block(), [tokens(2)], paths=["out.0"]).keys() == {"out.0"}


def test_bfloat16_inputs_are_measured_in_float64() -> None:
    model = nn.Linear(3, 2)
    x = mx.array([[1.0, 2.0, 3.0], [0.5, 0.0, -1.0]], dtype=mx.bfloat16)
    gram = input_grams(model, [x])[""]
    X = np.array(x.astype(mx.float32), dtype=np.float64)
    assert gram.matrix.dtype == np.float64
    assert np.array_equal(gram.matrix, X.T @ X / 2)


def test_the_model_is_untouched_by_measuring_it() -> None:
    model = Block()
    before = picture(model)
    input_grams(model, [tokens(2, 5)])
    assert picture(model) == before


def test_the_model_is_untouched_when_a_pass_fails() -> None:
    model = Block()
    before = picture(model)
    with pytest.raises(ZeroDivisionError):
        input_grams(model, (tokens(2) if i else 1 // i for i in (1, 0)))
    assert picture(model) == before


def test_an_input_that_is_not_finite_names_the_layer() -> None:
    model = Block()
    model.embed.weight = model.embed.weight + mx.array(np.inf)
    with pytest.raises(ValueError, match="must be finite") as caught:
        input_grams(model, [tokens(2)])
    assert caught.value.__notes__ == ["while measuring the inputs of layer 'left'"]


def test_no_batches_and_unknown_paths_are_refused() -> None:
    with pytest.raises(ValueError, match="`batches` must hold"):
        input_grams(Block(), [])
    with pytest.raises(ValueError, match="got 'nowhere'"):
        input_grams(Block(), [tokens(2)], paths=["nowhere"])


@repeatable
@given(spectra(max_size=6), st.integers(0, 99), st.integers(6, 9), st.integers(6, 9))
def test_with_all_probes_the_jacobian_of_a_linear_map_shows_its_spectrum(
    s: NDArray[np.float64], seed: int, m: int, n: int
) -> None:
    A = matrix_from_spectrum(s, m, n, seed)
    W = mx.array(A.astype(np.float32))
    result = jacobian_rank(lambda x: W @ x, mx.ones(n), key=mx.random.key(seed), probes=99)
    limit = tolerance(s, A.shape)
    assert result.probes == m
    assert np.abs(result.singular_values[: len(s)] - s).max() <= limit
    if s[0] > 0:
        assert abs(result.stable_rank - (s @ s) / s[0] ** 2) <= len(s) * 2 * limit / s[0]
    else:
        assert (result.rank, result.stable_rank) == (0, 0.0)


@repeatable
@given(st.integers(1, 4), st.integers(0, 99))
def test_more_probes_than_rank_find_the_rank_and_fewer_bound_it(rank: int, seed: int) -> None:
    W = mx.array(matrix_from_spectrum(np.ones(rank), 9, 7, seed).astype(np.float32))
    key = mx.random.key(seed)
    found = jacobian_rank(lambda x: W @ x, mx.ones(7), key=key, probes=rank + 1).rank
    bound = jacobian_rank(lambda x: W @ x, mx.ones(7), key=key, probes=rank).rank
    assert (found, bound) == (rank, rank)


def test_the_rank_of_a_jacobian_is_taken_where_the_function_is_evaluated() -> None:
    def relu(x: mx.array) -> mx.array:
        return mx.maximum(x, 0).reshape(2, 2)

    x = mx.array([1.0, -1.0, 2.0, -3.0])
    assert jacobian_rank(relu, x, key=mx.random.key(0)).rank == 2


def test_one_key_gives_one_answer() -> None:
    W = mx.array(matrix_from_spectrum(np.ones(5), 9, 7, 0).astype(np.float32))
    one, same, other = (
        jacobian_rank(lambda x: W @ x, mx.ones(7), key=mx.random.key(k), probes=3)
        for k in (0, 0, 1)
    )
    assert bits(one.singular_values) == bits(same.singular_values)
    assert bits(one.singular_values) != bits(other.singular_values)


def test_no_probes_are_refused() -> None:
    with pytest.raises(ValueError, match="`probes` must be"):
        jacobian_rank(mx.sin, mx.ones(2), key=mx.random.key(0), probes=0)


def test_a_jacobian_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match="finite"):
        jacobian_rank(mx.log, mx.zeros(2), key=mx.random.key(0))
