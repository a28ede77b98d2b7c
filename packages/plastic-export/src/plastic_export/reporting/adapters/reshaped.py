"""The output of ``plastic resize``, and of ``plastic merge`` where it writes an adapter."""

from __future__ import annotations

from dataclasses import asdict

from plastic_export.reporting.tables import Presented
from plastic_export.reshaping.resizing import Reshaped


def present_reshaped(result: Reshaped) -> Presented:
    """Say how large it is, which ranks it has and what was lost."""
    before, after = result.ranks_before.values(), result.ranks.values()
    left = [path for path, rank in result.ranks.items() if not rank]
    lines = [
        f"{result.out}: {result.nbytes:,} bytes",
        f"ranks      {min(after)} to {max(after)}, from {min(before)} to {max(before)}",
        f"error      {result.relative_error:.2e} of its norm over {len(after)} layers",
    ]
    if left:
        more = f" and {len(left) - 1} more" if len(left) > 1 else ""
        lines.append(f"left out   {left[0]}{more}")
    return Presented(asdict(result), list(lines))
