"""The output of ``plastic train``."""

from __future__ import annotations

import shlex
from pathlib import Path

from rich.table import Table

from plastic_export.reporting.pages.run_facts import (
    change_table,
    run_record,
    run_sizes_table,
    run_table,
)
from plastic_export.reporting.tables import Presented, figures
from plastic_export.training.run import TrainedRun


def present_trained(result: TrainedRun, src: str, out: Path) -> Presented:
    """Show the run in a few facts, and how to run and to see what it made."""
    files = {"out": out, "adapter": result.adapter, "peft": result.peft}
    sizes = {name: _weight_bytes(files[name]) for name in ("adapter", "peft")}
    words = ["mlx_lm.generate", "--model", src, "--adapter-path", str(result.adapter)]
    lines: list[Table | str] = [
        run_table(result.history),
        "",
        *_changes(result),
        *_dial(result),
        *_sizes(result),
        f"state      after step {result.written.step:,}, validation loss {result.written.loss:.4f}",
        f"written    {result.adapter} {sizes['adapter']:,} bytes, {result.peft} {sizes['peft']:,}",
        f"run it     {shlex.join(words)} --prompt ...",
        f"see it     plastic report {shlex.quote(str(out))}",
        *_dialling(result),
    ]
    dial = {"dial": [point._asdict() for point in result.dial]} if result.dial else {}
    state = {"state_step": result.written.step, "state_loss": result.written.loss}
    record = files | {f"{name}_bytes": nbytes for name, nbytes in sizes.items()}
    return Presented(record | state | dial | run_record(result.history), lines)


def _changes(result: TrainedRun) -> list[Table | str]:
    """Show what every change of ranks cost and gained."""
    return [change_table(result.history), ""] if result.history.changes else []


def _dial(result: TrainedRun) -> list[Table | str]:
    """Show both losses over the factor on every S, and which one was written."""
    if not result.dial:
        return []
    table = figures("factor on S", "validation loss", "nats from SRC", text=0)
    for point in sorted({*result.dial}, reverse=True):
        table.add_row(f"{point.scale:.2f}", f"{point.loss:.4f}", f"{point.forgotten:.4f}")
    return [table, "", f"dial       every S times {result.dial[0].scale:.2f}, as --forget asks"]


def _sizes(result: TrainedRun) -> list[Table | str]:
    """Show what `plastic dial` makes of the run at smaller sizes."""
    return [run_sizes_table(result.history.sizes), ""] if result.history.sizes else []


def _dialling(result: TrainedRun) -> list[Table | str]:
    """Say how a smaller one is had, at half the bytes."""
    if not result.history.sizes:
        return []
    half = result.history.sizes[0].nbytes // 2
    run = shlex.quote(str(result.out))
    return [f"dial it    plastic dial {run} SMALL --max-size {half}"]


def _weight_bytes(adapter: Path) -> int:
    return sum(file.stat().st_size for file in adapter.glob("*.safetensors"))
