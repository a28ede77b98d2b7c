"""All rows: who takes part in which table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from bakeoff import low_rank, quantizers
from bakeoff.autoround import auto_round, auto_round_mixed, installed
from bakeoff.bench import BakeOff, Method, whole_bits
from bakeoff.knapsack import knapsack
from bakeoff.low_rank import Study
from bakeoff.ours import healed, in_format, strategy, uniform_bits
from bakeoff.quantizers import Task
from bakeoff.stock import stock_rounding
from bakeoff.written import Written, weigh


def stock(
    run: Callable[[Task, Path, Any], None], bits: Callable[[float], float] = whole_bits
) -> Method:
    """One of mlx-lm's quantisers."""

    def method(bench: BakeOff, out: Path, budget: float) -> Written:
        run(bench.task, out, bits(budget))
        return weigh(out)

    return method


def studied(run: Callable[[Study, Path, Any], Written]) -> Method:
    """One of `low_rank`."""
    return lambda bench, out, budget: run(bench.study, out, budget)


TABLES: dict[str, dict[str, Method]] = {
    "bits": {
        "rounding": stock_rounding,
        "gptq": stock(quantizers.gptq_bits),
        "awq": stock(quantizers.awq_bits),
        "dwq": stock(quantizers.dwq_bits),
        "dynamic": stock(quantizers.dynamic_bits, bits=float),
        "autoround": auto_round,
        "autoround-mixed": auto_round_mixed,
        "knapsack": knapsack,
        "feedback": uniform_bits,
        "mixed": in_format("mixed"),
        "adapter": in_format("adapter"),
        "corrected": in_format("corrected"),
        "mixed-healed": healed("mixed"),
        "healed": healed("corrected"),
    },
    "rank": {
        "svd-llm": studied(low_rank.svd_llm),
        **{name: strategy(name) for name in ("stable", "theorem", "activation", "energy")},
        "loss": studied(low_rank.loss_aware),
    },
    "correction": {
        "qera": studied(low_rank.qera),
        "loss": studied(low_rank.loss_aware_correction),
    },
}
TUNED = {
    "dwq": ("steps", "rates"),
    **dict.fromkeys(("autoround", "autoround-mixed", "mixed-healed", "healed"), ("steps",)),
}
"""The options that rows depend on beside the budget, by method."""
EMBEDDINGS = ("bits",)
"""The tables whose methods take embeddings too."""
BEFORE = dict.fromkeys(("autoround", "autoround-mixed"), installed)
"""What is done before a clock starts, by method."""
