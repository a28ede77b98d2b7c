"""What cheap prices cost in quality: plans by the prices of ``plastic plan``, and by full ones."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from kept.measurements import Figures
from plastic_export import Calibration, execute_plan, plan_checkpoint

from costs.real import divergence_from

FULL: dict[str, Any] = {"thorough": True}
"""The arguments by which ``plan_checkpoint`` rounds every width in full."""


def planned_twice(
    source: str, text: str, heldout: str, windows: int, window: int, budgets: list[float]
) -> Figures:
    """The measured divergence of both plans at every budget, in nats per token."""
    with tempfile.TemporaryDirectory() as name:
        folder, found = Path(name), Figures()
        for prices, arguments in (("cheap", {}), ("full", FULL)):
            plan = folder / f"{prices}.json"
            if prices == "full":  # under the same Grams
                cheap = folder / "cheap.grams.npz"
                plan.with_suffix(".grams.npz").hardlink_to(cheap)
            amount = Calibration(text, window, windows)
            plan_checkpoint(source, plan, calibration=amount, budgets=budgets, **arguments)
            found[prices] = []
            for budget in budgets:
                out = folder / f"{prices}-{budget}"
                execute_plan(source, out, plan, budget=budget)
                found[prices].append(divergence_from(source, out, heldout))
        return found
