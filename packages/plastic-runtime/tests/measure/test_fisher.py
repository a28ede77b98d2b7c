from collections.abc import Callable, Iterable, Iterator
from itertools import product

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from numpy.typing import NDArray
from plastic_core import RankLayer
from plastic_core.layer import linear_from
from plastic_core.testing import bits, gaussian, tolerance
from plastic_runtime import LossGrams, input_grams, loss_grams
from plastic_runtime.measure import grams as grams_module
from plastic_runtime.measure.grams import Site
from plastic_runtime.measure.intercept import modules_by_path
from plastic_runtime.measure.numpy_products import numpy_product

Float64 = NDArray[np.float64]

VOCABULARY, WIDTH, HIDDEN = 7, 4, 6


class Model(nn.Module):
    """Two layers on one input, each token adding to the later ones; then a head."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        rng = np.random.default_rng(seed)
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.embed.weight = gaussian(rng, VOCABULARY, WIDTH)
        self.left: nn.Module = linear(rng, HIDDEN, WIDTH)
        self.right: nn.Module = linear(rng, HIDDEN, WIDTH)
        self.head: nn.Module = linear(rng, VOCABULARY, HIDDEN)

    def __call__(self, tokens: mx.array) -> mx.array:
        x = self.embed(tokens)
        y: mx.array = self.head(mx.cumsum(mx.tanh(self.left(x)) * self.right(x), axis=1))
        return y


class Fused(nn.Linear):
    """A projection that returns its output in two parts, as fused ones do."""

    def __call__(self, x: mx.array) -> list[mx.array]:  # type: ignore[override]
        return super().__call__(x).split((1,), axis=-1)


class Halves(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.layer = layer

    def __call__(self, x: mx.array) -> mx.array:
        y = self.layer(x)
        return mx.concatenate(y, axis=-1) if isinstance(y, list) else y


def linear(rng: np.random.Generator, out: int, inner: int, kind: type = nn.Linear) -> nn.Linear:
    layer: nn.Linear = kind(inner, out)
    layer.weight, layer.bias = gaussian(rng, out, inner), gaussian(rng, out)
    return layer


def tokens(*shape: int, seed: int = 0) -> mx.array:
    return mx.array(np.random.default_rng(seed).integers(0, VOCABULARY, shape))


BATCHES = [tokens(2, 5), tokens(3, 4, seed=1), tokens(1, 6, seed=2)]


def cut(count: int) -> Iterator[mx.array]:
    """The batches, until something happens."""
    yield from BATCHES[:count]
    raise KeyboardInterrupt


def drawn(logits: mx.array, batch: int = 0, seed: int = 0) -> NDArray[np.intp]:
    """The labels that a batch draws, by the documented rule."""
    p = softmax(float64(logits))
    uniform = np.random.Generator(np.random.Philox(key=(seed, batch))).random(p.shape[:-1])
    labels: NDArray[np.intp] = (np.cumsum(p, axis=-1) <= uniform[..., None]).sum(axis=-1)
    return labels


def softmax(z: Float64) -> Float64:
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    p: Float64 = e / e.sum(axis=-1, keepdims=True)
    return p


def float64(a: mx.array) -> Float64:
    return np.asarray(a).astype(np.float64)


def gradients(model: Model, batch: mx.array, number: int, seed: int) -> dict[str, Float64]:
    """The gradient of every token at the output of every layer, written out by hand."""
    weights = {p: float64(getattr(model, p).weight) for p in ("left", "right", "head")}
    biases = {p: float64(getattr(model, p).bias) for p in weights}
    x = float64(model.embed.weight)[np.asarray(batch)]
    a, b = (x @ weights[p].T + biases[p] for p in ("left", "right"))
    h = np.cumsum(np.tanh(a) * b, axis=1)
    labels = drawn(model(batch), number, seed)
    g = softmax(h @ weights["head"].T + biases["head"]) - np.eye(VOCABULARY)[labels]
    later = np.cumsum((g @ weights["head"])[:, ::-1], axis=1)[:, ::-1]
    return {"left": later * b * (1 - np.tanh(a) ** 2), "right": later * np.tanh(a), "head": g}


def moment(rows: Float64) -> Float64:
    rows = rows.reshape(-1, rows.shape[-1])
    return rows.T @ rows


def assert_equal(grams: dict[str, LossGrams], wanted: dict[str, LossGrams]) -> None:
    assert grams.keys() == wanted.keys()
    for path in grams:
        for own, other in zip(grams[path], wanted[path], strict=True):
            assert own.tokens == other.tokens
            assert bits(own.matrix) == bits(other.matrix), path


def picture(model: nn.Module) -> object:
    """Everything of a model that could change: modules, their classes, parameters."""
    arrays = dict(tree_flatten(model.parameters()))  # type: ignore[no-untyped-call]
    modules = [(path, id(m), type(m)) for path, m in modules_by_path(model).items()]
    return modules, [(name, id(a), bits(a)) for name, a in arrays.items()]


@pytest.mark.parametrize("seed", [0, 3])
def test_the_output_gram_is_that_of_the_gradients_of_every_token(seed: int) -> None:
    model = Model()
    grams = loss_grams(model, BATCHES, seed=seed)
    assert grams.keys() == {"left", "right", "head"}
    by_hand = [gradients(model, b, i, seed) for i, b in enumerate(BATCHES)]
    for path, gram in grams.items():
        wanted = sum(moment(g[path]) for g in by_hand) / 28
        assert gram.output.tokens == 28
        assert np.abs(gram.output.matrix - wanted).max() <= tolerance(wanted, (28, HIDDEN)), path


def test_the_input_gram_is_that_of_the_forward_pass() -> None:
    model = Model()
    grams, alone = loss_grams(model, BATCHES), input_grams(model, BATCHES)
    assert grams["left"].input is grams["right"].input
    assert grams["left"].input.matrix is not grams["head"].input.matrix
    for path, gram in grams.items():
        wanted = alone[path]
        assert gram.input.tokens == wanted.tokens
        limit = tolerance(wanted.matrix, (HIDDEN, WIDTH))
        assert np.abs(gram.input.matrix - wanted.matrix).max() <= limit, path


def test_on_average_over_labels_the_output_gram_of_a_softmax_is_its_covariance() -> None:
    head, x = linear(np.random.default_rng(0), VOCABULARY, WIDTH), inputs(4096)
    gram = loss_grams(head, [x])[""].output
    p = softmax(float64(head(x))[0])
    wanted = np.diag(p.mean(axis=0)) - moment(p) / len(p)
    # |g|^2 <= 2, so the mean of n matrices g g^T has a standard error of at most 2 / sqrt(n).
    assert np.linalg.norm(gram.matrix - wanted) <= 3 * 2 / np.sqrt(len(p))


def test_the_grams_predict_the_divergence_of_a_perturbed_weight() -> None:
    rng = np.random.default_rng(1)
    head, x = linear(rng, VOCABULARY, WIDTH), inputs(4096)
    head.weight = head.weight / 4  # the more uniform the softmax, the better the Kronecker form
    gram = loss_grams(head, [x])[""]
    X, W, b = float64(x)[0], float64(head.weight), float64(head.bias)
    p = softmax(X @ W.T + b)
    for _ in range(5):
        D = 0.02 * rng.standard_normal(W.shape)
        q = softmax(X @ (W + D).T + b)
        measured = (p * np.log(p / q)).sum(axis=1).mean()
        predicted = np.trace(gram.output.matrix @ D @ gram.input.matrix @ D.T) / 2
        assert abs(predicted / measured - 1) < 0.1


def inputs(count: int) -> mx.array:
    return gaussian(np.random.default_rng(7), 1, count, WIDTH)


def test_an_array_that_enters_in_every_pass_is_counted_in_every_pass() -> None:
    class Constant(Model):
        def __call__(self, tokens: mx.array) -> mx.array:
            y: mx.array = self.head(self.left(self.embed.weight))[tokens]
            return y

    gram = loss_grams(Constant(), BATCHES)["left"]
    assert (gram.input.tokens, gram.output.tokens) == (3 * VOCABULARY, 28)


def test_a_layer_that_tokens_pass_twice_counts_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()  # type: ignore[no-untyped-call]
            self.layer = linear(np.random.default_rng(0), WIDTH, WIDTH)

        def __call__(self, x: mx.array) -> mx.array:
            return self.layer(x) + self.layer(-x)

    model, x = Twice(), inputs(8)
    gram = loss_grams(model, [x])["layer"]
    p = softmax(float64(model(x)))
    wanted = 2 * moment(p - np.eye(WIDTH)[drawn(model(x))]) / 8
    assert (gram.input.tokens, gram.output.tokens) == (16, 8)
    assert np.abs(gram.output.matrix - wanted).max() <= tolerance(wanted, (16, WIDTH))


def test_layers_of_every_kind_are_measured_as_their_dense_twin() -> None:
    rng = np.random.default_rng(0)
    x = gaussian(rng, 2, 5, 64)
    packed = nn.QuantizedLinear.from_linear(linear(rng, 8, 64), group_size=32, bits=4)
    dense, fused = linear(rng, 8, 64), linear(rng, 8, 64, Fused)
    ranked = RankLayer.from_linear(packed, 2, keep_base=True)
    dense.weight = fused.weight = mx.dequantize(
        packed.weight, packed.scales, packed.biases, group_size=32, bits=4
    )
    dense.bias = fused.bias = packed.bias
    wanted = loss_grams(Halves(dense), [x])["layer"]
    for layer in (packed, fused, ranked):
        found = loss_grams(Halves(layer), [x])["layer"]
        for own, other in zip(found, wanted, strict=True):
            assert np.abs(own.matrix - other.matrix).max() <= tolerance(other.matrix, (8, 64))


@pytest.mark.parametrize("bias", [True, False])
def test_a_product_in_numpy_and_its_gradient_are_those_of_mlx(bias: bool) -> None:
    rng = np.random.default_rng(0)
    layer, x, c = linear(rng, 5, 3), gaussian(rng, 2, 4, 3), gaussian(rng, 2, 4, 5)
    if not bias:
        del layer.bias

    def value(call: Callable[[mx.array], mx.array], x: mx.array) -> mx.array:
        return (c * mx.square(call(x))).sum()

    own = mx.value_and_grad(lambda x: value(lambda x: numpy_product(x, layer), x))(x)
    stock = mx.value_and_grad(lambda x: value(layer, x))(x)
    for mine, other in zip(own, stock, strict=True):
        assert np.abs(float64(mine - other)).max() <= tolerance(np.asarray(other).ravel(), (8, 5))


def test_one_seed_gives_one_answer() -> None:
    one, same, other = (loss_grams(Model(), BATCHES, seed=seed) for seed in (0, 0, 1))
    assert_equal(same, one)
    assert bits(other["head"].output.matrix) != bits(one["head"].output.matrix)
    assert bits(other["head"].input.matrix) == bits(one["head"].input.matrix)


def test_only_the_paths_asked_for_are_measured_and_no_less_well() -> None:
    everything = loss_grams(Model(), BATCHES)
    assert_equal(loss_grams(Model(), BATCHES, paths=["right"]), {"right": everything["right"]})


def test_the_model_is_untouched_also_when_a_pass_fails() -> None:
    model = Model()
    before = picture(model)
    loss_grams(model, BATCHES)
    with pytest.raises(KeyboardInterrupt):
        loss_grams(model, cut(1))
    assert picture(model) == before
    model.head.weight = model.head.weight * mx.array(np.nan)
    model.left.bias = model.left.bias * mx.array(np.inf)
    before = picture(model)
    with pytest.raises(ValueError, match="must be finite"):
        loss_grams(model, BATCHES)
    with pytest.raises(ValueError, match="must be finite"):
        loss_grams(model, BATCHES, paths=["right"])
    assert picture(model) == before


def test_an_input_that_is_not_finite_names_the_layer() -> None:
    model = Model()
    model.embed.weight = model.embed.weight + mx.array(np.inf)
    with pytest.raises(ValueError, match="must be finite") as caught:
        loss_grams(model, BATCHES)
    assert caught.value.__notes__ == ["while measuring the inputs of layer 'left'"]


def test_a_gradient_that_is_not_finite_names_the_layer() -> None:
    class Steep(Model):
        def __call__(self, tokens: mx.array) -> mx.array:
            h = self.left(self.embed(tokens))
            y: mx.array = self.head(1e38 * (1e38 * (h - mx.stop_gradient(h))))
            return y

    with pytest.raises(ValueError, match="must be finite") as caught:
        loss_grams(Steep(), BATCHES, paths=["left"])
    assert caught.value.__notes__ == ["while measuring the gradients of layer 'left'"]


def test_a_layer_that_no_gradient_reaches_is_named() -> None:
    class Severed(Model):
        def __call__(self, tokens: mx.array) -> mx.array:
            y: mx.array = self.head(mx.stop_gradient(self.right(self.embed(tokens))))
            return y

    with pytest.raises(ValueError, match="no gradient reaches layer 'right'"):
        loss_grams(Severed(), BATCHES)
    assert loss_grams(Severed(), BATCHES, paths=["head", "left"]).keys() == {"head"}


@pytest.mark.parametrize("path", ["nowhere", ""])
def test_what_is_no_linear_layer_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match=f"`paths` must be .* got '{path}'"):
        loss_grams(Model(), BATCHES, paths=["left", path])


def test_no_batches_are_refused() -> None:
    with pytest.raises(ValueError, match="`batches` must hold"):
        loss_grams(Model(), [])


def test_a_sum_wider_than_a_panel_is_that_of_all_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    first, second = gaussian(rng, 2, 5, 7), gaussian(rng, 3, 7)
    rows = np.concatenate([float64(first).reshape(-1, 7), float64(second)])
    sizes = ((512, 2**23, 4096), (3, 14, 4096), (1, 1, 4096), (7, 7, 4096), (3, 2**23, 2))
    for (panel, chunk, many), dtype in product(sizes, (np.float32, np.float64)):
        monkeypatch.setattr(grams_module, "PANEL", panel)
        monkeypatch.setattr(grams_module, "CHUNK", chunk)
        monkeypatch.setattr(grams_module, "ROWS", many)
        site = Site(7, dtype=dtype)
        site.add(first)
        site.add(second)
        wanted = rows.T @ rows / 13
        for gram in (site.gram(), site.gram(), site.mean(13)):
            assert gram.tokens == 13
            assert gram.matrix.dtype == np.float64
            assert bits(gram.matrix) == bits(gram.matrix.T)
            assert np.abs(gram.matrix - wanted).max() <= tolerance(wanted, (13, 7))


def test_sums_in_float32_are_within_their_bound() -> None:
    rows = np.random.default_rng(0).standard_normal((9000, 20), np.float32) + np.float32(0.5)
    single, double = Site(20, dtype=np.float32), Site(20)
    for site in (single, double):
        site.add_rows(rows)
    one, two = single.gram().matrix, double.gram().matrix
    scale = np.sqrt(np.outer(np.diagonal(two), np.diagonal(two)))
    assert 0 < np.abs((one - two) / scale).max() <= (4096 + 3) * 2.0**-24


def test_a_wide_side_is_kept_in_blocks_of_the_side_asked_for() -> None:
    rows = np.random.default_rng(0).standard_normal((9, 6), np.float32)
    whole = rows.astype(np.float64).T @ rows / 9
    for side in (1, 2, 3):
        site = Site(6, 5, side=side)
        site.add_rows(rows)
        blocks = [whole[i : i + side, i : i + side] for i in range(0, 6, side)]
        assert np.allclose(site.gram().matrix, np.stack(blocks))


class OneHot(Model):
    """The embedding as the linear layer that it is."""

    def __init__(self, tied: bool = False) -> None:
        super().__init__()
        self.lookup: nn.Module = linear_from(self.embed.weight.T, None)
        self.tied = tied
        if tied:
            self.head = linear_from(self.embed.weight, None)

    def __call__(self, tokens: mx.array) -> mx.array:
        return self.rest(self.lookup(mx.eye(VOCABULARY)[tokens]))

    def rest(self, x: mx.array) -> mx.array:
        if self.tied:
            return self.output(mx.tanh(x))
        y: mx.array = self.head(mx.cumsum(mx.tanh(self.left(x)) * self.right(x), axis=1))
        return y

    def output(self, h: mx.array) -> mx.array:
        y: mx.array = self.head(h)
        return y


class LookedUp(OneHot):
    def __call__(self, tokens: mx.array) -> mx.array:
        return self.rest(self.embed(tokens))

    def output(self, h: mx.array) -> mx.array:
        return self.embed.as_linear(h)


@pytest.mark.parametrize("tied", [False, True])
def test_an_embedding_is_a_linear_layer_of_rows_of_the_identity(tied: bool) -> None:
    found = loss_grams(LookedUp(tied), BATCHES, paths=["embed"])
    paths = {"embed": "lookup"} | ({"embed.as_linear": "head"} if tied else {})
    wanted = loss_grams(OneHot(tied), BATCHES, paths=[*paths.values()])
    assert found.keys() == paths.keys()
    for path, linear_path in paths.items():
        own, other = found[path], wanted[linear_path]
        assert own.input.tokens == other.input.tokens
        close(own.output.matrix, other.output.matrix)
        R = own.input.matrix
        close(np.diag(R[:, 0, 0]) if R.ndim == 3 else R, other.input.matrix)


def close(A: Float64, B: Float64) -> None:
    assert np.abs(A - B).max() <= tolerance(B, B.shape)


EXPERTS = 3


class Stack(nn.Module):
    """A linear layer per expert, as mlx-lm's SwitchLinear has them."""

    def __init__(self, rng: np.random.Generator, out: int, inner: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.weight = gaussian(rng, EXPERTS, out, inner)
        self.num_experts, self.output_dims, self.input_dims = EXPERTS, out, inner

    def __call__(self, x: mx.array, indices: mx.array, sorted_indices: bool = False) -> mx.array:
        return mx.gather_mm(
            x, self.weight.swapaxes(-1, -2), rhs_indices=indices, sorted_indices=sorted_indices
        )


class Mixture(Model):
    """Two experts of three for every token; ``sort`` brings equal experts together."""

    def __init__(self, sort: bool = False) -> None:
        super().__init__()
        rng = np.random.default_rng(5)
        self.up, self.down = Stack(rng, HIDDEN, WIDTH), Stack(rng, HIDDEN, HIDDEN)
        self.sort = sort

    def __call__(self, tokens: mx.array) -> mx.array:
        y: mx.array = self.head(self.mixed(self.embed(tokens), routes(tokens)).sum(axis=-2))
        return y

    def mixed(self, x: mx.array, routes: mx.array) -> mx.array:
        if not self.sort:
            inner = mx.tanh(self.up(x[..., None, None, :], routes))
            return self.down(inner, routes).squeeze(-2)
        order = mx.argsort(routes.flatten())
        rows = x.reshape(-1, 1, WIDTH)[order // 2]
        chosen = routes.flatten()[order]
        inner = mx.tanh(self.up(rows, chosen, sorted_indices=True))
        y = self.down(inner, chosen, sorted_indices=True)[mx.argsort(order)]
        return y.reshape(*routes.shape, HIDDEN)


class Masked(Mixture):
    """The same, every expert run on every token, its output masked."""

    def __init__(self) -> None:
        super().__init__()
        self.ups = [linear_from(W, None) for W in self.up.weight]
        self.downs = [linear_from(W, None) for W in self.down.weight]

    def mixed(self, x: mx.array, routes: mx.array) -> mx.array:
        found = []
        for e, (up, down) in enumerate(zip(self.ups, self.downs, strict=True)):
            mask = (routes == e).any(axis=-1, keepdims=True)
            found.append(down(mx.tanh(up(mask * x) * mask)) * mask)
        return mx.stack(found, axis=-2)


def routes(tokens: mx.array) -> mx.array:
    """Expert 0, and another one."""
    first = mx.zeros_like(tokens)
    return mx.stack([first, mx.where(tokens < 3, first + 1, first + 2)], axis=-1)


@pytest.mark.parametrize("sort", [False, True])
def test_experts_have_grams_of_their_own(sort: bool) -> None:
    batches = [tokens(2, 5), tokens(3, 4, seed=1)]
    found = loss_grams(Mixture(sort), batches, paths=["up", "down"])
    singles = [f"{name}s.{e}" for name in ("up", "down") for e in range(EXPERTS)]
    wanted = loss_grams(Masked(), batches, paths=singles)
    everything = mx.concatenate([b.flatten() for b in batches])
    counts = [int((routes(everything) == e).sum()) for e in range(EXPERTS)]
    assert min(counts) > 0
    for path in singles:
        name, _, e = path.partition("s.")
        own, other = found[f"{name}.{e}"], wanted[path]
        assert own.input.tokens == counts[int(e)]
        close(own.output.matrix, other.output.matrix)
        sums = (gram.matrix * gram.tokens for gram in (own.input, other.input))
        close(*sums)


def test_experts_that_would_take_too_much_room_share_their_grams() -> None:
    apart = loss_grams(Mixture(), BATCHES, paths=["up"], widest=100)
    narrow = HIDDEN + 1  # three of HIDDEN take more than one of this
    shared = loss_grams(Mixture(), BATCHES, paths=["up"], widest=narrow)
    assert shared.keys() == {"up"}
    assert apart.keys() == {f"up.{e}" for e in range(EXPERTS)}
    close(shared["up"].output.matrix, sum_of(g.output.matrix for g in apart.values()))
    sums = (g.input.matrix * g.input.tokens for g in apart.values())
    close(shared["up"].input.matrix * shared["up"].input.tokens, sum_of(sums))


def sum_of(matrices: Iterable[Float64]) -> Float64:
    found: Float64 = np.sum([*matrices], axis=0)
    return found
