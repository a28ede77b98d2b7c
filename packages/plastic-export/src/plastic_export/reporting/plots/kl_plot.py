"""A plot of divergence over size: the mean and the 99.9th percentile of every checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from os import PathLike
from typing import TYPE_CHECKING, Any, NamedTuple

from plastic_export.evaluation.estimates import Evaluation
from plastic_export.reporting.plots.size_plot import (
    bits_above,
    save_png,
    scale_divergence,
    size_unit,
)
from plastic_export.reporting.plots.themes import backdrop

if TYPE_CHECKING:  # matplotlib takes longer to import than most commands to run
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FARTHEST = 99.9
"""The percentile that is drawn beside the mean."""
MARGIN = 1.5  # above and below what is drawn


def save_kl_plot(file: str | PathLike[str], results: Sequence[Evaluation]) -> None:
    """Save `kl_figure` as a PNG of 1600 x 1000 pixels, complete or not at all.

    Raises:
        ValueError: As `kl_figure` does, or if ``file`` is a link or a folder.
        OSError: If the file cannot be written.
        ModuleNotFoundError: If matplotlib is not installed.
    """
    save_png(file, lambda: kl_figure(results))


def kl_figure(results: Sequence[Evaluation]) -> Figure:
    """Draw the KL divergence in millinats per token, on a logarithmic axis, over model bytes.

    A circle is a mean and a cross the 99.9th percentile, of a text in its colour; what is above
    one another belongs together. Left out are what no logarithmic axis has (zero, infinity) and
    percentiles that the text is too short for.

    Args:
        results: What `compare` returned, with a reference.

    Returns:
        A figure of 8 x 5 inches; no window and no state of pyplot is involved.

    Raises:
        ValueError: If there is nothing to draw.
    """
    from matplotlib.figure import Figure

    points = [point for r in results for point in _points(r)]
    if not points:
        raise ValueError("`plot` needs a `reference`, and a checkpoint that differs from it")
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    unit, name = size_unit(max(_nbytes(p.of) for p in points))
    _draw_points(axes, points, unit)
    heights = [p.height for p in points]
    axes.set_ylim(min(heights) / MARGIN, max(heights) * MARGIN)  # one height alone has no range
    scale_divergence(axes, "KL divergence to the reference, millinats per token")
    axes.set_xlabel(f"model files, {name}")
    sizes = [p.of.size for p in points if p.of.size and p.of.size.bits_per_weight]
    bits = [size.bits_per_weight or 0 for size in sizes]
    bits_above(axes, [size.model_bytes / unit for size in sizes], bits)
    axes.legend(frameon=False)
    return figure


class _Point(NamedTuple):
    """A divergence of a checkpoint on a text, in millinats."""

    of: Evaluation
    kind: str
    height: float


def _points(r: Evaluation) -> list[_Point]:
    """Return what can be drawn of a result, the mean first."""
    far = r.distance and r.distance.kl_over_tokens.percentiles[FARTHEST]
    found = {"mean": r.kl, f"{FARTHEST} %": far}
    return [
        _Point(r, kind, 1e3 * kl) for kind, kl in found.items() if kl and isfinite(kl) and kl > 0
    ]


def _draw_points(axes: Axes, points: Sequence[_Point], unit: int) -> None:
    """Markers, a colour per text, and beside the first of a result the checkpoint's name."""
    colors = {text: f"C{i}" for i, text in enumerate(dict.fromkeys(p.of.text for p in points))}
    for text, kind in dict.fromkeys((p.of.text, p.kind) for p in points):
        own = [p for p in points if (p.of.text, p.kind) == (text, kind)]
        sizes, heights = [_nbytes(p.of) / unit for p in own], [p.height for p in own]
        style: Any = {"color": colors[text], "markerfacecolor": backdrop()}
        axes.plot(sizes, heights, "o" if kind == "mean" else "x", label=f"{text}, {kind}", **style)
    for p in {id(p.of): p for p in reversed(points)}.values():
        axes.annotate(
            p.of.checkpoint,
            (_nbytes(p.of) / unit, p.height),
            xytext=(7, 5),
            textcoords="offset points",
            fontsize="small",
            parse_math=False,
        )


def _nbytes(r: Evaluation) -> int:
    return r.size.model_bytes if r.size else 1
