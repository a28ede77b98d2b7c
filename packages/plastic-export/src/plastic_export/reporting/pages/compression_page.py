"""One page about a compression or a plan: bits and ranks by layer, sizes, every matrix."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from plastic_core.files import FormatError
from plastic_runtime import format_bytes

from plastic_export.reporting.pages.compression_facts import budget_facts, compression_facts
from plastic_export.reporting.pages.compression_view import (
    CompressionView,
    Left,
    ShownMatrix,
    is_compression,
    view_compression,
)
from plastic_export.reporting.pages.measured_text import MeasuredText, measured_table, read_measured
from plastic_export.reporting.pages.page import (
    facts_table,
    figure,
    folded,
    page,
    section,
    table,
    write_page,
)
from plastic_export.reporting.plots.layer_map import bits_map, layer_figure, ranks_map
from plastic_export.reporting.plots.plan_plot import plan_figure
from plastic_export.reporting.plots.themes import Picture, pictured

_BITS = (
    "Bits of a code of every backbone, a row for every layer and a column for every projection. "
    "Dark is much, light is little. Grey has no codes: it stays as it is in the source, or is "
    "factors alone where it says rank."
)
_RANKS = (
    "Components awake of every matrix. The shade is their share of the full rank: dark is much, "
    "light is little."
)
_SIZES = (
    "Predicted KL divergence from the source over the size of the checkpoint: the budgets of the "
    "plan, and the curve of all budgets. A star is the one that was carried out."
)
_COLUMNS = (
    "matrix", "shape", "bits", "group", "rank", "asleep", "bytes", "of source", "KL, mnat", "error",
)  # fmt: skip


@dataclass(frozen=True)
class CompressionReport:
    """The files that `report_compression` wrote.

    Attributes:
        page: The HTML page.
        pictures: The PNGs.
        view: What they show.

    Examples:
        >>> report_compression("PACKED", "PAGES").page
        PosixPath('PAGES/report.html')
    """

    page: Path
    pictures: tuple[Path, ...]
    view: CompressionView


def report_compression(
    compressed: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    plan: str | os.PathLike[str] | None = None,
    evaluation: str | os.PathLike[str] | None = None,
) -> CompressionReport:
    """Write a page about an output of any format, or a plan: ``report.html``, ``report-*.png``.

    The page is one file: pictures are inside, no script runs, nothing is fetched. It shows bits
    and ranks of every matrix on maps of layers and projections, what stays as it is, every matrix
    in a table, and, where a plan is at hand, predicted divergence over size.

    Args:
        compressed: A folder of ``plastic compress`` or ``plastic heal``, or a plan.
        out: Folder for the files, made if missing; by default beside ``compressed``, named after
            it with ``-report``. Earlier reports there are replaced, no file of another origin.
        plan: The plan that a folder was made by.
        evaluation: What ``plastic evaluate --json`` printed: its figures and the worst windows are
            shown too.

    Returns:
        What was written, and what it shows.

    Raises:
        FormatError: If it is neither, is damaged, or was made by another plan, or a file of
            another origin has the name of one to write; nothing is written then.
        ValueError: If a plan is named beside a plan.
        OSError: If a file cannot be read or written.
        ModuleNotFoundError: If matplotlib is not installed; nothing is written then.

    Examples:
        >>> result = report_compression("PACKED", "PAGES", plan="plan.json")
        >>> [picture.name for picture in result.pictures]
        ['report-bits.png', 'report-sizes.png']
    """
    place = Path(compressed)
    if not is_compression(place):
        reason = "it is neither an output of `plastic compress` nor a plan"
        raise FormatError.about(place, reason, "name one of them")
    view = view_compression(place, None if plan is None else Path(plan))
    measured = () if evaluation is None else read_measured(Path(evaluation))
    name = place.resolve().with_suffix("").name if place.is_file() else place.resolve().name
    folder = Path(out) if out is not None else place.with_name(f"{name}-report")
    pictures = compression_pictures(view)
    written, files = write_page(folder, compression_html(view, pictures, measured), pictures)
    return CompressionReport(written, files, view)


def compression_pictures(view: CompressionView) -> dict[str, Picture]:
    """Return the maps of every budget that has something for them, and the plot of sizes."""
    drawn = {}
    for asked, matrices in view.matrices.items():
        end = _ending(view, asked)
        if any(m.bits for m in matrices):
            drawn[f"bits{end}"] = partial(layer_figure, bits_map(matrices), "bits", "no codes")
        if any(m.rank for m in matrices):
            drawn[f"ranks{end}"] = partial(layer_figure, ranks_map(matrices), "rank", "no factors")
    if view.plan is not None:
        drawn["sizes"] = partial(plan_figure, view.plan, view.made)
    return {name: pictured(draw) for name, draw in drawn.items()}


def _ending(view: CompressionView, asked: str) -> str:
    """Return what tells the pictures of a budget from those of others, where there are others."""
    return "" if len(view.matrices) == 1 else f"-{asked.replace(' ', '-')}"


def compression_html(
    view: CompressionView, pictures: Mapping[str, Picture], measured: Sequence[MeasuredText] = ()
) -> str:
    """Return the page; ``pictures`` are those of `compression_pictures`."""
    return page(
        f"Compressed: {view.name}" if view.manifest else f"Plan: {view.name}",
        [
            facts_table(compression_facts(view)),
            *_sizes(pictures),
            *([section("Measured", measured_table(measured))] if measured else []),
            *(part for asked in view.matrices for part in _budget(view, asked, pictures)),
            section("What stays", _stays(view)),
        ],
    )


def _sizes(pictures: Mapping[str, Picture]) -> Iterator[str]:
    if "sizes" in pictures:
        yield section("Size and quality", figure(pictures["sizes"], _SIZES))


def _budget(view: CompressionView, asked: str, pictures: Mapping[str, Picture]) -> Iterator[str]:
    """The maps and the matrices of one budget."""
    end = _ending(view, asked)
    maps = {f"bits{end}": _BITS, f"ranks{end}": _RANKS}
    matrices = view.matrices[asked]
    unit = " bits per weight" if asked.replace(".", "").isdigit() else ""
    yield section(
        f"{asked}{unit}",
        facts_table(budget_facts(view, asked)),
        *(figure(pictures[name], words) for name, words in maps.items() if name in pictures),
        folded(f"{len(matrices)} matrices", table(_COLUMNS, map(_row, matrices))),
    )


def _row(m: ShownMatrix) -> Sequence[str]:
    stacked = f"{m.experts} x " if m.experts else ""
    factors = f" ({m.factor_bits} bits)" if m.factor_bits else ""
    return (
        m.name.removesuffix(".weight"),
        f"{stacked}{m.shape[0]} x {m.shape[1]}",
        "" if m.bits is None else str(m.bits),
        str(m.group_size or ""),
        f"{m.rank}{factors}" if m.rank else "",
        str(m.parked or ""),
        format_bytes(m.stored_bytes),
        f"{m.stored_bytes / m.source_bytes:.1%}",
        "" if m.predicted_kl is None else f"{1e3 * m.predicted_kl:.4f}",
        "" if m.relative_error is None else f"{m.relative_error:.4f}",
    )


def _stays(view: CompressionView) -> str:
    """What no budget touches, then what a budget leaves."""
    unchanged = {
        m.name: f"under {asked}"
        for asked, matrices in view.matrices.items()
        for m in matrices
        if m.is_unchanged
    }
    sizes = {m.name: m.source_bytes for matrices in view.matrices.values() for m in matrices}
    left = [*view.left, *(Left(name, sizes[name], why) for name, why in unchanged.items())]
    if not left:
        return "<p>Every weight was compressed; norms and biases stay.</p>"
    rows = ((one.name, one.reason, format_bytes(one.nbytes)) for one in left)
    return folded(f"{len(left)} weights", table(("weight", "why", "bytes"), rows, words=2))
