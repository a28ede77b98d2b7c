"""Adapters as stock mlx-lm writes and loads them: the one thing that is weighed and measured."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from statistics import mean, median
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
from kept.measurements import Figures
from mlx.utils import tree_flatten
from mlx_lm.tuner.utils import linear_to_lora_layers, load_adapters
from plastic_core import projections
from plastic_core.files import write_json
from training.setting import HEAD, Times, TrainingBench

TIED_HEAD = "model.embed_tokens"
FILE, CONFIG = "adapters.safetensors", "adapter_config.json"


class StockLora(NamedTuple):
    """What mlx-lm is asked for.

    Attributes:
        scale: The factor on the product.
        head: Whether the output head has factors too, be it that of the embedding.
        dora: Whether magnitudes are learnt beside.
    """

    scale: float
    head: bool = False
    dora: bool = False


def add_stock_lora(model: nn.Module, rank: int, asked: StockLora) -> dict[str, Any]:
    """Lay mlx-lm's own layers over a model; return the configuration of the adapter."""
    parameters: dict[str, Any] = {"rank": rank, "scale": asked.scale, "dropout": 0.0}
    if asked.head:
        parameters["keys"] = sorted({p.path for p in projections(model)} | {head_of(model)})
    linear_to_lora_layers(model, -1, parameters, use_dora=asked.dora)
    kind = "dora" if asked.dora else "lora"
    return {"fine_tune_type": kind, "num_layers": -1, "lora_parameters": parameters}


def head_of(model: nn.Module) -> str:
    """Return the path of the head, which is that of the embedding where they are one."""
    return HEAD if HEAD in model else TIED_HEAD


def save_stock(model: nn.Module, config: Mapping[str, Any], folder: Path) -> None:
    """Write what trains, as mlx-lm's trainer does."""
    trained: Any = tree_flatten(model.trainable_parameters())
    mx.save_safetensors(str(folder / FILE), dict(trained))
    write_json(folder / CONFIG, dict(config))


def stock_bytes(bench: TrainingBench, rank: int) -> int:
    """Return the bytes of the file of mlx-lm's LoRA of a rank: the budget of everyone else."""
    model = bench.base()
    config = add_stock_lora(model, rank, StockLora(1.0))
    with tempfile.TemporaryDirectory() as folder:
        save_stock(model, config, Path(folder))
        return (Path(folder) / FILE).stat().st_size


def measured_adapter(bench: TrainingBench, folder: Path) -> Figures:
    """Return the bytes of an adapter and the losses of the base under it, loaded by mlx-lm."""
    model = load_adapters(bench.base(), str(folder))
    return {"nbytes": (folder / FILE).stat().st_size} | losses(bench, model)


def losses(bench: TrainingBench, model: nn.Module) -> Figures:
    """Return the loss on the task and on each text that the base knows, in nats per token."""
    model.eval()
    old = [bench.measure(model, windows) for windows in bench.texts.old]
    return {"loss": bench.measure(model, bench.texts.valid), "old": old}


def pace(times: Times) -> Figures:
    """Return seconds per step, what changes took in steps, and the training loss of every step."""
    step = median(times.steps)
    changes = [seconds / step - 1 for seconds in times.changes]
    return {
        "step": step,
        "seconds": sum(times.steps) + sum(times.between) + sum(times.changes),
        "between": median(times.between) / step,
        "change": mean(changes) if changes else 0.0,
        "learnt": [round(loss, 4) for loss in times.losses],
    }
