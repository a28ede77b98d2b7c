"""What ``plastic evaluate --json`` measured, for a page about a compression."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plastic_core.files import FormatError, read_json

from plastic_export.reporting.pages.page import table

_COLUMNS = (
    "text",
    "checkpoint",
    "worst windows, mnat",
    "windows",
    "perplexity",
    "KL, mnat",
    "top-1",
)


@dataclass(frozen=True)
class MeasuredText:
    """A checkpoint on a text.

    Attributes:
        text: Name of the text.
        checkpoint: What was measured.
        windows: How many windows were read.
        perplexity: Its perplexity; infinite or NaN where predictions are not finite.
        kl: Mean KL from the reference, nats per token; None without one.
        top1: Fraction of the tokens where both agree; None without a reference.
        worst: The windows of the largest KL, and that KL.
    """

    text: str
    checkpoint: str
    windows: int
    perplexity: float
    kl: float | None
    top1: float | None
    worst: tuple[tuple[int, float], ...]


def read_measured(file: Path) -> tuple[MeasuredText, ...]:
    """Read what ``plastic evaluate --json`` printed.

    Raises:
        FormatError: If it is something else, or nothing was measured on a text.
        OSError: If it cannot be read.
    """
    remedy = "name a file with what `plastic evaluate --text ... --json` printed"
    try:
        found = tuple(map(_measured, read_json(file)["evaluations"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, FormatError):
            raise
        raise FormatError.about(file, f"it is no evaluation ({error!r})", remedy) from None
    if not found:
        raise FormatError.about(file, "nothing was measured on a text", remedy)
    return found


def measured_table(found: Sequence[MeasuredText]) -> str:
    """Return a row for every text and checkpoint."""
    return table(_COLUMNS, map(_row, found), words=3)


def _measured(raw: Any) -> MeasuredText:
    distance = raw["distance"] or {}
    return MeasuredText(
        text=str(raw["text"]),
        checkpoint=str(raw["checkpoint"]),
        windows=int(raw["windows"]),
        perplexity=float(raw["perplexity"]),
        kl=None if raw["kl"] is None else float(raw["kl"]),
        top1=None if raw["top1"] is None else float(raw["top1"]),
        worst=tuple((int(w["window"]), float(w["kl"])) for w in distance.get("worst_windows", ())),
    )


def _row(m: MeasuredText) -> tuple[str, ...]:
    return (
        m.text,
        m.checkpoint,
        ", ".join(f"{1e3 * kl:.1f} in window {window}" for window, kl in m.worst),
        str(m.windows),
        f"{m.perplexity:.3f}",
        "" if m.kl is None else f"{1e3 * m.kl:.3f}",
        "" if m.top1 is None else f"{m.top1:.2%}",
    )
