"""What the ``plastic`` command prints of plans of bits, and their records for machines."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

from plastic_runtime import format_bytes
from rich.table import Table

from plastic_export.checkpoint.tensors import Kind
from plastic_export.compression.by_plan import Quantised
from plastic_export.folder.adapter_files import FOLDER as ADAPTERS
from plastic_export.plan.offers import BitsPlan
from plastic_export.plan.plan_file import LossPlan
from plastic_export.reporting.tables import exact_line, figures


def planned_record(plan: LossPlan, file: Path) -> dict[str, Any]:
    """The result of ``plastic plan`` as JSON."""
    return {
        "plan": str(file),
        "matrices": len(plan.matrices),
        "kinds": dict(Counter(m.kind for m in plan.matrices)),
        "unreached_experts": plan.calibration.get("unreached_experts", 0),
        "left": list(plan.left),
        "left_bytes": plan.left_bytes,
        "format": plan.format,
        "budgets": [budget_record(b) for b in plan.budgets],
    }


def budget_record(b: BitsPlan) -> dict[str, Any]:
    """One budget as JSON."""
    return {
        "asked": b.asked,
        "bits_per_weight": b.bits_per_weight,
        "bytes": b.nbytes,
        "predicted_kl": b.cost,
        "gap": b.gap,
        "rank": b.rank,
        "mix": b.mix,
    }


def planned(plan: LossPlan, file: Path, plot: Path) -> list[Table | str]:
    """What ``plastic plan`` prints."""
    table = figures("asked", "bits/weight", "matrices", "all tensors", "predicted KL", "gap", "mix")
    for b in plan.budgets:
        table.add_row(
            b.asked,
            f"{b.bits_per_weight:.4f}",
            format_bytes(b.nbytes),
            format_bytes(b.nbytes + plan.left_bytes),
            f"{1e3 * b.cost:.3f} mnat",
            f"{b.gap:.2%}",
            ", ".join(f"{count} x {kind}" for kind, count in b.mix.items()),
        )
    left = f"{len(plan.left)} left as they are" + (f": {', '.join(plan.left)}" if plan.left else "")
    return [
        table,
        "",
        f"matrices   {counted(plan)} planned, {left}",
        *_unreached(plan),
        f"plan       {file}; its Grams: {plan.grams[0]}; size and quality: {plot}",
        f"write it   plastic compress SRC OUT --plan {file}"
        + (" --bits-per-weight ..." if len(plan.budgets) > 1 else ""),
    ]


def counted(plan: LossPlan) -> str:
    """How many layers of which kind were planned: ``"29 linear, 1 embedding, 6 experts"``."""
    kinds = Counter(m.kind for m in plan.matrices)
    return ", ".join(f"{kinds[kind]} {kind}" for kind in get_args(Kind) if kinds[kind])


def _unreached(plan: LossPlan) -> list[Table | str]:
    """A line about experts that the text did not reach, if there are any."""
    count = plan.calibration.get("unreached_experts", 0)
    told = f"experts    {count} that no token reached were given the Grams of the others"
    return [told] if count else []


def quantised_record(result: Quantised) -> dict[str, Any]:
    """The result of ``plastic compress --plan`` as JSON."""
    return {
        "out": str(result.out),
        "format": result.format,
        "source_bytes": result.source_bytes,
        "model_bytes": result.model_bytes,
        "adapter_bytes": result.adapter_bytes,
        "exact_bytes": result.exact_bytes,
        "budget": budget_record(result.plan),
        "matrices": [asdict(r) for r in result.matrices],
    }


def quantised(result: Quantised) -> list[Table | str]:
    """What ``plastic compress --plan`` prints."""
    numbers = ("shape", "bits", "rank", "bytes", "of source", "predicted KL", "rel. error")
    table = figures("matrix", *numbers)
    for r in result.matrices:
        table.add_row(
            r.name.removesuffix(".weight"),
            (f"{r.experts} x " if r.experts else "") + "{} x {}".format(*r.shape),
            "-" if r.bits is None else str(r.bits),
            f"{r.rank} ({r.factor_bits} bits)" if r.rank else "-",
            format_bytes(r.stored_bytes),
            f"{r.stored_bytes / r.source_bytes:.1%}",
            f"{1e3 * r.predicted_kl:.4f} mnat",
            f"{r.relative_error:.4f}",
        )
    plan = result.plan
    adapter = (
        f" and {format_bytes(result.adapter_bytes)} of adapter" if result.adapter_bytes else ""
    )
    return [
        table,
        "",
        f"matrices   {plan.bits_per_weight:.4f} bits per weight (asked for {plan.asked}), "
        f"{format_bytes(plan.nbytes)}, predicted KL {1e3 * plan.cost:.3f} millinats per token",
        f"checkpoint {format_bytes(result.source_bytes)} -> {format_bytes(result.model_bytes)}"
        f"{adapter}",
        *([exact_line(result.exact_bytes, result.source_bytes)] if result.exact_bytes else []),
        *_ways_to_run(result),
    ]


def _ways_to_run(result: Quantised) -> list[Table | str]:
    run = f"run it     mlx_lm.generate --model {result.out}"
    if result.adapter_bytes:
        return [
            f"{run} --adapter-path {result.out / ADAPTERS} --prompt ...",
            "never fuse the adapter without --dequantize: quantising again rounds it away",
        ]
    flag = " --trust-remote-code" if result.needs_model_file else ""
    return [f"{run}{flag} --prompt ..."]
