"""The output of ``plastic plan``."""

from __future__ import annotations

import shlex
from collections import Counter
from pathlib import Path
from typing import Any, get_args

from plastic_runtime import format_bytes
from rich.table import Table

from plastic_export.checkpoint.tensors import Kind
from plastic_export.compression.plan_file import LossPlan
from plastic_export.plan.offers import BitsPlan
from plastic_export.reporting.plots.drawing import HOW
from plastic_export.reporting.tables import Presented, figures


def present_plan(plan: LossPlan, file: Path, plot: Path | None) -> Presented:
    """Show what every budget buys, and where the plan and its plot are, if one was drawn."""
    return Presented(_record(plan, file), _lines(plan, file, plot))


def _record(plan: LossPlan, file: Path) -> dict[str, Any]:
    return {
        "plan": str(file),
        "matrices": len(plan.matrices),
        "kinds": dict(Counter(m.matrix.kind for m in plan.matrices)),
        "unreached_experts": plan.calibration.get("unreached_experts", 0),
        "left": list(plan.left),
        "left_bytes": plan.left_bytes,
        "skipped": [m._asdict() for m in plan.skipped],
        "format": plan.format,
        "budgets": [budget_record(b) for b in plan.budgets],
    }


def budget_record(b: BitsPlan) -> dict[str, Any]:
    """Return one budget as JSON."""
    return {
        "asked": b.asked,
        "bits_per_weight": b.bits_per_weight,
        "bytes": b.nbytes,
        "predicted_kl": b.predicted,
        "interval": b.interval,
        "by": b.by,
        "rival_kl": b.rival_kl,
        "gap": b.gap,
        "rank": b.rank,
        "mix": b.mix,
    }


def _lines(plan: LossPlan, file: Path, plot: Path | None) -> list[Table | str]:
    table = figures("asked", "bits/weight", "matrices", "all tensors", "predicted KL", "gap", "mix")
    for b in plan.budgets:
        table.add_row(
            b.asked,
            f"{b.bits_per_weight:.4f}",
            format_bytes(b.nbytes),
            format_bytes(b.nbytes + plan.left_bytes),
            _predicted(b),
            f"{b.gap:.2%}",
            "; ".join(f"{count} x {kind}" for kind, count in b.mix.items()),
        )
    names = f": {', '.join(plan.left)}" if plan.left else ""
    untouched = f"{len(plan.left)} left as they are{names}"
    return [
        table,
        "",
        f"matrices   {_counted(plan)} planned, {untouched}",
        *_skipped(plan),
        *_shipped(plan),
        *_unreached(plan),
        *_plain(plan),
        f"plan       {file}; its Grams: {plan.grams[0]}",
        f"plot       {plot or f'none: {HOW}'}",
        f"write it   plastic compress SRC OUT --plan {shlex.quote(str(file))}"
        + (" --bits-per-weight ..." if len(plan.budgets) > 1 else ""),
    ]


def _predicted(b: BitsPlan) -> str:
    """Return the prediction, and between what it lies in nine cases of ten."""
    if b.interval is None:
        return f"{1e3 * b.predicted:.3f} mnat"
    low, high = (1e3 * end for end in b.interval)
    return f"{1e3 * b.predicted:.3g} ({low:.3g} to {high:.3g}) mnat"


def _plain(plan: LossPlan) -> list[Table | str]:
    """Return a line for every budget at which one width for all was found to be better."""
    return [
        f"one width  for {b.asked}: {1e3 * b.predicted:.3g} mnat as tried, and by prices "
        f"{1e3 * b.rival_kl:.3g}"
        for b in plan.budgets
        if b.by == "one width" and b.rival_kl is not None
    ]


def _counted(plan: LossPlan) -> str:
    """Count the layers of each kind: ``"29 linear, 1 embedding, 6 experts"``."""
    kinds = Counter(m.matrix.kind for m in plan.matrices)
    return ", ".join(f"{kinds[kind]} {kind}" for kind in get_args(Kind) if kinds[kind])


def _skipped(plan: LossPlan) -> list[Table | str]:
    """Return a line for every reason why weights could not be planned, with their bytes."""
    lines: list[Table | str] = []
    for reason in dict.fromkeys(m.reason for m in plan.skipped):
        those = [m for m in plan.skipped if m.reason == reason]
        nbytes = format_bytes(sum(m.nbytes for m in those))
        names = ", ".join(m.name for m in those)
        lines.append(f"skipped    {len(those)} of {nbytes}, {reason}: {names}")
    return lines


def _shipped(plan: LossPlan) -> list[Table | str]:
    """Return a line about the shipped texts, if the plan was made with them."""
    named = plan.calibration.get("set")
    return [f"text       {named['name']}, version {named['version']}"] if named else []


def _unreached(plan: LossPlan) -> list[Table | str]:
    """Return a line about experts that the text did not reach, if there are any."""
    count = plan.calibration.get("unreached_experts", 0)
    told = f"experts    {count} that no token reached were given the Grams of the others"
    return [told] if count else []
