"""The output of ``plastic inspect``."""

from __future__ import annotations

from dataclasses import asdict

from plastic_runtime import format_bytes
from rich.table import Table

from plastic_export.compression.summary import Spectrum, Summary
from plastic_export.reporting.tables import Name, Presented, figures


def present_summary(summary: Summary) -> Presented:
    """Show what a checkpoint holds: its size, its matrices and, if they were read, their ranks."""
    dtypes = ", ".join(f"{dtype} {count}" for dtype, count in summary.dtypes.items())
    head = (
        f"{summary.name}: {summary.model_type}, {summary.parameters:,} parameters in "
        f"{summary.tensors} tensors, {format_bytes(summary.nbytes)}, {dtypes}"
    )
    lines: list[Table | str] = [head, "", _matrices(summary)]
    if summary.spectra:
        lines += ["", _ranks(summary.spectra)]
    return Presented(asdict(summary), lines)


def _matrices(summary: Summary) -> Table:
    table = figures("matrices", "count", "shape", "bytes", "break-even rank")
    for group in summary.groups:
        shape = "{} x {}".format(*group.shape)
        size = format_bytes(group.nbytes)
        table.add_row(Name(group.name), str(group.count), shape, size, str(group.break_even))
    return table


def _ranks(spectra: dict[str, Spectrum]) -> Table:
    table = figures("matrix", "stable", "effective", "90 % energy", "99 % energy", "threshold")
    for name, x in spectra.items():
        ranks = (str(rank) for rank in (x.energy_90, x.energy_99, x.threshold))
        table.add_row(Name(name), f"{x.stable:.1f}", f"{x.effective:.1f}", *ranks)
    return table
