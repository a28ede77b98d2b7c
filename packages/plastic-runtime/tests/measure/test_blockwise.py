"""Grams measured block by block, into a file: the same as in one pass, whatever happens."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map
from plastic_core.linalg import on_cpu
from plastic_core.testing import bits, tolerance
from plastic_runtime import GramFile, LossGrams, loss_grams, measure_grams
from plastic_runtime.measure import blockwise
from plastic_runtime.measure import grams as grams_module
from plastic_runtime.measure.block_chain import BlockChain
from plastic_runtime.measure.gram_file import GramSum, Mark, append_grams
from plastic_runtime.measure.grams import Site
from plastic_runtime.measure.intercept import modules_by_path
from plastic_runtime.measure.numpy_products import NumpyProduct
from plastic_runtime.measure.recorder import LossRecorder, linear_layers
from plastic_runtime.measure.sampled_loss import draws

VOCABULARY, WIDTH, HIDDEN, BLOCKS = 11, 8, 12, 3


def linear(rng: np.random.Generator, out: int, inner: int) -> nn.Linear:
    layer = nn.Linear(inner, out, bias=False)
    layer.weight = mx.array(rng.standard_normal((out, inner)).astype(np.float32) / np.sqrt(inner))
    return layer


class Block(nn.Module):
    """Attention in miniature and a gated layer, each added to what comes in."""

    calls = 0
    fatal = 0  # the call that ends the process

    def __init__(self, rng: np.random.Generator) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.norm = nn.RMSNorm(WIDTH)
        self.q, self.k, self.v, self.o = (linear(rng, WIDTH, WIDTH) for _ in range(4))
        self.gate, self.up = linear(rng, HIDDEN, WIDTH), linear(rng, HIDDEN, WIDTH)
        self.down = linear(rng, WIDTH, HIDDEN)

    def __call__(self, x: mx.array, mask: mx.array, extra: mx.array | None = None) -> mx.array:
        Block.calls += 1
        if Block.calls == Block.fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        h = self.norm(x)
        scores = self.q(h) @ self.k(h).swapaxes(-1, -2) / WIDTH**0.5
        x = x + self.o(mx.softmax(mx.where(mask, scores, -1e9), axis=-1) @ self.v(h))
        h = self.norm(x)
        y: mx.array = x + self.down(nn.silu(self.gate(h)) * self.up(h))
        return y if extra is None else y + extra


class Model(nn.Module):
    """A small language model; odd blocks look back two tokens, the others without limit."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        rng = np.random.default_rng(seed)
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.embed.weight = mx.array(rng.standard_normal((VOCABULARY, WIDTH)).astype(np.float32))
        self.layers: list[nn.Module] = [Block(rng) for _ in range(BLOCKS)]
        self.before = linear(rng, WIDTH, WIDTH)
        self.head = linear(rng, VOCABULARY, WIDTH)

    def __call__(self, tokens: mx.array) -> mx.array:
        y: mx.array = self.head(self.through(self.embed(tokens), tokens))
        return y

    def through(self, h: mx.array, tokens: mx.array) -> mx.array:
        for number, layer in enumerate(self.layers):
            h = layer(h, mask(tokens, number))
        return h


def mask(tokens: mx.array, number: int) -> mx.array:
    i = mx.arange(tokens.shape[1])
    seen = i[:, None] >= i[None]
    return seen & (i[:, None] < i[None] + 2) if number % 2 else seen


class WithTokens(Model):
    """Every block is given something of the tokens themselves."""

    def through(self, h: mx.array, tokens: mx.array) -> mx.array:
        embedded = self.embed(tokens)
        for number, layer in enumerate(self.layers):
            h = layer(h, mask(tokens, number), extra=embedded * number)
        return h


class Half(Model):
    def __init__(self) -> None:
        super().__init__()
        self.set_dtype(mx.bfloat16)


class Early(Model):
    """A layer that is wanted runs before the blocks."""

    def __call__(self, tokens: mx.array) -> mx.array:
        h = self.before(self.embed(tokens))
        y: mx.array = self.head(self.through(h, tokens))
        return y


class ByName(Model):
    """Blocks are given all by name."""

    def through(self, h: mx.array, tokens: mx.array) -> mx.array:
        for number, layer in enumerate(self.layers):
            h = layer(x=h, mask=mask(tokens, number))
        return h


