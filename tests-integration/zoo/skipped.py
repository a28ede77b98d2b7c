"""Types of mlx-lm that have no row, with the reason."""

from __future__ import annotations

SKIPPED: dict[str, str] = {}
"""Model type: why it has no row."""
