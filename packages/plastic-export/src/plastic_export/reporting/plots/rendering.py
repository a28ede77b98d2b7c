"""Figures as bytes, which depend on what is drawn alone."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from plastic_export.reporting.plots.replacing import PNG_METADATA

if TYPE_CHECKING:  # matplotlib takes longer to import than most commands to run
    from matplotlib.figure import Figure


def rendered(figure: Figure, format: str, *, dpi: int = 160) -> bytes:
    """Return a figure as PNG or SVG; equal figures give equal bytes, and text is drawn as paths."""
    import matplotlib

    metadata: dict[str, Any] = {"png": PNG_METADATA}.get(
        format, dict.fromkeys(("Creator", "Date", "Format", "Type"))
    )
    out = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "plastic", "svg.fonttype": "path"}):
        figure.savefig(out, format=format, dpi=dpi, metadata=metadata)
    return out.getvalue()