class Tied(Model):
    """The head is the embedding, and what enters the blocks is scaled."""

    def __call__(self, tokens: mx.array) -> mx.array:
        y: mx.array = self.embed.as_linear(self.through(3.0 * self.embed(tokens), tokens))
        return y


CHAINS = [Model, WithTokens, Half, Early, ByName]


class Scaled(Model):
    """Something happens between the blocks."""

    def through(self, h: mx.array, tokens: mx.array) -> mx.array:
        for number, layer in enumerate(self.layers):
            h = 0.9 * layer(h, mask(tokens, number))
        return h


class Skipping(Model):
    """Blocks are given what the first one returned."""

    def through(self, h: mx.array, tokens: mx.array) -> mx.array:
        first = None
        for number, layer in enumerate(self.layers):
            h = layer(h, mask(tokens, number), extra=first)
            first = h if first is None else first
        return h


class Collecting(Model):
    """The head sees what every block returned."""

    def through(self, h: mx.array, tokens: mx.array) -> mx.array:
        found = []
        for number, layer in enumerate(self.layers):
            h = layer(h, mask(tokens, number))
            found.append(h)
        total: mx.array = sum(found[1:], found[0])
        return total


class Reversed(Model):
    """The blocks run in another order."""

    def through(self, h: mx.array, tokens: mx.array) -> mx.array:
        for number, layer in enumerate(self.layers[::-1]):
            h = layer(h, mask(tokens, number))
        return h


class Paired(nn.Module):
    """A block that returns two things."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.block = block

    def __call__(self, x: mx.array, mask: mx.array) -> tuple[mx.array, mx.array]:
        return self.block(x, mask), mask


class Pairs(Model):
    def __init__(self) -> None:
        super().__init__()
        self.layers = [Paired(layer) for layer in self.layers]

    def through(self, h: mx.array, tokens: mx.array) -> mx.array:
        for number, layer in enumerate(self.layers):
            h, _ = layer(h, mask(tokens, number))
        return h


class Shared(Model):
    """Two blocks have a layer in common."""

    def __init__(self) -> None:
        super().__init__()
        first, last = self.layers[0], self.layers[-1]
        assert isinstance(first, Block)
        assert isinstance(last, Block)
        last.q = first.q


class Plain(nn.Module):
    """Its layers are linear ones."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        rng = np.random.default_rng(0)
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.embed.weight = mx.array(rng.standard_normal((VOCABULARY, WIDTH)).astype(np.float32))
        self.layers = [linear(rng, WIDTH, WIDTH), linear(rng, VOCABULARY, WIDTH)]

    def __call__(self, tokens: mx.array) -> mx.array:
        y: mx.array = self.layers[1](mx.tanh(self.layers[0](self.embed(tokens))))
        return y


class Remembering(Model):
    """Every block leaves something behind, without which the next one cannot run."""

    def __init__(self) -> None:
        super().__init__()
        rng = np.random.default_rng(0)
        self.layers = [Leaving(rng) for _ in range(BLOCKS)]

    def through(self, h: mx.array, tokens: mx.array) -> mx.array:
        memory = [h]
        for number, layer in enumerate(self.layers):
            h = layer(h, mask(tokens, number), extra=memory.pop(), memory=memory)
        return h


class Leaving(Block):
    def __call__(self, h: mx.array, *args: Any, memory: list[mx.array], **options: Any) -> mx.array:
        y = super().__call__(h, *args, **options)
        memory.append(mx.tanh(y))
        return y


OTHERS = [Scaled, Skipping, Collecting, Reversed, Pairs, Shared, Plain, Remembering]


def tokens(*shape: int, seed: int = 0) -> mx.array:
    return mx.array(np.random.default_rng(seed).integers(0, VOCABULARY, shape))


BATCHES = [tokens(2, 6), tokens(3, 6, seed=1), tokens(1, 4, seed=2)]


def chain_of(model: nn.Module) -> BlockChain | None:
    linears, wanted = linear_layers(model, None)
    return BlockChain.of(model, linears, wanted, BATCHES[0][:1])


