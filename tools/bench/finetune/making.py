"""One run, in a process of its own: trained, written, weighed, loaded and measured."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kept.measurements import Figures
from training.setting import TrainingBench
from training.texts import Texts

from finetune.mlx_peers import (
    rank_stabilized,
    stock_dora,
    stock_lora,
    stock_lora_with_head,
    untrained,
)
from finetune.ours import plastic_train
from finetune.peft_peers import PEFT_METHODS, peft_trained

OURS = "plastic train"
Run = Callable[[TrainingBench, int, int], Figures]
"""A method: the setting, the rank whose bytes are the budget, a seed."""

ADAPTERS: dict[str, Run] = {
    "base": untrained,
    "lora": stock_lora,
    "lora+head": stock_lora_with_head,
    "rslora": rank_stabilized,
    "dora": stock_dora,
    OURS: plastic_train,
    **{name: peft_trained(name) for name in PEFT_METHODS},
}


def finished_run(
    *, method: str, rank: int, seed: int, places: Mapping[str, Any], **setting: Any
) -> Figures:
    """Make one run and measure it.

    Args:
        method: One of `ADAPTERS`.
        rank: The rank of LoRA whose file is the budget.
        seed: The seed of the batches and of the start.
        places: The checkpoint and the windows of tokens.
        setting: What `Asked` says of it.
    """
    options = Namespace(**setting, source=Path(places["source"]))
    bench = TrainingBench(options, Texts.load(Path(places["windows"])))
    tokens = options.steps * options.batch * options.length
    return {"tokens": tokens} | ADAPTERS[method](bench, rank, seed)
