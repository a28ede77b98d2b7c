"""Train, grow, shrink, wake and resume, on the trained checkpoint in mlx-lm's own model class."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx import optimizers
from mlx.utils import tree_flatten, tree_unflatten
from plastic_core import RankLayer, projections
from plastic_export import load_model, load_tokenizer, text_windows
from plastic_runtime import PlasticityManager, load_run, save_run

RANK = 3


@dataclass
class Run:
    """A frozen model with a plastic part on the MLP of its last block, and its optimizer."""

    model: nn.Module
    optimizer: optimizers.Optimizer
    manager: PlasticityManager
    windows: mx.array

    def loss(self, windows: mx.array) -> mx.array:
        logits = self.model(windows[:, :-1])
        return nn.losses.cross_entropy(logits, windows[:, 1:], reduction="mean")

    def train(self, steps: range) -> None:
        gradient = nn.value_and_grad(self.model, self.loss)
        for step in steps:
            _, grads = gradient(self.windows[step % 4][None])
            self.optimizer.update(self.model, grads)
            mx.eval(self.model.parameters(), self.optimizer.state)

    def change(self) -> None:
        """Grow one layer, shrink another, and wake what the shrink parked."""
        up, down = sorted(self.manager.ranks())
        self.manager.grow(up, 2)
        self.manager.shrink(down, 1)

    def bits(self) -> dict[str, bytes]:
        """Every trainable weight and every number of the optimizer's state, as raw bytes."""
        trees = {"model": self.model.trainable_parameters(), "optimizer": self.optimizer.state}
        return {name: bytes(memoryview(a)) for name, a in tree_flatten(trees)}


@pytest.fixture
def start(checkpoint: Path, calibration: Path) -> Callable[[], Run]:
    windows = text_windows(load_tokenizer(checkpoint), calibration.read_text(), length=32, limit=5)

    def build() -> Run:
        model = load_model(checkpoint)
        model.set_dtype(mx.float32)
        model.freeze()
        chosen = [
            p for p in projections(model) if p.path.endswith(("3.mlp.up_proj", "3.mlp.down_proj"))
        ]
        layers = [
            (p.path, RankLayer.from_linear(p.module, RANK, keep_base=True, key=mx.random.key(i)))
            for i, p in enumerate(chosen)
        ]
        model.update_modules(tree_unflatten(layers))
        optimizer = optimizers.AdamW(learning_rate=3e-3)
        run = Run(model, optimizer, None, windows)  # type: ignore[arg-type]
        run.manager = PlasticityManager(model, optimizer, loss=lambda: run.loss(windows[4][None]))
        return run

    return build


def test_only_the_plastic_part_trains_and_it_learns(start: Callable[[], Run]) -> None:
    run = start()
    frozen = run.model.model.layers[3].mlp.up_proj.base.weight
    before = bytes(memoryview(frozen))
    first = float(run.loss(run.windows[:4]))
    run.train(range(12))
    assert float(run.loss(run.windows[:4])) < first
    assert bytes(memoryview(run.model.model.layers[3].mlp.up_proj.base.weight)) == before


def test_growing_leaves_every_output_as_it_was(start: Callable[[], Run]) -> None:
    run = start()
    run.train(range(3))
    before = run.model(run.windows[:1])
    path = sorted(run.manager.ranks())[0]
    run.manager.grow(path, 4)
    assert run.manager.ranks()[path] == RANK + 4
    after = run.model(run.windows[:1])
    slack = 8 * np.finfo(np.float32).eps * float(mx.abs(before).max())
    assert float(mx.abs(after - before).max()) <= slack


def test_a_shrink_that_hurts_is_woken(start: Callable[[], Run]) -> None:
    run = start()
    run.train(range(16))
    down = sorted(run.manager.ranks())[0]
    held = run.windows[:4]
    for _ in range(2):
        run.manager.step(float(run.loss(held)))
    run.manager.shrink(down, 0)
    assert run.manager.bytes_asleep > 0
    actions = []
    for _ in range(run.manager.settings.guard + run.manager.settings.window):
        actions += [event.action for event in run.manager.step(float(run.loss(held)))]
    assert "wake" in actions
    assert run.manager.ranks()[down] > 0


def test_a_resumed_run_equals_the_undisturbed_one_bit_for_bit(
    start: Callable[[], Run], tmp_path: Path
) -> None:
    whole = start()
    whole.train(range(4))
    whole.change()
    whole.train(range(4, 6))
    save_run(tmp_path / "run.safetensors", whole.model, whole.optimizer, whole.manager)
    resumed = start()
    load_run(tmp_path / "run.safetensors", resumed.model, resumed.optimizer, resumed.manager)
    for run in (whole, resumed):
        run.train(range(6, 9))
        run.manager.step(9.0)  # far worse than before: what sleeps wakes or the guard goes on
        run.manager.grow(sorted(run.manager.ranks())[1], 1)
        run.train(range(9, 11))
    assert whole.manager.ranks() == resumed.manager.ranks()
    assert whole.bits() == resumed.bits()
    assert whole.manager.state() == resumed.manager.state()
    assert list(tmp_path.iterdir()) == [tmp_path / "run.safetensors"]
