"""The output of ``plastic dial`` where it turns a run."""

from __future__ import annotations

from dataclasses import asdict

from rich.table import Table

from plastic_export.reporting.pages.run_facts import run_sizes_table
from plastic_export.reporting.tables import Presented
from plastic_export.training.sizes.dial_run import DialledRun


def present_dialled_run(result: DialledRun) -> Presented:
    """Say how large it is, which ranks it has, and what the run measured near that size."""
    record = asdict(result) | {"points": [point._asdict() for point in result.points]}
    awake = [rank for rank in result.ranks.values() if rank]
    before = [rank for rank in result.ranks_before.values() if rank]
    measured: list[Table | str] = [run_sizes_table(result.points), ""] if result.points else []
    return Presented(
        record,
        [
            *measured,
            f"adapters   {result.before_bytes:,} -> {result.nbytes:,} bytes "
            f"(asked for {result.max_bytes:,})",
            f"components {sum(awake)} of {sum(before)} in {len(awake)} of {len(before)} layers, "
            f"predicted to raise the loss by {result.predicted_rise:.4f} nats per token",
            f"written    {result.adapter}, {result.peft}",
        ],
    )
