"""The output of ``plastic merge --into``."""

from __future__ import annotations

import shlex
from dataclasses import asdict

from plastic_export.reporting.tables import Presented
from plastic_export.reshaping.into_base import MergedBase


def present_merged(result: MergedBase) -> Presented:
    """Say what was written, and what rounding took from what was added."""
    worst = max(result.errors, key=lambda path: result.errors[path])
    lines = [
        f"{result.out}: {result.nbytes:,} bytes, {len(result.errors)} matrices changed",
        f"rounded    relative error at most {result.errors[worst]:.1e} ({worst}), over all of "
        f"them {result.update_error:.1%} of what was added",
    ]
    if result.quantized:
        lines.append("note       --dequantize stores these matrices dense, and keeps it")
    words = ["mlx_lm.generate", "--model", str(result.out), "--prompt", "..."]
    return Presented(asdict(result), [*lines, f"run it     {shlex.join(words)}"])
