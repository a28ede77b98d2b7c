"""The output of ``plastic compress``, by rank and by plan."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from plastic_runtime import format_bytes
from plastic_runtime.dialling import Plan
from rich.table import Table

from plastic_export.checkpoint.packing import least_mlx
from plastic_export.compression.writer import Compressed, widths_of
from plastic_export.plan.offers import BitsPlan
from plastic_export.reporting.output_check import check_line
from plastic_export.reporting.plan.made import budget_record
from plastic_export.reporting.tables import Name, Presented, figures


def present_by_rank(result: Compressed[Plan]) -> Presented:
    """Say what a compression by rank wrote."""
    return Presented(_rank_record(result), _rank_lines(result))


def present_by_plan(result: Compressed[BitsPlan]) -> Presented:
    """Say what a compression by a plan wrote."""
    return Presented(_plan_record(result), _plan_lines(result))


def _rank_record(result: Compressed[Plan]) -> dict[str, Any]:
    return {
        "out": str(result.out),
        "strategy": result.plan.strategy,
        "keep": result.plan.keep,
        "kept": result.plan.kept,
        "removed": 1 - result.plan.kept,
        "source_bytes": result.source_bytes,
        "model_bytes": result.model_bytes,
        "sleep_bytes": result.sleep_bytes,
        "exact_bytes": result.exact_bytes,
        "checked": None if result.checked is None else asdict(result.checked),
        "matrices": [asdict(r) for r in result.matrices],
    }


def _rank_lines(result: Compressed[Plan]) -> list[Table | str]:
    numbers = ("shape", "rank", "asleep", "awake", "of dense", "rel. error", "restored to")
    table = figures("matrix", *numbers)
    for r in result.matrices:
        table.add_row(
            Name(r.name.removesuffix(".weight")),
            "{} x {}".format(*r.shape),
            "dense" if r.is_unchanged else str(r.rank),
            str(r.parked),
            format_bytes(r.stored_bytes),
            f"{r.stored_bytes / r.source_bytes:.1%}",
            f"{r.relative_error:.4f}",
            "exact" if r.restored_error == 0 else f"{r.restored_error:.1e}",
        )
    plan = result.plan
    lines: list[Table | str] = [
        table,
        "",
        f"matrices   {format_bytes(plan.source_bytes)} -> {format_bytes(plan.awake_bytes)} awake: "
        f"kept {plan.kept:.1%}, removed {1 - plan.kept:.1%} (asked to keep {plan.keep:.1%})",
        f"checkpoint {format_bytes(result.source_bytes)} -> {format_bytes(result.model_bytes)} in "
        f"model files, {format_bytes(result.sleep_bytes)} asleep beside them",
    ]
    if result.exact_bytes:
        lines.append(_exact_line(result.exact_bytes, result.source_bytes))
    return [*lines, check_line(result.checked), *result.how_to_run()]


def _plan_record(result: Compressed[BitsPlan]) -> dict[str, Any]:
    return {
        "out": str(result.out),
        "format": result.format,
        "source_bytes": result.source_bytes,
        "model_bytes": result.model_bytes,
        "adapter_bytes": result.adapter_bytes,
        "exact_bytes": result.exact_bytes,
        "checked": None if result.checked is None else asdict(result.checked),
        "budget": budget_record(result.plan),
        "matrices": [asdict(r) for r in result.matrices],
    }


def _plan_lines(result: Compressed[BitsPlan]) -> list[Table | str]:
    numbers = ("shape", "bits", "group", "rank", "bytes", "of source", "KL, mnat", "rel. error")
    table = figures("matrix", *numbers)
    for r in result.matrices:
        table.add_row(
            Name(r.name.removesuffix(".weight")),
            (f"{r.experts} x " if r.experts else "") + "{} x {}".format(*r.shape),
            "-" if r.bits is None else str(r.bits),
            str(r.group_size or "-"),
            f"{r.rank} ({r.factor_bits} bits)" if r.rank else "-",
            format_bytes(r.stored_bytes),
            f"{r.stored_bytes / r.source_bytes:.1%}",
            f"{1e3 * r.predicted_kl:.4f}",
            f"{r.relative_error:.4f}",
        )
    plan = result.plan
    adapter = (
        f" and {format_bytes(result.adapter_bytes)} of adapter" if result.adapter_bytes else ""
    )
    return [
        table,
        "",
        f"matrices   {plan.bits_per_weight:.4f} bits per weight (asked for {plan.asked}"
        f"{_edited(plan)}), "
        f"{format_bytes(plan.nbytes)}, predicted KL {1e3 * plan.predicted:.3f} millinats per token",
        f"checkpoint {format_bytes(result.source_bytes)} -> {format_bytes(result.model_bytes)}"
        f"{adapter}",
        *([_exact_line(result.exact_bytes, result.source_bytes)] if result.exact_bytes else []),
        check_line(result.checked),
        *_engine_lines(result),
        *result.how_to_run(),
    ]


def _engine_lines(result: Compressed[BitsPlan]) -> list[str]:
    """Say which engines are too old for the bits of an output."""
    least = least_mlx(widths_of(result.matrices))
    if least is None:
        return []
    return [f"needs      MLX {least} or newer for its bits; plan with --bits 4,8 for any"]


def _edited(plan: BitsPlan) -> str:
    """Say so where a plan was edited to more than its budget."""
    return ", and edited above it" if plan.bits_per_weight > plan.budget * (1 + 1e-9) else ""


def _exact_line(exact_bytes: int, source_bytes: int) -> str:
    """Say what ``--exact`` costs."""
    return (
        f"exact      {format_bytes(exact_bytes)} beside them, {exact_bytes / source_bytes:.1%} of "
        "the source: `plastic restore` gives back every bit of it"
    )
