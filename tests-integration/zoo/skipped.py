"""Modules among mlx-lm's models that have no row, with the reason."""

from __future__ import annotations

PART = "no models, but parts of them"
METAL = "runs in a kernel that MLX has for Metal alone"
SKIPPED: dict[str, str] = {
    "activations": PART,
    "base": PART,
    "bitlinear_layers": PART,
    "cache": PART,
    "gated_delta": PART,
    "mla": PART,
    "muse_spark": METAL,
    "olmo": "needs the package ai2-olmo, without which mlx-lm ends the process",
    "phi3small": "its gradient corrupts the memory of MLX on the CPU, which ends the process",
    "pipeline": PART,
    "rope_utils": PART,
    "ssm": PART,
    "switch_layers": PART,
}
"""Name: why it has no row."""
