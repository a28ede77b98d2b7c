"""The output of ``plastic dial``."""

from __future__ import annotations

from dataclasses import asdict

from plastic_runtime import format_bytes
from rich.table import Table

from plastic_export.dialling.writing import Dialled
from plastic_export.reporting.output_check import check_line, ran_line
from plastic_export.reporting.tables import Name, Presented, figures


def present_dialled(result: Dialled) -> Presented:
    """Say what a folder was turned to."""
    record = asdict(result) | {
        "bits_per_weight": result.bits_per_weight,
        "predicted_kl": result.predicted_kl,
    }
    return Presented(record, [*_lines(result)])


def _lines(result: Dialled) -> list[Table | str]:
    table = figures("matrix", "rank", "asleep", "bytes", "KL, mnat", "rel. error")
    for r in result.matrices:
        if r.components:
            table.add_row(
                Name(r.name.removesuffix(".weight")),
                str(r.rank),
                str(r.parked),
                format_bytes(r.stored_bytes),
                f"{1e3 * r.predicted_kl:.4f}" if r.curve else "-",
                f"{r.relative_error:.4f}",
            )
    kl = result.predicted_kl
    prices = f", prices {1e3 * kl:.3f} millinats per token" if kl else ""
    asleep = f", {format_bytes(result.sleep_bytes)} asleep" if result.sleep_bytes else ""
    return [
        table,
        "",
        f"matrices   {result.bits_per_weight:.4f} bits per weight (asked for {result.asked})"
        f"{prices}; {len(result.turned)} of {len(result.matrices)} turned",
        f"checkpoint {format_bytes(result.before_bytes)} -> {format_bytes(result.model_bytes)}"
        f"{asleep}",
        ran_line(result.checked) if result.checked else check_line(None),
        *_exact(result),
        *result.how_to_run(),
    ]


def _exact(result: Dialled) -> list[str]:
    """Say what became of that which gives back every bit of the source, if it was there."""
    if result.exact_bytes:
        size = format_bytes(result.exact_bytes)
        return [
            f"exact      {size} beside it: `plastic restore` gives back every bit of the source"
        ]
    if result.is_exact_lost:
        return [
            "exact      left out with what was cut; with --park both stay for `plastic restore`"
        ]
    return []
