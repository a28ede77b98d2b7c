import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest
from mlx.utils import tree_flatten
from plastic_core import RankLayer
from plastic_core.files import FormatError
from plastic_core.testing import bits
from plastic_runtime import Generations, PlasticityManager, ResumableBatches

WHO = {"base": "abc", "steps": 9}


class Run:
    """One plastic layer in training, on noise from MLX's global random state."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        U, S, Vh = (mx.array(rng.standard_normal(s), mx.float32) for s in ((5, 3), (3,), (3, 4)))
        self.model = RankLayer(U, S, Vh)
        self.optimizer = optim.AdamW(optim.cosine_decay(1e-2, 20))
        self.manager = PlasticityManager(self.model, self.optimizer)

    @property
    def parts(self) -> tuple[RankLayer, optim.Optimizer, PlasticityManager]:
        return self.model, self.optimizer, self.manager

    def train(self, steps: int) -> None:
        def loss() -> mx.array:
            return mx.square(self.model(mx.random.normal((8, 4))) - 1).mean()

        step = nn.value_and_grad(self.model, loss)
        for _ in range(steps):
            self.optimizer.update(self.model, step()[1])
            mx.eval(self.model.parameters(), self.optimizer.state)  # type: ignore[no-untyped-call]

    def picture(self) -> object:
        trees = self.model.parameters(), self.optimizer.state  # type: ignore[no-untyped-call]
        named: Any = tree_flatten(trees)
        return {name: bits(a.reshape(-1)) for name, a in named}, self.manager.ranks()


def test_the_newest_generation_goes_on_with_the_same_bits(tmp_path: Path) -> None:
    whole, generations = Run(), Generations(tmp_path / "g", WHO)
    mx.random.seed(7)
    whole.train(2)
    generations.save(2, *whole.parts)
    whole.train(1)
    whole.manager.shrink("", 1)
    generations.save(3, *whole.parts, extra={"note": [1, None, "x"]})
    whole.manager.wake("")
    whole.train(3)
    mx.random.seed(99)
    resumed = Run()
    assert Generations(tmp_path / "g", WHO).load(*resumed.parts) == (3, {"note": [1, None, "x"]})
    resumed.manager.wake("")
    resumed.train(3)
    assert resumed.picture() == whole.picture()


def test_only_the_newest_stay_and_nothing_half_written(tmp_path: Path) -> None:
    run, generations = Run(), Generations(tmp_path, WHO, keep=2)
    for step in (1, 5, 1000, 12):
        generations.save(step, *run.parts)
    assert generations.steps() == [12, 1000]
    (tmp_path / ".step-000000013.safetensors.ab12.tmp").write_bytes(b"half")
    (tmp_path / "mine.txt").write_text("stays")
    Generations(tmp_path, WHO, keep=3).save(2, *run.parts)  # as if killed before the oldest went
    assert generations.load(*run.parts) == (1000, {})
    names = ["mine.txt", "step-000000012.safetensors", "step-000001000.safetensors"]
    assert sorted(os.listdir(tmp_path)) == names


def test_a_run_without_a_generation_begins(tmp_path: Path) -> None:
    assert Generations(tmp_path / "none", WHO).load(*Run().parts) is None


def test_a_run_of_another_identity_is_refused_by_what_differs(tmp_path: Path) -> None:
    run = Run()
    Generations(tmp_path, WHO).save(4, *run.parts)
    before = run.picture()
    other = Generations(tmp_path, {"base": "xyz", "steps": 9, "seed": 1})
    with pytest.raises(FormatError, match=r"had base 'abc', this one has 'xyz'; start it"):
        other.load(*run.parts)
    assert run.picture() == before


@pytest.mark.parametrize("place", [0.2, 0.5, 0.9])
def test_one_flipped_bit_is_found_and_the_way_back_named(tmp_path: Path, place: float) -> None:
    run, generations = Run(), Generations(tmp_path, WHO)
    generations.save(3, *run.parts)
    generations.save(6, *run.parts)
    file = generations.path(6)
    content = bytearray(file.read_bytes())
    content[int(place * len(content))] ^= 4
    file.write_bytes(content)
    before = run.picture()
    with pytest.raises(FormatError, match=r"step-000000006") as refused:
        generations.load(*run.parts)
    assert refused.value.__notes__[-1] == "delete it to go on from step 3"
    assert run.picture() == before
    file.unlink()
    assert generations.load(*run.parts) == (3, {})


def test_a_run_that_is_not_finite_costs_no_generation(tmp_path: Path) -> None:
    run, generations = Run(), Generations(tmp_path, WHO, keep=1)
    generations.save(3, *run.parts)
    good = generations.path(3).read_bytes()
    run.model.S = run.model.S * mx.array(np.nan)
    with pytest.raises(ValueError, match="NaN or infinities in 'S'; nothing was saved"):
        generations.save(4, *run.parts)
    assert os.listdir(tmp_path) == [generations.path(3).name]
    assert generations.path(3).read_bytes() == good


def iterate(
    dataset: list[int], batch_size: int, max_seq_length: int, loop: bool = False, seed: Any = None
) -> Iterator[tuple[int, ...]]:
    """What mlx-lm's function does with the order: one epoch, from its seed."""
    assert not loop
    order = np.random.default_rng(seed)
    starts = range(0, len(dataset) - batch_size + 1, batch_size)
    for i in order.permutation(len(starts)):
        yield tuple(dataset[i * batch_size : (i + 1) * batch_size])


@pytest.mark.parametrize("position", [0, 1, 4, 5, 7, 23])
def test_batches_go_on_from_any_position(position: int) -> None:
    data = list(range(11))

    def taken(start: int, count: int) -> list[tuple[int, ...]]:
        batches = ResumableBatches(iterate, seed=3, position=start)
        return list(islice(batches(data, 2, 8, loop=True), count))

    assert taken(position, 12) == taken(0, position + 12)[position:]


def test_every_epoch_has_every_batch_in_an_order_of_its_own() -> None:
    batches = ResumableBatches(iterate, seed=3)(list(range(40)), 2, 8, loop=True)
    epochs = [list(islice(batches, 20)) for _ in range(3)]
    assert len({tuple(sorted(epoch)) for epoch in epochs}) == 1
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_a_validation_has_one_order() -> None:
    batches = ResumableBatches(iterate, seed=3, position=5)
    assert list(batches(list(range(40)), 2, 8)) == list(batches(list(range(40)), 2, 8))
    assert len(list(batches(list(range(40)), 2, 8))) == 20


def test_a_position_is_not_negative_and_one_generation_is_kept() -> None:
    with pytest.raises(ValueError, match="`position` must not be negative, got -1"):
        ResumableBatches(iterate, position=-1)
    with pytest.raises(ValueError, match="`keep` must be at least 1, got 0"):
        Generations("x", WHO, keep=0)
