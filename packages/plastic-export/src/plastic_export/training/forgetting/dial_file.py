"""The file in which a run keeps what factors on its ``S`` were measured to make of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plastic_core.files import FormatError, read_json, write_json

from plastic_export.training.forgetting.dial import DialPoint


@dataclass(frozen=True)
class DialFile:
    """Both losses of a finished run under factors on every ``S``.

    Attributes:
        limit: What may be forgotten, nats per token.
        points: What was measured, first the point that the adapters were written at.
    """

    limit: float
    points: tuple[DialPoint, ...]

    @property
    def curve(self) -> tuple[DialPoint, ...]:
        """Return every point once, the smallest factor first."""
        return tuple(sorted({*self.points}))

    def write(self, path: Path) -> None:
        """Write it: complete or not at all."""
        points = [point._asdict() for point in self.points]
        write_json(path, {"limit": self.limit, "points": points})


def read_dial_file(path: Path) -> DialFile:
    """Read what `DialFile.write` wrote.

    Raises:
        FormatError: If it is damaged.
        OSError: If it cannot be read.
    """
    record = read_json(path)
    limit: Any = record.get("limit")
    points: Any = record.get("points")
    is_sound = _is_number(limit) and isinstance(points, list) and len(points) > 0
    if not (is_sound and all(_is_point(point) for point in points)):
        reason = "a factor or a loss is missing or no finite number"
        raise FormatError.about(path, reason, "start the training again, which measures them")
    return DialFile(limit, tuple(DialPoint(**point) for point in points))


def _is_point(point: Any) -> bool:
    return (
        isinstance(point, Mapping)
        and point.keys() == {*DialPoint._fields}
        and all(_is_number(value) for value in point.values())
    )


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)
