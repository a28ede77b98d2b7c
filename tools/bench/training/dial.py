"""The loss on old texts under a factor on every ``S``."""

from __future__ import annotations

from rich.table import Table

from training.methods import our_runs
from training.setting import TrainingBench


def dial_table(bench: TrainingBench) -> Table:
    """Loss and what is forgotten as every S of one run of ours is turned down."""
    rows = Table("run", "loss", "old", title=f"Bytes of rank {bench.options.ranks[0]}", box=None)
    for r in our_runs(bench, bench.options.ranks[0], 0, (1.0, 0.9, 0.8, 0.7, 0.6)):
        rows.add_row(r.method, f"{r.loss:.4f}", " / ".join(f"{x:.3f}" for x in r.old))
    return rows
