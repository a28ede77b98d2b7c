"""Rounding to nearest by stock ``mlx_lm.convert``."""

from __future__ import annotations

import contextlib
import io
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from mlx_lm import convert

from bakeoff.bench import BakeOff, packing
from bakeoff.written import Written, weigh


def stock_rounding(bench: BakeOff, out: Path, budget: float) -> Written:
    """One width and group size for all matrices."""
    converted(bench, out, dict.fromkeys(bench.task.paths, packing(budget, bench.matrices)))
    return weigh(out)


def converted(bench: BakeOff, out: Path, packing: Mapping[str, tuple[int, int]]) -> None:
    """Write a stock folder with the bits and group size of every module that is named."""
    named = {path: {"bits": b, "group_size": size} for path, (b, size) in packing.items()}
    bits, size = Counter(packing.values()).most_common(1)[0][0]
    with contextlib.redirect_stdout(io.StringIO()):
        convert(
            str(bench.task.source),
            str(out),
            quantize=True,
            q_bits=bits,
            q_group_size=size,
            quant_predicate=lambda path, module: named.get(path, False),
        )