def assert_close(grams: GramFile, wanted: dict[str, LossGrams]) -> None:
    """Equal up to the rounding of float32."""
    assert grams.keys() == wanted.keys()
    for path in grams:
        for own, other in zip(grams[path], wanted[path], strict=True):
            assert own.tokens == other.tokens
            assert own.matrix.dtype == np.float64
            limit = tolerance(other.matrix, other.matrix.shape)
            assert np.abs(own.matrix - other.matrix).max() <= limit, path


def picture(model: nn.Module) -> object:
    """Everything of a model that could change: modules, their classes, parameters."""
    arrays = dict(tree_flatten(model.parameters()))  # type: ignore[no-untyped-call]
    modules = [(path, id(m), type(m)) for path, m in modules_by_path(model).items()]
    return modules, [(name, id(a), bits(a)) for name, a in arrays.items()]


def measured(file: Path, model: nn.Module | None = None, **options: Any) -> bytes:
    """The bytes of the file."""
    measure_grams(model or Model(), BATCHES, file, **options).close()
    assert list(file.parent.iterdir()) == [file]
    return file.read_bytes()


@pytest.mark.parametrize("kind", CHAINS)
@pytest.mark.parametrize("seed", [0, 3])
def test_block_by_block_is_as_in_one_pass(kind: type[Model], seed: int, tmp_path: Path) -> None:
    model = kind()
    before = picture(model)
    assert chain_of(model) is not None
    with measure_grams(model, BATCHES, tmp_path / "grams", seed=seed) as grams:
        assert picture(model) == before
        assert_close(grams, loss_grams(model, BATCHES, seed=seed))
    assert list(tmp_path.iterdir()) == [tmp_path / "grams"]


@pytest.mark.parametrize("kind", [Model, Half, Early, Tied, Plain])
@pytest.mark.parametrize("count", [1, 2])
def test_gradients_may_be_taken_of_some_batches(
    kind: type[nn.Module], count: int, tmp_path: Path
) -> None:
    model = kind()
    paths = [path for path, _ in linear_layers(model, None)[0].items() if path != "before"]
    paths += ["before"] if kind is Early else []
    linears, wanted = linear_layers(model, paths)
    some = LossRecorder(linears, wanted)
    pulled = {1: [1], 2: [0, 2]}[count]
    labelled = [both for i, both in enumerate(zip(BATCHES, draws(0), strict=False)) if i in pulled]
    some.pull_back_model(model, labelled)
    of_some, of_all = some.grams(), loss_grams(model, BATCHES, paths=paths)
    wanted_grams = {p: LossGrams(of_all[p].input, of_some[p].output) for p in of_all}
    with measure_grams(model, BATCHES, tmp_path / "grams", paths=paths, gradients=count) as grams:
        assert_close(grams, wanted_grams)
    with pytest.raises(ValueError, match=r"had gradients"):
        measure_grams(model, BATCHES, tmp_path / "grams", paths=paths)


@pytest.mark.parametrize("kind", OTHERS)
def test_what_is_no_chain_of_blocks_is_one_block(kind: type[nn.Module], tmp_path: Path) -> None:
    model = kind()
    assert chain_of(model) is None
    with measure_grams(model, BATCHES, tmp_path / "grams") as grams:
        assert_close(grams, loss_grams(model, BATCHES))


class Choosing(Model):
    """Layers after the blocks and within them choose, and so have no gradient."""

    def __init__(self) -> None:
        super().__init__()
        rng = np.random.default_rng(0)
        self.layers = [ChoosingBlock(rng) for _ in range(BLOCKS)]

    def through(self, h: mx.array, tokens: mx.array) -> mx.array:
        h = super().through(h, tokens)
        return h * mx.stop_gradient(self.before(h) > 0)


class ChoosingBlock(Block):
    def __init__(self, rng: np.random.Generator) -> None:
        super().__init__(rng)
        self.choice = linear(rng, WIDTH, WIDTH)

    def __call__(self, x: mx.array, *args: Any, **options: Any) -> mx.array:
        return super().__call__(x * mx.stop_gradient(self.choice(x) > 0), *args, **options)


@pytest.mark.parametrize("path", ["before", "layers.1.choice"])
def test_what_no_gradient_reaches_is_refused_or_left_out(path: str, tmp_path: Path) -> None:
    model, file, paths = Choosing(), tmp_path / "grams", ["head", "layers.1.v"]
    assert chain_of(model) is not None
    with pytest.raises(ValueError, match=f"no gradient reaches layer '{path}'"):
        measure_grams(model, BATCHES, file, paths=[*paths, path])
    with measure_grams(model, BATCHES, file, paths=[*paths, path], needed=False) as grams:
        assert_close(grams, loss_grams(model, BATCHES, paths=paths))


