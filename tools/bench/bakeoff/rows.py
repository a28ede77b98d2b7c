"""All rows: who takes part in which table."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlx_lm import convert

from bakeoff import low_rank, quantizers
from bakeoff.bench import BakeOff, Method, packing, whole_bits
from bakeoff.low_rank import Study
from bakeoff.ours import healed, in_format, strategy, uniform_bits
from bakeoff.quantizers import Task
from bakeoff.written import Written, weigh


def stock_rounding(bench: BakeOff, out: Path, budget: float) -> Written:
    """Stock ``mlx_lm.convert`` of the same matrices."""
    paths = bench.task.paths
    bits, group_size = packing(budget, bench.matrices)
    with contextlib.redirect_stdout(io.StringIO()):
        convert(
            str(bench.task.source),
            str(out),
            quantize=True,
            q_bits=bits,
            q_group_size=group_size,
            quant_predicate=lambda path, module: path in paths,
        )
    return weigh(out)


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
TUNED = {"dwq": ("steps", "rates"), "mixed-healed": ("steps",), "healed": ("steps",)}
"""The options that rows depend on beside the budget, by method."""
EMBEDDINGS = ("bits",)
"""The tables whose methods take embeddings too."""
