"""What became of every matrix, as a map: a row for every layer, a column for every projection."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import fsum
from typing import TYPE_CHECKING, Any, NamedTuple

from plastic_export.reporting.pages.compression_view import ShownMatrix
from plastic_export.reporting.plots.themes import backdrop

if TYPE_CHECKING:  # matplotlib takes longer to import than most commands to run
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

OUTSIDE = "outside"
"""The row of what stands in no numbered layer."""
USUAL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""The order of projections that most models have, as data passes through them."""
ROW, COLUMN = 0.24, 0.78  # inches
LEAST_WIDTH = 6.0  # inches
LABELLED_ROWS = 60  # above that, every second row and so on has a label, and no cell has


class Cell(NamedTuple):
    """A place in the map.

    Attributes:
        row: The number of the layer, or ``OUTSIDE``.
        column: The path of the projection in its layer; numbers in it, of experts say, are ``*``.
    """

    row: str
    column: str


@dataclass(frozen=True)
class LayerMap:
    """A map of one figure of every matrix.

    Attributes:
        rows: Layers, in order.
        columns: Projections, in order.
        shades: The shade of a cell, from 0 to 1; None for what is as it was.
        words: What is written into a cell.
    """

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    shades: Mapping[Cell, float | None]
    words: Mapping[Cell, str]


def cell_of(name: str) -> Cell:
    """Return the place of a matrix.

    Examples:
        >>> cell_of("model.layers.10.self_attn.q_proj.weight")
        Cell(row='10', column='self_attn.q_proj')
        >>> cell_of("lm_head.weight")
        Cell(row='outside', column='lm_head')
    """
    parts = name.removesuffix(".weight").split(".")
    numbers = [i for i, part in enumerate(parts) if part.isdigit()]
    if not numbers:
        return Cell(OUTSIDE, parts[-1])
    rest = ["*" if part.isdigit() else part for part in parts[numbers[0] + 1 :]]
    return Cell(parts[numbers[0]], ".".join(rest) or parts[numbers[0] - 1])


def bits_map(matrices: Sequence[ShownMatrix]) -> LayerMap:
    """Return the bits of a code of every backbone; the mean where a cell is several matrices.

    Matrices that are factors alone are called ``rank``.
    """

    def bits(m: ShownMatrix) -> float | None:
        return None if m.bits is None else float(m.bits)

    found = _map(matrices, bits, lambda value: (value - 1) / 7, "{:.2g}")
    factors = {cell_of(m.name): "rank" for m in matrices if m.bits is None and m.rank}
    words = {cell: word or factors.get(cell, "") for cell, word in found.words.items()}
    return replace(found, words=words)


def ranks_map(matrices: Sequence[ShownMatrix]) -> LayerMap:
    """Return the rank awake of every matrix, shaded by its share of the full rank."""
    shares = {cell_of(m.name): m.rank / min(m.shape) for m in matrices}
    most = max(shares.values()) or 1.0

    def rank(m: ShownMatrix) -> float | None:
        return float(m.rank) if m.rank else None

    ranks = _map(matrices, rank, lambda value: 0.0, "{:.0f}")
    shades = {cell: None if shade is None else shares[cell] / most
              for cell, shade in ranks.shades.items()}  # fmt: skip
    return replace(ranks, shades=shades)


def layer_figure(layers: LayerMap, title: str, unchanged: str) -> Figure:
    """Draw a map: the darker a cell, the more of the matrix is kept.

    Args:
        layers: The map.
        title: What is written into the cells.
        unchanged: What an empty cell of a matrix means.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    width = max(LEAST_WIDTH, 1.6 + COLUMN * len(layers.columns))
    row = ROW * min(1.0, LABELLED_ROWS / len(layers.rows))
    height = 1.9 + row * len(layers.rows)
    drawn = Figure(figsize=(width, height), layout="constrained")
    axes = drawn.add_subplot()
    colors = colormaps["viridis"]
    for cell, shade in layers.shades.items():
        x, y = layers.columns.index(cell.column), layers.rows.index(cell.row)
        color = "0.55" if shade is None else colors(0.95 - 0.8 * shade)
        axes.add_patch(_square(x, y, color))
        if row == ROW:
            dark = shade is None or shade > 0.35
            style: Any = {"color": "white" if dark else "black", "fontsize": 8}
            axes.text(x, y, layers.words[cell], ha="center", va="center", **style)
    _label(axes, layers)
    axes.set_title(title, loc="left", fontsize=10)
    if None in layers.shades.values():
        kept = Patch(facecolor="0.55", label=unchanged)
        axes.legend(handles=[kept], frameon=False, loc="lower right", bbox_to_anchor=(1, 1))
    return drawn


def _map(
    matrices: Sequence[ShownMatrix],
    value: Callable[[ShownMatrix], float | None],
    shade: Callable[[float], float],
    form: str,
) -> LayerMap:
    cells: dict[Cell, list[float]] = {}
    for m in matrices:
        found = value(m)
        cells.setdefault(cell_of(m.name), []).extend([] if found is None else [found])
    means = {cell: fsum(found) / len(found) if found else None for cell, found in cells.items()}
    numbers = sorted({c.row for c in cells if c.row != OUTSIDE}, key=int)
    outside = [OUTSIDE] if any(c.row == OUTSIDE for c in cells) else []
    return LayerMap(
        rows=(*numbers, *outside),
        columns=tuple(dict.fromkeys(c.column for c in sorted(cells, key=_order))),
        shades={cell: None if mean is None else shade(mean) for cell, mean in means.items()},
        words={cell: "" if mean is None else form.format(mean) for cell, mean in means.items()},
    )


def _order(cell: Cell) -> tuple[bool, int]:
    """Return a key: what stands in layers goes first, in the order of ``USUAL``."""
    last = cell.column.rpartition(".")[2]
    return cell.row == OUTSIDE, USUAL.index(last) if last in USUAL else len(USUAL)


def _square(x: int, y: int, color: Any) -> Patch:
    from matplotlib.patches import Rectangle

    return Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=color, edgecolor=backdrop(), linewidth=1)


def _label(axes: Axes, layers: LayerMap) -> None:
    """Names of projections above, numbers of layers at the left."""
    columns, rows = len(layers.columns), len(layers.rows)
    every = -(-rows // LABELLED_ROWS)
    axes.set_xlim(-0.5, columns - 0.5)
    axes.set_ylim(rows - 0.5, -0.5)
    axes.set_xticks(range(columns), layers.columns, rotation=40, ha="right", fontsize=8,
                    rotation_mode="anchor", parse_math=False)  # fmt: skip
    shown = range(0, rows, every)
    axes.set_yticks(shown, [layers.rows[i] for i in shown], fontsize=8)
    axes.set_ylabel("layer")
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)
