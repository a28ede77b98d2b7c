"""Mixtures of experts: tiny configurations, and the form in which they are published."""

from __future__ import annotations

from zoo.dense import Config, Publish

CONFIGS: dict[str, Config] = {}
"""``config.json`` of each type; ``building`` adds ``model_type`` and what all have."""

PUBLISHED: dict[str, Publish] = {}
"""Types whose published form is another than mlx-lm's, and the function that makes it."""