@pytest.mark.parametrize("paths", [["layers.1.q"], ["head"], ["layers.0.down", "layers.2.v"]])
def test_only_the_paths_asked_for_are_measured(paths: list[str], tmp_path: Path) -> None:
    with measure_grams(Model(), BATCHES, tmp_path / "grams", paths=paths) as grams:
        assert_close(grams, loss_grams(Model(), BATCHES, paths=paths))


class Twice(Model):
    """A layer runs before the blocks and after them."""

    def __call__(self, tokens: mx.array) -> mx.array:
        h = self.through(self.before(self.embed(tokens)), tokens)
        y: mx.array = self.head(self.before(h))
        return y


@pytest.mark.parametrize("kind", [Early, Twice])
def test_a_layer_before_the_blocks_is_no_hindrance_unless_wanted(
    kind: type[Model], tmp_path: Path
) -> None:
    model, paths = kind(), ["layers.0.q", "head"]
    linears, _ = linear_layers(model, None)
    assert BlockChain.of(model, linears, paths, BATCHES[0]) is not None
    with measure_grams(model, BATCHES, tmp_path / "grams", paths=paths) as grams:
        assert_close(grams, loss_grams(model, BATCHES, paths=paths))


class Mixing(Model):
    """Positions are mixed after the last block."""

    def through(self, h: mx.array, tokens: mx.array) -> mx.array:
        return mx.cumsum(super().through(h, tokens), axis=1)


class Skipped(Model):
    """The head sees the embedding itself."""

    def __call__(self, tokens: mx.array) -> mx.array:
        embedded = self.embed(tokens)
        y: mx.array = self.head(self.through(embedded, tokens) + embedded)
        return y


@pytest.mark.parametrize(
    ("kind", "is_chain"),
    [(Model, True), (Tied, True), (Early, True), (WithTokens, False), (Skipped, False)],
)
def test_embeddings_are_measured_last(kind: type[Model], is_chain: bool, tmp_path: Path) -> None:
    model, paths = kind(), ["embed", "before", "layers.0.q", "layers.2.down"]
    linears, wanted = linear_layers(model, paths)
    assert (BlockChain.of(model, linears, wanted, BATCHES[0][:1]) is not None) == is_chain
    before = picture(model)
    with measure_grams(model, BATCHES, tmp_path / "grams", paths=paths) as grams:
        assert_close(grams, loss_grams(model, BATCHES, paths=paths))
        assert ("embed.as_linear" in grams) == (kind is Tied)
        assert grams["embed"].input.matrix.shape == (VOCABULARY, 1, 1)
    assert picture(model) == before


