from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from plastic_core import RankLayer
from plastic_core.testing import bits, gaussian, tolerance
from plastic_runtime.measure.intercept import modules_by_path
from plastic_runtime.sleep.sleep_dict import SleepDict
from plastic_runtime.surgery.gradient_factors import GradientFactors
from plastic_runtime.surgery.probe_loss import find_rank_layers
from plastic_runtime.surgery.scores import gradient_score, relevance_score
from plastic_runtime.surgery.sleepers import sleeping_benefit

OUT, INNER = 4, 3
Score = Callable[[nn.Module, Callable[[], mx.array]], dict[str, float]]


def random_layer(rng: np.random.Generator, rank: int) -> RankLayer:
    return RankLayer(gaussian(rng, OUT, rank), gaussian(rng, rank), gaussian(rng, rank, INNER))


class Sum(nn.Module):
    """The sum of two layers, and a third that nothing reaches."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        rng = np.random.default_rng(0)
        self.parts = [random_layer(rng, 2), random_layer(rng, 1)]
        self.idle = random_layer(rng, 2)

    def __call__(self, x: mx.array) -> mx.array:
        return self.parts[0](x) + self.parts[1](x)


def probe() -> tuple[mx.array, mx.array]:
    rng = np.random.default_rng(1)
    return gaussian(rng, 5, INNER), gaussian(rng, OUT)


def test_rank_layers_are_found_by_path_and_a_shared_one_once() -> None:
    model = Sum()
    model.again = model.parts[0]
    assert list(find_rank_layers(model)) == ["again", "idle", "parts.1"]


def test_the_gradient_score_is_the_norm_of_all_gradients_of_the_factors() -> None:
    model, (x, c) = Sum(), probe()

    def loss() -> mx.array:
        return mx.square(model(x) * c).sum()

    _, gradients = nn.value_and_grad(model, loss)()
    scores = gradient_score(model, loss)
    for i in range(2):
        flat = np.concatenate([np.ravel(g) for g in gradients["parts"][i].values()])
        wanted = float(np.linalg.norm(flat.astype(np.float64)))
        assert abs(scores[f"parts.{i}"] - wanted) <= tolerance(wanted, (len(flat),))
    assert scores["idle"] == 0.0


def test_a_frozen_layer_and_one_of_rank_zero_have_a_gradient_score() -> None:
    model, (x, c) = Sum(), probe()
    model.parts[0].freeze()
    model.parts[1].keep([])
    scores = gradient_score(model, lambda: (model(x) * c).sum())
    assert scores["parts.0"] > 0.0
    assert scores["parts.1"] == 0.0
    assert not model.parts[0].trainable_parameters()  # type: ignore[no-untyped-call]


def test_relevance_is_each_layers_share_of_activation_times_gradient() -> None:
    model, (x, c) = Sum(), probe()
    shares = relevance_score(model, lambda: (model(x) * c).sum())
    raw = [
        np.abs((np.array(part(x), dtype=np.float64) * np.array(c)).sum(axis=0)).sum()
        for part in model.parts
    ]
    for i in range(2):
        assert abs(shares[f"parts.{i}"] - raw[i] / sum(raw)) <= tolerance(1.0, (5, OUT))
    assert shares["idle"] == 0.0
    assert abs(sum(shares.values()) - 1) <= tolerance(1.0, (3,), np.float64)


def test_without_relevance_all_shares_are_zero() -> None:
    model = Sum()
    assert set(relevance_score(model, lambda: mx.array(1.0)).values()) == {0.0}


@pytest.mark.parametrize("score", [gradient_score, relevance_score])
def test_scoring_leaves_the_model_as_it_was_even_when_the_loss_fails(score: Score) -> None:
    model, (x, _) = Sum(), probe()

    def picture() -> object:
        arrays = dict(tree_flatten(model.parameters()))  # type: ignore[no-untyped-call]
        modules = [(id(m), type(m)) for m in modules_by_path(model).values()]
        return modules, [(name, id(a), bits(a)) for name, a in arrays.items()]

    before = picture()
    score(model, lambda: model(x).sum())
    assert picture() == before
    with pytest.raises(ZeroDivisionError):
        score(model, lambda: model(x).sum() / (1 // 0))
    assert picture() == before


def test_the_benefit_of_a_sleeper_is_the_slope_of_the_loss_along_it() -> None:
    rng = np.random.default_rng(3)
    layer, (x, c) = random_layer(rng, 2), probe()
    sleep = SleepDict()
    (i,) = sleep.park("p", random_layer(rng, 1).factors())
    parked = sleep.get(i)
    W = np.array(layer.factors().dense(), dtype=np.float64)
    X, direction = np.array(x, dtype=np.float64), np.outer(np.array(parked.U), np.array(parked.Vh))

    def loss(h: float) -> float:
        return float(np.square(X @ (W + h * direction).T - np.array(c)).sum())

    Y = 2 * (X @ W.T - np.array(c))
    G = Y.T @ X
    slope = (loss(1.0) - loss(-1.0)) / 2  # exact for a quadratic
    gradient = GradientFactors(X.astype(np.float32), Y.astype(np.float32))
    benefit = sleeping_benefit(parked, gradient)
    size = float(np.linalg.norm(G) * np.linalg.norm(direction))
    assert abs(benefit - abs(slope)) <= tolerance(size, G.shape)


def test_the_benefit_of_a_bfloat16_sleeper_is_a_number() -> None:
    sleep = SleepDict()
    layer = random_layer(np.random.default_rng(0), 1)
    layer.set_dtype(mx.bfloat16)
    (i,) = sleep.park("p", layer.factors())
    gradient = GradientFactors(np.ones((1, INNER), np.float32), np.ones((1, OUT), np.float32))
    assert sleeping_benefit(sleep.get(i), gradient) > 0.0
