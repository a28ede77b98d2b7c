"""A plot of divergence over size: the mean and the 99.9th percentile of every checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from os import PathLike
from typing import TYPE_CHECKING

from plastic_export.evaluation.estimates import Evaluation
from plastic_export.reporting.plots.size_plot import (
    bits_above,
    save_png,
    scale_divergence,
    size_unit,
)

if TYPE_CHECKING:  # matplotlib takes longer to import than most commands to run
    from matplotlib.figure import Figure

FARTHEST = 99.9
"""The percentile that is drawn beside the mean."""


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

    drawn = [(r, mean, far) for r in results for mean, far in [_heights(r)] if mean or far]
    if not drawn:
        raise ValueError("`plot` needs a `reference`, and a checkpoint that differs from it")
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    unit, name = size_unit(max(_nbytes(r) for r, *_ in drawn))
    texts = [*dict.fromkeys(r.text for r, *_ in drawn)]
    for number, text in enumerate(texts):
        own = [(r, mean, far) for r, mean, far in drawn if r.text == text]
        for kind, marker, heights in (
            ("mean", "o", [(r, mean) for r, mean, _ in own if mean]),
            (f"{FARTHEST} %", "x", [(r, far) for r, _, far in own if far]),
        ):
            if heights:
                axes.plot(
                    [_nbytes(r) / unit for r, _ in heights],
                    [1e3 * height for _, height in heights],
                    marker, color=f"C{number}", markerfacecolor="white", label=f"{text}, {kind}",
                )  # fmt: skip
    for r, mean, far in drawn:
        axes.annotate(
            r.checkpoint,
            (_nbytes(r) / unit, 1e3 * (mean or far or 0)),
            xytext=(7, 5),
            textcoords="offset points",
            fontsize="small",
            parse_math=False,
        )
    scale_divergence(axes, "KL divergence to the reference, millinats per token")
    axes.set_xlabel(f"model files, {name}")
    sized = [(_nbytes(r) / unit, r.size.bits_per_weight) for r, *_ in drawn if r.size]
    known = [(size, bits) for size, bits in sized if bits is not None]
    bits_above(axes, [size for size, _ in known], [bits for _, bits in known])
    axes.legend(frameon=False)
    return figure


def _heights(r: Evaluation) -> tuple[float | None, float | None]:
    """Return the mean and the percentile, None where there is none to draw."""
    far = r.distance and r.distance.kl_over_tokens.percentiles[FARTHEST]
    mean, far = (x if x and isfinite(x) and x > 0 else None for x in (r.kl, far))
    return mean, far


def _nbytes(r: Evaluation) -> int:
    return r.size.model_bytes if r.size else 1
