"""The output of ``plastic train``."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table

from plastic_export.reporting.report import run_table
from plastic_export.reporting.run_report import facts
from plastic_export.reporting.tables import Presented
from plastic_export.training.run import TrainedRun


def present_trained(result: TrainedRun, src: str, out: Path) -> Presented:
    """Show the run in a few facts, and how to run and to see what it made."""
    files = {"out": out, "adapter": result.adapter, "peft": result.peft}
    generate = f"mlx_lm.generate --model {src} --adapter-path {result.adapter} --prompt ..."
    lines: list[Table | str] = [
        run_table(result.history),
        "",
        f"run it     {generate}",
        f"see it     plastic report {out}",
    ]
    return Presented(files | facts(result.history), lines)
