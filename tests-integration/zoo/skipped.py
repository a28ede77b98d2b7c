"""Types of mlx-lm that have no row, with the reason."""

from __future__ import annotations

SKIPPED: dict[str, str] = {
    "muse_spark": "its attention runs in a kernel for Metal alone, also on the CPU",
    "prism_hadamard_qwen35": "is packed in 2 bits with rotations, and has no other form",
}
"""Model type: why it has no row."""
