"""A training run of seconds, for benchmarks that cut it.

A random Llama, and a manager that grows, shrinks and wakes at fixed validations, so that every
seed has all three. Otherwise it is the real one, its guards included.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.models import llama
from plastic_core.files import export_safetensors
from plastic_export import TrainedRun, TrainingOptions, train
from plastic_runtime import PlasticityEvent, PlasticityManager

FIXTURE = Path(__file__).resolve().parents[2] / "tests-integration" / "data" / "stdlib-llama"
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
}
TRAINING = TrainingOptions(
    steps=48,
    batch=2,
    window=32,
    accumulate=2,
    rank=3,
    learning_rate=1e-3,
    warmup=4,
    evaluate_every=4,
    evaluate_batches=2,
    plasticity={"patience": 1_000_000},
)
ROWS = {"train": 40, "valid": 8}
PLAN = ("grow", "shrink", "wake", "shrink")


class PlannedManager(PlasticityManager):
    """Changes one layer after every validation, a different one in each round of ``PLAN``."""

    def step(self, val_loss: float | mx.array) -> list[PlasticityEvent]:
        """Do what is due; which, depends on the saved state alone."""
        events = super().step(val_loss)
        seen = self.state()["policy"]["step"] - 1
        action, paths = PLAN[seen % len(PLAN)], sorted(self.ranks())
        path = paths[seen // len(PLAN) % len(paths)]
        rank = self.ranks()[path]
        if action == "grow":
            events.append(self.grow(path, 2))
        elif action == "shrink" and rank > 1:
            events.append(self.shrink(path, rank - 2 if rank > 2 else 1))
        elif action == "wake" and self.sleep_dict.ids(path):
            events.append(self.wake(path, self.sleep_dict.ids(path)[:1]))
        return events


@dataclass(frozen=True)
class TinyRun:
    """A checkpoint and data in a folder, to be trained on any number of times."""

    base: Path
    data: Path

    def write(self) -> None:
        """Make both; the tokenizer is that of the checkpoint that the repository ships."""
        _write_checkpoint(self.base)
        _write_rows(self.data)

    def train(self, out: Path, training: TrainingOptions = TRAINING) -> TrainedRun:
        """Train, or go on, with changes of rank by plan."""
        with patch("plastic_export.training.course.PlasticityManager", PlannedManager):
            return train(self.base, self.data, out, training)


def _write_checkpoint(folder: Path) -> None:
    config = json.loads((FIXTURE / "config.json").read_text()) | SIZES
    model = llama.Model(llama.ModelArgs.from_dict(config))
    shapes = {name: array.shape for name, array in dict(tree_flatten(model.parameters())).items()}
    rng = np.random.default_rng(0)
    weights = {
        name: mx.ones(shape) if len(shape) == 1 else mx.array(0.1 * rng.standard_normal(shape))
        for name, shape in sorted(shapes.items())
    }
    folder.mkdir(parents=True)
    export_safetensors(
        folder / "model.safetensors",
        {name: array.astype(mx.bfloat16) for name, array in weights.items()},
        metadata={"format": "mlx"},
    )
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(FIXTURE / name, folder)


def _write_rows(folder: Path) -> None:
    folder.mkdir()
    text, start = (FIXTURE / "calibration.txt").read_text(), 0
    for name, count in ROWS.items():
        rows = [text[start + 90 * i : start + 90 * i + 80] for i in range(count)]
        lines = (json.dumps({"text": row}) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text("".join(lines))
        start += 90 * count
