"""Rotary settings of ``config.json`` in the metadata of GGUF."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plastic_export.gguf.package import gguf_package


def add_rope(writer: Any, config: Mapping[str, Any], dimensions: int) -> None:
    """Add base and scaling of the rotary embedding.

    Args:
        writer: The writer.
        config: The configuration.
        dimensions: Dimensions of a head that are rotated.

    Raises:
        ValueError: If the scaling is of a kind that is not written here.
    """
    settings = rope_settings(config)
    writer.add_rope_dimension_count(dimensions)
    writer.add_rope_freq_base(float(settings.get("rope_theta", 10000.0)))
    kind = rope_kind(settings)
    if kind == "linear":
        writer.add_rope_scaling_type(gguf_package().RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(settings["factor"]))
    elif kind not in ("default", "llama3"):
        raise ValueError(f"the rotary scaling {kind!r} is not written here")


def rope_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return base and scaling, wherever the configuration has them."""
    scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
    theta = {"rope_theta": config["rope_theta"]} if config.get("rope_theta") else {}
    return {**theta, **scaling}


def rope_kind(settings: Mapping[str, Any]) -> str:
    """Return the kind of scaling, ``"default"`` where there is none."""
    return str(settings.get("rope_type") or settings.get("type") or "default")


def rope_factors(config: Mapping[str, Any], dimensions: int) -> NDArray[np.float32] | None:
    """Return what Llama 3 divides every frequency by; None without that scaling.

    Low frequencies are divided by the factor, high ones stay, and between the two wavelengths the
    share of either is linear in the number of turns within the original context.

    Args:
        config: The configuration.
        dimensions: Dimensions of a head that are rotated.

    Returns:
        Shape (dimensions / 2,).

    Examples:
        >>> llama3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0}
        >>> llama3 |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
        >>> config = {"rope_theta": 500000.0, "rope_scaling": llama3}
        >>> rope_factors(config, 8)
        array([1.       , 1.       , 1.6842105, 8.       ], dtype=float32)
    """
    settings = rope_settings(config)
    if rope_kind(settings) != "llama3":
        return None
    low, high = settings.get("low_freq_factor", 1.0), settings.get("high_freq_factor", 4.0)
    context = settings.get("original_max_position_embeddings", 8192)
    steps = np.arange(0, dimensions, 2) / dimensions
    turns = context / (2 * math.pi * float(settings["rope_theta"]) ** steps)
    share = np.clip((turns - low) / (high - low), 0.0, 1.0)
    factors = 1.0 / ((1.0 - share) / settings["factor"] + share)
    return np.asarray(factors, np.float32)
