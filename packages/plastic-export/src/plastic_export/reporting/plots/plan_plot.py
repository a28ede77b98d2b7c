"""The size-quality curve of a plan: what every budget would be predicted to cost."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from plastic_export.compression.plan_file import LossPlan
from plastic_export.format.table import FORMATS
from plastic_export.plan.budgets import Budget
from plastic_export.plan.offers import BitsPlan, plan_bits
from plastic_export.reporting.plots.size_plot import SizePoint, save_png, size_figure

if TYPE_CHECKING:  # matplotlib takes longer to import than most commands to run
    from matplotlib.figure import Figure

BUDGETS = 40  # along the curve
MOST_LABELS = 8  # of budgets, which may lie close together


def save_plan_plot(file: Path, plan: LossPlan) -> None:
    """Save predicted KL over size as a PNG: the plan's budgets, and the curve they lie on.

    Raises:
        ValueError: If ``file`` is a link or a folder.
        OSError: If it cannot be written.
        ModuleNotFoundError: If matplotlib is not installed.
    """
    save_png(file, lambda: plan_figure(plan))


def plan_figure(plan: LossPlan, made: str | None = None) -> Figure:
    """Draw predicted KL over size: the plan's budgets, and the curve they lie on.

    Args:
        plan: The plan.
        made: The budget that is marked, as the plan states it.
    """
    every = -(-len(plan.budgets) // MOST_LABELS)
    points = [
        _point(plan, b, "" if i % every else b.asked, is_marked=b.asked == made)
        for i, b in enumerate(plan.budgets)
    ]
    curve = [_point(plan, budget, "") for budget in plan_frontier(plan)]
    title = f"{plan.source['name']}, {plan.format}"
    return size_figure(points, frontier=[p for p in curve if p.predicted_kl > 0], title=title)


def plan_frontier(plan: LossPlan) -> tuple[BitsPlan, ...]:
    """Plans for budgets from the least possible to the size of the source, in equal ratios.

    Examples:
        >>> curve = plan_frontier(read_plan("plan.json"))
        >>> curve[0].nbytes < curve[-1].nbytes
        True
    """
    least = sum(min(o.nbytes for o in m.offers) for m in plan.matrices)
    most = sum(m.matrix.source_bytes for m in plan.matrices)
    sizes = plan.left_bytes + np.ceil(np.geomspace(least, most, BUDGETS))
    return plan_bits(
        plan.matrices,
        [Budget("size", float(size)) for size in sizes],
        left_bytes=plan.left_bytes,
        one_rank=FORMATS[plan.format].one_rank,
    )


def _point(plan: LossPlan, budget: BitsPlan, label: str, *, is_marked: bool = False) -> SizePoint:
    nbytes = budget.nbytes + plan.left_bytes
    return SizePoint(
        nbytes, budget.bits_per_weight, budget.predicted, label=label, is_marked=is_marked
    )
