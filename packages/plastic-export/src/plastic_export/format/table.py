"""The formats by name. A new one has a file of its own and a line here."""

from __future__ import annotations

from plastic_export.format.adapter import AdapterFormat
from plastic_export.format.corrected import CorrectedFormat
from plastic_export.format.dense import DenseFormat
from plastic_export.format.factored import FactoredFormat
from plastic_export.format.mixed import MixedFormat
from plastic_export.format.protocol import Format

_ALL: tuple[Format, ...] = (
    FactoredFormat(),
    DenseFormat(),
    MixedFormat(),
    CorrectedFormat(),
    AdapterFormat(),
)

FORMATS: dict[str, Format] = {format.name: format for format in _ALL}
"""Every format by its name."""

RANK_FORMATS = tuple(name for name, format in FORMATS.items() if format.choices is None)
"""Names of those that `compress` writes, by rank."""

PLAN_FORMATS = tuple(name for name, format in FORMATS.items() if format.choices is not None)
"""Names of those that a plan is made for."""


def format_named(name: object, known: tuple[str, ...] = tuple(FORMATS)) -> Format:
    """Look a format up.

    Args:
        name: Its name.
        known: The names that are allowed.

    Raises:
        ValueError: If it is none of them.
    """
    if name not in known:
        raise ValueError(f"`format` must be one of {', '.join(known)}, got {name!r}")
    return FORMATS[str(name)]
