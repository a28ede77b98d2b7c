"""Ranks and alphas of single layers, matched with their names as PEFT matches them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")


def pattern_value(patterns: Mapping[str, T], path: str, default: T) -> T:
    """Return what ``rank_pattern`` or ``alpha_pattern`` says of a layer.

    A key is a regular expression that the end of the path matches, from a dot on. The first key
    of the mapping that does is the one that counts.

    Args:
        patterns: The mapping of ``adapter_config.json``.
        path: The path of the layer in the base.
        default: The value of layers that no key matches.

    Raises:
        re.error: If a key is no regular expression.
    """
    for key, value in patterns.items():
        if re.match(rf"(.*\.)?({key})$", path):
            return value
    return default


def pattern_key(path: str) -> str:
    """Return the key that matches this path alone; a dot stays one, as other readers expect."""
    return re.escape(path).replace("\\.", ".").replace("\\-", "-")
