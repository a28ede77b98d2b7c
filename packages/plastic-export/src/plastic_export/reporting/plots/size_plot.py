"""A plot of quality over size: one PNG, black on white."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
from plastic_core.files import AtomicFile

from plastic_export.reporting.plots.rendering import rendered
from plastic_export.reporting.plots.themes import backdrop, ink, theme

if TYPE_CHECKING:  # matplotlib takes longer to import than most commands to run
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKED = "#D55E00"
UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")


@dataclass(frozen=True)
class SizePoint:
    """A checkpoint, planned or made.

    Attributes:
        nbytes: Bytes of the checkpoint.
        bits_per_weight: Bits per entry of the matrices that were planned.
        predicted_kl: KL divergence to the source, nats per token.
        measured_kl: The same as measured, if it was.
        label: Written beside the point.
        is_marked: Whether it is the one that the plot is about.
    """

    nbytes: int
    bits_per_weight: float
    predicted_kl: float
    measured_kl: float | None = None
    label: str = ""
    is_marked: bool = False


def save_size_plot(
    file: str | PathLike[str],
    points: Sequence[SizePoint],
    *,
    frontier: Sequence[SizePoint] = (),
    title: str = "",
) -> None:
    """Save `size_figure` as a PNG of 1600 x 1000 pixels.

    The bytes depend on the arguments and on the versions of matplotlib and its libraries alone:
    not on the user's settings of matplotlib, and no date or version is stored. The file is
    complete or not there.

    Args:
        file: PNG to write; a regular file of that name is replaced.
        points: The points, see `size_figure`.
        frontier: The frontier, see `size_figure`.
        title: The title, see `size_figure`.

    Raises:
        ValueError: As `size_figure` does, or if ``file`` is a link or a folder.
        OSError: If the file cannot be written.
        ModuleNotFoundError: If matplotlib is not installed.
    """
    save_png(file, lambda: size_figure(points, frontier=frontier, title=title))


def save_png(file: str | PathLike[str], draw: Callable[[], Figure]) -> None:
    """Save what ``draw`` returns, drawn in matplotlib's own style whatever the user's is.

    Raises:
        ValueError: If ``file`` is a link or a folder.
        OSError: If the file cannot be written.
        ModuleNotFoundError: If matplotlib is not installed.
    """
    with theme():
        png = rendered(draw(), "png", dpi=200)
    with AtomicFile(file) as out:
        out.write(png)


def size_figure(
    points: Sequence[SizePoint],
    *,
    frontier: Sequence[SizePoint] = (),
    title: str = "",
) -> Figure:
    """Draw KL divergence in millinats per token, on a logarithmic axis, over size.

    Size is given in bytes of the checkpoint below and in bits per weight above, on one straight
    line through all that is drawn; the axis above is left out where all sizes are one. Predictions
    are circles, measurements crosses. A prediction of zero, which no logarithmic axis has, stands
    on the lower edge as a triangle that points down.

    Args:
        points: What to draw, in any order.
        frontier: Plans for many budgets, drawn as a line. What costs nothing is not part of it.
        title: Written above.

    Returns:
        A figure of 8 x 5 inches; no window and no state of pyplot is involved.

    Raises:
        ValueError: If there is nothing to draw, a size is not positive, or a divergence is
            negative or not finite.
    """
    from matplotlib.figure import Figure

    _check(points, frontier)
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    every = sorted([*points, *frontier], key=lambda p: p.nbytes)
    unit, name = size_unit(every[-1].nbytes)
    _draw_frontier(axes, frontier, unit)
    _draw_points(axes, points, unit, _floor(every))
    scale_divergence(axes, "KL divergence to the source, millinats per token")
    axes.set_xlabel(f"checkpoint, {name}")
    bits_above(axes, [p.nbytes / unit for p in every], [p.bits_per_weight for p in every])
    if title:
        figure.suptitle(title, parse_math=False)
    axes.legend(frameon=False)
    return figure


def _check(points: Sequence[SizePoint], frontier: Sequence[SizePoint]) -> None:
    if not points and not frontier:
        raise ValueError("`points` must hold at least one point, or `frontier`, got none")
    for p in (*points, *frontier):
        measured = 0.0 if p.measured_kl is None else p.measured_kl
        costs = (p.predicted_kl, measured)
        if not (p.nbytes > 0 and all(isfinite(c) and c >= 0 for c in costs)):
            raise ValueError(f"sizes must be positive, divergences finite and at least 0, got {p}")


def _floor(every: Sequence[SizePoint]) -> float:
    """Return where zero is drawn, in nats: below everything else."""
    costs = [c for p in every for c in (p.predicted_kl, p.measured_kl) if c]
    return min(costs, default=1e-3) / 3


def _draw_frontier(axes: Axes, frontier: Sequence[SizePoint], unit: int) -> None:
    drawn = sorted((p.nbytes / unit, 1e3 * p.predicted_kl) for p in frontier if p.predicted_kl)
    if drawn:
        sizes, costs = np.array(drawn).T
        axes.plot(sizes, costs, color="0.6", label="predicted for every size")


def _draw_points(axes: Axes, points: Sequence[SizePoint], unit: int, floor: float) -> None:
    """Markers, and the labels on the upper right of the predictions."""
    free = [(p, floor) for p in points if not p.predicted_kl]
    predicted = [(p, p.predicted_kl) for p in points if p.predicted_kl]
    measured = [(p, p.measured_kl or floor) for p in points if p.measured_kl is not None]
    kinds = [
        ("predicted: 0", "v", free),
        ("predicted", "o", predicted),
        ("measured", "x", measured),
    ]
    for kind, marker, drawn in kinds:
        if drawn:
            sizes, costs = np.array([(p.nbytes / unit, 1e3 * cost) for p, cost in drawn]).T
            style: Any = {"color": ink(), "markerfacecolor": backdrop(), "linestyle": ""}
            axes.plot(sizes, costs, marker=marker, label=kind, **style)
    marked = [(p.nbytes / unit, 1e3 * cost) for p, cost in free + predicted if p.is_marked]
    if marked:
        axes.plot(*np.array(marked).T, "*", color=MARKED, markersize=14, label="this one", zorder=3)
    for p, cost in free + predicted:
        axes.annotate(
            p.label,
            (p.nbytes / unit, 1e3 * cost),
            xytext=(7, 5),
            textcoords="offset points",
            fontsize="small",
            parse_math=False,
        )


def size_unit(nbytes: int) -> tuple[int, str]:
    """Return the bytes of the largest unit that is not above so many, and its name.

    Examples:
        >>> size_unit(3_000_000)
        (1048576, 'MiB')
    """
    power = min(len(UNITS) - 1, (nbytes.bit_length() - 1) // 10)
    return 1024**power, UNITS[power]


def scale_divergence(axes: Axes, label: str) -> None:
    """Make the axis of divergences logarithmic, labelled at 1, 2 and 5 of every decade."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_ylabel(label)
    axes.grid()


def bits_above(axes: Axes, sizes: Sequence[float], bits: Sequence[float]) -> None:
    """Draw the second scale: bytes are bits per weight times the weights, plus what is not planned.

    Args:
        axes: Where the sizes are drawn.
        sizes: The sizes of all points, in the unit of the axis.
        bits: Their bits per weight.
    """
    if len({*sizes}) < 2 or len({*bits}) < 2:
        return
    slope = np.ptp(bits) / np.ptp(sizes)
    offset = min(bits) - slope * min(sizes)
    above = axes.secondary_xaxis(
        "top", functions=(lambda x: slope * x + offset, lambda b: (b - offset) / slope)
    )
    above.set_xlabel("bits per weight")
