"""The output of ``plastic export``."""

from __future__ import annotations

from dataclasses import asdict

from plastic_export.reporting.tables import Presented
from plastic_export.shipping.request import Exported


def present_exported(result: Exported) -> Presented:
    """Say what was written, in which types, and what the rounding added."""
    types = ", ".join(f"{count} {name}" for name, count in sorted(result.types.items()))
    lines = [f"{result.dest}: {result.nbytes:,} bytes, tensors: {types}"]
    if result.errors:
        worst = max(result.errors.values())
        kinds = ", ".join(f"{kind} {error:.1e}" for kind, error in result.errors.items())
        lines.append(f"rounded    relative error at most {worst:.1e}: {kinds}")
    lines += [f"note       {note}" for note in result.notes]
    return Presented(asdict(result), [*lines, f"run it     {result.how_to_run}"])
