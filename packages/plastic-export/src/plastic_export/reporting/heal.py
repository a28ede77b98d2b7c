"""The output of ``plastic heal``."""

from __future__ import annotations

from dataclasses import asdict

from plastic_export.healing.heal_folder import Healed
from plastic_export.reporting.tables import Presented, figures


def present_healed(result: Healed) -> Presented:
    """Show the divergence as it fell, and what was written."""
    table = figures("after step", "KL to reference, mnat")
    for step, kl in result.measured:
        table.add_row(str(step), f"{1e3 * kl:.4f}")
    learned, held_out = result.windows
    trained = (
        f"trained    {result.parameters:,} numbers in {result.tensors} tensors on {learned} "
        f"windows; judged by {held_out} held out"
    )
    if result.padding:
        trained += (
            f"; compared on the {result.vocabulary} tokens that both know, "
            f"{result.padding} rows of padding take no part"
        )
    written = f"written    {result.out}"
    lines = [_verdict(result), trained, _loaded(result), written]
    return Presented(asdict(result), [table, "", *lines])


def _loaded(result: Healed) -> str:
    if result.kl_loaded is None:
        return "unchecked  --no-check: what was written was not loaded again"
    kl = 1e3 * result.kl_loaded
    return f"checked    loaded again, KL {kl:.4f} millinats per token on the held-out windows"


def _verdict(result: Healed) -> str:
    if not result.step:
        return "healed     no: nothing was better than the start, so every tensor is as it was"
    before, after = 1e3 * result.kl_before, 1e3 * result.kl_after
    return (
        f"healed     KL {before:.4f} -> {after:.4f} millinats per token ({after / before:.1%}), "
        f"the values of step {result.step}"
    )
