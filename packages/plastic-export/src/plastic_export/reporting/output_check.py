"""The line that says what running an output showed."""

from __future__ import annotations

from plastic_export.evaluation.output_check import OutputCheck


def check_line(checked: OutputCheck | None) -> str:
    """Say how far the output is from its source, or that nobody looked."""
    if checked is None:
        return "unchecked  --no-check: nothing was run through what was written"
    asked = "" if checked.predicted is None else f" ({1e3 * checked.predicted:.3f} predicted)"
    return (
        f"checked    {checked.tokens} tokens of {checked.text} through what was written: KL "
        f"{1e3 * checked.kl:.3f} millinats per token{asked}, top-1 {checked.top1:.1%}"
    )


def ran_line(tokens: int) -> str:
    """Say what ran through an output that was compared with nothing."""
    return f"checked    {tokens} tokens ran through it, every prediction finite"