def test_blocks_along_the_diagonal_come_back_from_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grams_module, "block_side", lambda size: 4)
    with measure_grams(Model(), BATCHES, tmp_path / "grams", widest=WIDTH) as grams:
        assert_close(grams, loss_grams(Model(), BATCHES, widest=WIDTH))
        assert grams["layers.0.down"].input.matrix.shape == (HIDDEN // 4, 4, 4)


@pytest.mark.parametrize("kind", [Model, Tied, Plain, Mixing])
@pytest.mark.parametrize("positions", [1, 5, 9])
def test_a_few_logits_at_a_time_give_the_grams_of_all(
    kind: type[nn.Module], positions: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blockwise, "LOGITS", positions * VOCABULARY)
    chain = chain_of(kind())
    assert (chain is not None and chain.is_pointwise) == (kind in (Model, Tied))
    with measure_grams(kind(), BATCHES, tmp_path / "grams") as grams:
        assert_close(grams, loss_grams(kind(), BATCHES))


def test_a_block_is_released_when_it_was_read_and_whenever_it_was_run(tmp_path: Path) -> None:
    released: list[str] = []
    measured(tmp_path / "grams", release=released.append)
    up = [f"layers.{i}" for i in range(BLOCKS)]
    assert released == [*4 * up, *reversed(up)]


def test_what_is_released_may_be_read_anew(tmp_path: Path) -> None:
    model, whole = Model(), measured(tmp_path / "grams")
    spare = modules_by_path(Model())

    def release(path: str) -> None:
        modules_by_path(model)[path].update(tree_map(mx.array, spare[path].parameters()))

    (tmp_path / "grams").unlink()
    assert measured(tmp_path / "grams", model, release=release) == whole


def test_wide_sides_are_kept_in_blocks_and_those_of_gradients_as_diagonals(tmp_path: Path) -> None:
    with measure_grams(Model(), BATCHES, tmp_path / "grams", widest=WIDTH) as grams:
        assert_close(grams, loss_grams(Model(), BATCHES, widest=WIDTH))
        assert grams["layers.0.q"].input.matrix.shape == (WIDTH, WIDTH)
        assert grams["layers.0.down"].input.matrix.shape == (HIDDEN, 1, 1)
        assert grams["head"].output.matrix.shape == (VOCABULARY, 1, 1)
    with pytest.raises(ValueError, match=r"had widest .*; delete it"):
        measure_grams(Model(), BATCHES, tmp_path / "grams")


def test_each_block_is_run_twice_per_batch_and_four_times_for_trial(tmp_path: Path) -> None:
    Block.calls = 0
    measured(tmp_path / "grams")
    assert Block.calls == BLOCKS * (2 * len(BATCHES) + 4)


class Bounded(Block):
    """What the last layer computes decides on its gradient."""

    def __call__(self, x: mx.array, *args: Any, **options: Any) -> mx.array:
        return nn.relu(super().__call__(x, *args, **options))


@pytest.mark.skipif(not on_cpu(), reason="MLX computes nothing that is not needed")
@pytest.mark.parametrize(("kind", "spared"), [(Block, True), (Bounded, False)])
def test_a_product_that_nothing_depends_on_is_left_out(
    kind: type[Block], spared: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def model() -> Model:
        found, rng = Model(), np.random.default_rng(0)
        found.layers = [kind(rng) for _ in range(BLOCKS)]
        return found

    made: list[bool] = []
    own = NumpyProduct.__call__

    def product(self: NumpyProduct, x: mx.array, *, forwards: bool = True) -> mx.array:
        made.append(forwards)
        return own(self, x, forwards=forwards)

    monkeypatch.setattr(NumpyProduct, "__call__", product)
    found = measured(tmp_path / "grams", model())
    assert made.count(False) == BLOCKS * (1 + spared * len(BATCHES))
    monkeypatch.setattr(LossRecorder, "spare", lambda *args: None)
    (tmp_path / "grams").unlink()
    assert measured(tmp_path / "grams", model()) == found


def test_one_block_is_in_memory_at_a_time(tmp_path: Path) -> None:
    written: list[set[str]] = []
    file = tmp_path / "grams"

    def track(items: Sequence[Any], description: str) -> Iterable[Any]:
        for item in items:
            state = json.loads((file.with_name("grams.parts") / "state.json").read_text())
            side = "outputs" if "backwards" in description else "sites"
            written.append({path.partition(".q")[0] for path in state[side] if ".q" in path})
            yield item

    measured(file, track=track)
    blocks = [f"layers.{number}" for number in range(BLOCKS)]
    assert written[:BLOCKS] == [set(), {blocks[0]}, {blocks[0], blocks[1]}]
    assert written[BLOCKS:-BLOCKS] == [set(blocks)] * len(BATCHES)
    assert written[-BLOCKS:] == [set(), {blocks[2]}, {blocks[2], blocks[1]}]


def test_sums_are_let_go_with_their_block(tmp_path: Path) -> None:
    alive: list[int] = []

    def track(items: Sequence[Any], description: str) -> Iterable[Any]:
        for item in items:
            yield item
            alive.append(sum(isinstance(found, Site) for found in gc.get_objects()))

    gc.collect()
    gc.disable()
    try:
        measured(tmp_path / "grams", track=track)
    finally:
        gc.enable()
    assert alive[-BLOCKS:] == [0] * BLOCKS


def test_layers_with_one_input_follow_each_other_and_share_it(tmp_path: Path) -> None:
    with measure_grams(Model(), BATCHES, tmp_path / "grams") as grams:
        assert len(grams) == len(list(grams)) == 7 * BLOCKS + 1
        seen: list[Any] = []
        for both in grams.values():
            if not seen or both.input is not seen[-1]:
                seen.append(both.input)
        assert len(seen) == len({id(gram) for gram in seen}) == 4 * BLOCKS + 1
        assert grams["layers.1.q"].input is grams["layers.1.v"].input
        assert "layers.1.q" in grams
        assert "layers.1" not in grams
        with pytest.raises(KeyError):
            grams["layers.1"]


def test_numpy_reads_the_file(tmp_path: Path) -> None:
    file = tmp_path / "grams.npz"
    with measure_grams(Model(), BATCHES, file) as grams, np.load(file) as content:
        header = json.loads(content["header"].tobytes())
        assert header["version"] == 3
        C = grams["head"].output.matrix
        assert np.array_equal(content["output.head"], C[np.tril_indices(VOCABULARY)])
        assert content["input.head"].dtype == np.float32
        assert len(content.files) == 1 + (4 + 7) * BLOCKS + 2


def test_equal_runs_give_equal_bytes_and_a_finished_one_is_not_repeated(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
    first = measured(tmp_path / "a" / "grams")
    assert measured(tmp_path / "b" / "grams") == first
    Block.calls = 0
    assert measured(tmp_path / "a" / "grams") == first
    assert Block.calls == 0


@pytest.mark.parametrize("threads", [2, 4])
def test_the_bytes_are_the_same_for_any_number_of_threads(threads: int, tmp_path: Path) -> None:
    for count in (1, threads):
        environment = os.environ | {"OPENBLAS_NUM_THREADS": str(count)}
        file = tmp_path / f"of {count}"
        subprocess.run(
            [sys.executable, __file__, str(file), "0", "wide"], check=True, env=environment
        )
    assert file.read_bytes() == (tmp_path / "of 1").read_bytes()


@pytest.mark.parametrize("call", [10, 18, 24])
def test_a_run_that_was_killed_goes_on_bit_for_bit(call: int, tmp_path: Path) -> None:
    cut, whole = tmp_path / "cut", tmp_path / "whole"
    cut.mkdir()
    whole.mkdir()
    dead = subprocess.run([sys.executable, __file__, str(cut / "grams"), str(call)], check=False)
    assert dead.returncode == -signal.SIGKILL
    assert not (cut / "grams").exists()
    Block.calls = 0
    assert measured(cut / "grams") == measured(whole / "grams")
    # Six calls for trial, three for each block forwards; backwards five, two of them for trial.
    spared = (call - 7) // 3 * 3 if call <= 15 else 9 + (call - 16) // 5 * 5
    assert Block.calls == 60 - spared


@pytest.mark.parametrize("kind", [Model, Plain])
def test_an_interrupted_run_puts_the_model_back(kind: type[nn.Module], tmp_path: Path) -> None:
    def track(items: Sequence[Any], description: str) -> Iterable[Any]:
        yield from items[:2]
        raise KeyboardInterrupt

    model = kind()
    before = picture(model)
    with pytest.raises(KeyboardInterrupt):
        measure_grams(model, BATCHES, tmp_path / "grams", track=track)
    assert picture(model) == before
    left = [path.name for path in tmp_path.iterdir()]
    assert left == (["grams.parts"] if kind is Model else [])  # of one part nothing is finished


def cut_before_the_way_back(items: Sequence[Any], description: str) -> Iterable[Any]:
    if "backwards" in description:
        raise KeyboardInterrupt
    return items


DIFFERENCES: list[tuple[str, int, list[mx.array], dict[str, Any]]] = [
    ("model", 1, BATCHES, {}),
    ("seed", 0, BATCHES, {"seed": 1}),
    ("layers", 0, BATCHES, {"paths": ["head"]}),
    ("text", 0, BATCHES[::-1], {}),
    ("text", 0, BATCHES[:2], {}),
    ("configuration.theta nothing", 0, BATCHES, {"configuration": {"theta": 2.0}}),
]


@pytest.mark.parametrize(("what", "model", "batches", "options"), DIFFERENCES)
def test_the_file_of_another_run_is_refused_and_kept(
    tmp_path: Path, what: str, model: int, batches: list[mx.array], options: dict[str, Any]
) -> None:
    file = tmp_path / "grams"
    before = measured(file)
    with pytest.raises(ValueError, match=f"grams: .* had {what}.*; delete it"):
        measure_grams(Model(model), batches, file, **options)
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(("what", "model", "batches", "options"), DIFFERENCES)
def test_the_parts_of_another_run_are_refused_and_kept(
    tmp_path: Path, what: str, model: int, batches: list[mx.array], options: dict[str, Any]
) -> None:
    file = tmp_path / "grams"
    with pytest.raises(KeyboardInterrupt):
        measure_grams(Model(), BATCHES, file, track=cut_before_the_way_back)
    with pytest.raises(ValueError, match=rf"grams\.parts: .* had {what}.*; delete it"):
        measure_grams(Model(model), batches, file, **options)
    measured(file)


def test_a_folder_of_that_name_loses_the_parts_alone(tmp_path: Path) -> None:
    file, parts = tmp_path / "grams", tmp_path / "grams.parts"
    (parts / "mine").mkdir(parents=True)
    (parts / "mine" / "notes.txt").write_text("mine")
    measure_grams(Model(), BATCHES, file).close()
    assert [path.name for path in parts.iterdir()] == ["mine"]
    assert (parts / "mine" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(("what", "model", "batches", "options"), DIFFERENCES)
def test_the_file_and_the_parts_of_another_run_are_replaced_if_asked(
    tmp_path: Path, what: str, model: int, batches: list[mx.array], options: dict[str, Any]
) -> None:
    file, parts, alone = (tmp_path / name for name in ("grams", "parts", "alone"))
    measured(file)
    with pytest.raises(KeyboardInterrupt):
        measure_grams(Model(), BATCHES, parts, track=cut_before_the_way_back)
    measure_grams(Model(model), batches, alone, **options).close()
    for replaced in (file, parts):
        measure_grams(Model(model), batches, replaced, replace=True, **options).close()
        assert replaced.read_bytes() == alone.read_bytes()
    assert sorted(tmp_path.iterdir()) == sorted([file, parts, alone])


def test_a_file_stays_until_what_replaces_it_is_complete(tmp_path: Path) -> None:
    file = tmp_path / "grams"
    before = measured(file)
    with pytest.raises(KeyboardInterrupt):
        measure_grams(Model(), BATCHES, file, seed=1, replace=True, track=cut_before_the_way_back)
    assert file.read_bytes() == before
    after = measured(file, seed=1, replace=True)
    assert after != before
    assert measured(file, seed=1, replace=True) == after


@pytest.mark.parametrize("damage", ["empty", "truncated", "flipped"])
def test_a_damaged_file_is_replaced_if_asked(tmp_path: Path, damage: str) -> None:
    file = tmp_path / "grams"
    content = measured(file)
    broken = bytearray(content[: {"empty": 0, "truncated": len(content) // 2}.get(damage)])
    if damage == "flipped":
        with zipfile.ZipFile(file) as archive:
            info = archive.getinfo("output.head.npy")
        broken[info.header_offset + info.file_size] ^= 1
    file.write_bytes(broken)
    assert measured(file, replace=True) == content


@pytest.mark.parametrize("name", ["state.json", "kept.2", "gradient.3", "grams.npz"])
@pytest.mark.parametrize("damage", ["cut", "missing"])
def test_damaged_parts_are_refused(tmp_path: Path, name: str, damage: str) -> None:
    file = tmp_path / "grams"
    with pytest.raises(KeyboardInterrupt):
        measure_grams(Model(), BATCHES, file, track=cut_before_the_way_back)
    part = tmp_path / "grams.parts" / name
    if damage == "missing" and name == "state.json":
        return  # nothing counts then, and it begins anew
    part.write_bytes(part.read_bytes()[: -2 if name != "grams.npz" else 10])
    if damage == "missing":
        part.unlink()
    with pytest.raises(ValueError, match=r"grams\.parts: damaged; delete the folder"):
        measure_grams(Model(), BATCHES, file)
    replaced = measured(file, replace=True)
    file.unlink()
    assert measured(file) == replaced


@pytest.mark.parametrize("damage", ["empty", "text", "truncated", "other", "list"])
def test_a_damaged_file_is_refused(tmp_path: Path, damage: str) -> None:
    file = tmp_path / "grams"
    content = measured(file)
    broken = {"empty": b"", "text": b"no archive", "truncated": content[: len(content) // 2]}
    file.write_bytes(broken.get(damage, b""))
    if damage not in broken:
        with file.open("wb") as stream:
            name = "header" if damage == "list" else "something"
            np.savez(stream, **{name: np.frombuffer(b"[]", np.uint8)})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="grams: damaged or no file of Grams"):
        GramFile(file)
    with pytest.raises(ValueError, match="grams: damaged or no file of Grams"):
        measure_grams(Model(), BATCHES, file)


def test_an_altered_gram_is_refused_when_it_is_read(tmp_path: Path) -> None:
    file = tmp_path / "grams"
    content = bytearray(measured(file))
    with zipfile.ZipFile(file) as archive:
        info = archive.getinfo("output.head.npy")
    content[info.header_offset + info.file_size] ^= 1  # well inside the numbers
    file.write_bytes(content)
    with GramFile(file) as grams, pytest.raises(ValueError, match="grams: damaged"):
        grams["head"]


def test_another_layout_is_refused_with_the_remedy(tmp_path: Path) -> None:
    file = tmp_path / "grams"
    header = json.dumps({"version": 2, "made_for": {}}).encode()
    with file.open("wb") as stream:
        np.savez(stream, header=np.frombuffer(header, np.uint8))
    with pytest.raises(ValueError, match=r"layout of version 2, not 3; delete it and calibrate"):
        GramFile(file)


def test_an_archive_goes_on_from_its_mark_whatever_was_added_since(tmp_path: Path) -> None:
    def entry(name: str, size: int) -> GramSum:
        return GramSum(name, np.arange(size * size, dtype=np.float64).reshape(size, size), 3)

    mark: Mark | None = None
    for entries in ([], [entry("a", 1), entry("b", 5)], [b"{}"]):
        earlier, mark = mark, append_grams(tmp_path / "steady", entries, mark)
    for broken in ([entry("c", 9)], []):
        file = tmp_path / "broken"
        file.write_bytes((tmp_path / "steady").read_bytes())
        append_grams(file, broken, earlier)
        with file.open("ab") as stream:
            stream.write(bytes(100))
        assert append_grams(file, [b"{}"], earlier) == mark
        assert file.read_bytes() == (tmp_path / "steady").read_bytes()


def infinite(weight: mx.array) -> mx.array:
    return weight * mx.array(np.inf)


def test_an_activation_that_is_not_finite_names_the_layer(tmp_path: Path) -> None:
    def spoil(model: Model, name: str) -> nn.Module:
        layer = getattr(model.layers[1], name)
        layer.weight = infinite(layer.weight)
        return model

    for name, layer in (("v", "layers.1.o"), ("up", "layers.1.down"), ("norm", "layers.1.q")):
        with pytest.raises(ValueError, match="must be finite") as caught:
            measure_grams(spoil(Model(), name), BATCHES, tmp_path / "grams")
        assert caught.value.__notes__ == [f"while measuring the inputs of layer '{layer}'"]
    with pytest.raises(ValueError, match=r"output of 'layers\.1' must be finite"):
        measure_grams(spoil(Model(), "down"), BATCHES, tmp_path / "grams")
    model = Model()
    model.embed.weight = infinite(model.embed.weight)
    with pytest.raises(ValueError, match=r"input of 'layers\.0'` must be finite"):
        measure_grams(model, BATCHES, tmp_path / "grams")
    assert list(tmp_path.iterdir()) == []


def test_no_batches_and_no_such_layer_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`batches` must hold"):
        measure_grams(Model(), [], tmp_path / "grams")
    with pytest.raises(ValueError, match="`gradients` must be at least 1, got 0"):
        measure_grams(Model(), BATCHES, tmp_path / "grams", gradients=0)
    with pytest.raises(ValueError, match=r"got 'layers\.1'"):
        measure_grams(Model(), BATCHES, tmp_path / "grams", paths=["layers.1"])


if __name__ == "__main__":
    Block.fatal = int(sys.argv[2])
    if sys.argv[3:] == ["wide"]:  # enough for several panels, which BLAS would share out
        WIDTH, HIDDEN, VOCABULARY = 128, 640, 1100
        BATCHES = [tokens(2, 400), tokens(1, 300, seed=1)]
    measure_grams(Model(), BATCHES, sys.argv[1])
