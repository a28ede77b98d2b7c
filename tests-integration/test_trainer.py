"""Ranks change inside mlx-lm's own trainer: compiled, accumulating, checkpointing, quantised."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx import optimizers
from mlx.utils import tree_flatten
from mlx_lm.tuner.trainer import TrainingArgs, iterate_batches, train
from plastic_core import projections
from plastic_export import load_model, load_tokenizer, text_windows
from plastic_runtime import Gauge, PlasticityCallback, PlasticityManager, Schedule, attach

LENGTH = 24
KEYS = ["mlp.up_proj", "mlp.down_proj", "self_attn.v_proj"]


class Changes(PlasticityManager):
    """A manager that grows, shrinks and wakes at the first three validation losses."""

    def step(self, val_loss: float | mx.array) -> list[Any]:
        up, down = sorted(self.ranks())[:2]
        done = len(self.events)
        if done == 0:
            return [self.grow(up, 3)]
        if done == 1:
            return [self.shrink(down, 1)]
        return [self.wake(down)] if done == 2 else []


def data(checkpoint: Path, text: Path) -> list[tuple[list[int], int]]:
    windows = text_windows(load_tokenizer(checkpoint), text.read_text(), length=LENGTH, limit=16)
    return [(row, 0) for row in windows.tolist()]


def probe_loss(model: nn.Module, rows: list[tuple[list[int], int]]) -> Callable[[], mx.array]:
    """The loss on the first two rows."""
    probe = mx.array([row for row, _ in rows[:2]])

    def loss() -> mx.array:
        return nn.losses.cross_entropy(model(probe[:, :-1]), probe[:, 1:], reduction="mean")

    return loss


def train_with(
    manager: PlasticityManager,
    model: nn.Module,
    optimizer: optimizers.Optimizer,
    rows: list[tuple[list[int], int]],
    folder: Path,
    **options: Any,
) -> None:
    """mlx-lm's trainer, which the manager's ranks follow."""
    file = str(folder / "adapters.safetensors")
    args = TrainingArgs(batch_size=2, max_seq_length=LENGTH, adapter_file=file, **options)
    callback = PlasticityCallback(manager, accumulation=args.grad_accumulation_steps)
    train(
        model,
        optimizer,
        rows,
        rows[:4],
        args=args,
        training_callback=callback,
        iterate_batches=callback.between(iterate_batches),
    )


@pytest.mark.parametrize(
    ("accumulation", "bits", "checkpointing"),
    [(1, None, False), (3, None, True), (1, 4, True), (3, 4, False)],
)
def test_growth_shrink_and_waking(
    checkpoint: Path,
    calibration: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    accumulation: int,
    bits: int | None,
    checkpointing: bool,
) -> None:
    model = load_model(checkpoint)
    model.set_dtype(mx.float32)
    kind = type(model.layers[0])
    monkeypatch.setattr(kind, "__call__", kind.__call__)  # mlx-lm replaces it for good
    if bits is not None:
        nn.quantize(model, bits=bits, group_size=32)
    attach(model, 2, keys=KEYS)
    optimizer = optimizers.AdamW(learning_rate=1e-3)
    rows = data(checkpoint, calibration)
    loss = probe_loss(model, rows)
    manager = Changes(model, optimizer, loss=loss)
    before = float(loss())
    train_with(
        manager,
        model,
        optimizer,
        rows,
        tmp_path,
        iters=12,
        val_batches=1,
        steps_per_report=1,
        steps_per_eval=2,
        grad_checkpoint=checkpointing,
        grad_accumulation_steps=accumulation,
    )
    assert [event.action for event in manager.events] == ["grow", "shrink", "wake"]
    assert float(loss()) < before
    parameters = dict(tree_flatten(model.trainable_parameters()))
    state = dict(tree_flatten(optimizer.state))
    moments = {name for name in state if name.endswith((".m", ".v"))}
    assert {name.rpartition(".")[0] for name in moments} == parameters.keys()
    assert all(state[name].shape == parameters[name.rpartition(".")[0]].shape for name in moments)
    assert all(p.module.rank >= 2 for p in projections(model) if p.path in manager.ranks())


def test_bytes_fall_along_a_schedule_inside_the_compiled_step(
    checkpoint: Path, calibration: Path, tmp_path: Path
) -> None:
    model = load_model(checkpoint)
    model.set_dtype(mx.float32)
    gauge = Gauge()
    layers = attach(model, 4, also={"lm_head": 6}, gauge=gauge)
    first = sum(layer.nbytes for layer in layers.values())
    optimizer = optimizers.AdamW(learning_rate=3e-4)
    rows = data(checkpoint, calibration)
    loss = probe_loss(model, rows)
    schedule = Schedule(first, first // 3, begin=3, end=9, every=3)
    manager = PlasticityManager(model, optimizer, loss=loss, schedule=schedule, gauge=gauge)
    before = float(loss())
    every = {"iters": 14, "val_batches": 1, "steps_per_report": 5, "steps_per_eval": 5}
    train_with(manager, model, optimizer, rows, tmp_path, **every)
    assert first // 4 < manager.bytes_awake <= first // 3
    assert manager.bytes_awake + manager.bytes_asleep == first
    assert len(set(manager.ranks().values())) > 1
    assert float(loss()) < before
    state = dict(tree_flatten(optimizer.state))
    for name, parameter in tree_flatten(model.trainable_parameters()):
        assert state[f"{name}.m"].shape == state[f"{name}.v"].shape == parameter.shape
