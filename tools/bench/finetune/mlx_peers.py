"""mlx-lm's own adapters: LoRA, with the head, with a scale for its rank, and DoRA."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import mlx.core as mx
from kept.measurements import Figures
from training.setting import SCALE, TrainingBench

from finetune.stock import StockLora, add_stock_lora, losses, measured_adapter, pace, save_stock

ALPHA = 8 * SCALE  # mlx-lm's scale is alpha / r: this one has it at rank 8


def untrained(bench: TrainingBench, rank: int, seed: int) -> Figures:
    """The base alone."""
    return losses(bench, bench.base()) | {"nbytes": 0, "step": 0.0}


def stock_lora(bench: TrainingBench, rank: int, seed: int) -> Figures:
    """LoRA as mlx-lm has it: one scale for every rank, all projections."""
    return _trained(bench, rank, seed, StockLora(SCALE))


def stock_lora_with_head(bench: TrainingBench, rank: int, seed: int) -> Figures:
    """The same with the head, which is the embedding where they are tied."""
    return _trained(bench, rank, seed, StockLora(SCALE, head=True))


def rank_stabilized(bench: TrainingBench, rank: int, seed: int) -> Figures:
    """LoRA with the scale alpha over the root of the rank (Kalajdzievski, arXiv 2312.03732)."""
    return _trained(bench, rank, seed, StockLora(ALPHA / math.sqrt(rank)))


def stock_dora(bench: TrainingBench, rank: int, seed: int) -> Figures:
    """DoRA (Liu et al., arXiv 2402.09353)."""
    return _trained(bench, rank, seed, StockLora(SCALE, dora=True))


def _trained(bench: TrainingBench, rank: int, seed: int, asked: StockLora) -> Figures:
    model = bench.base()
    mx.random.seed(seed)
    config = add_stock_lora(model, rank, asked)
    times = bench.train(model, bench.optimizer(), seed)
    with tempfile.TemporaryDirectory() as folder:
        save_stock(model, config, Path(folder))
        return measured_adapter(bench, Path(folder)) | pace(times)
