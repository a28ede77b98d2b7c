"""The pictures of a training run: losses with its events, ranks per layer, bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from plastic_runtime.log import CHANGES

from plastic_export.reporting.plots.size_plot import UNITS
from plastic_export.reporting.plots.themes import ink
from plastic_export.training.forgetting.dial_file import DialFile
from plastic_export.training.history import History, LayerHistory, Series
from plastic_export.training.sizes.curve import RunSize

if TYPE_CHECKING:  # matplotlib takes longer to import than most commands to run
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, told apart by colour-blind readers; the marker says the same again.
MARKS = {"grow": ("#0072B2", "^"), "shrink": ("#D55E00", "v"), "wake": ("#009E73", "o")}
AWAKE, ASLEEP = "#0072B2", "#E69F00"
LIMIT, WRITTEN = "#D55E00", "#0072B2"
WIDTH = 9.0  # inches
TALLEST_ROW, LEAST_ROW, TALLEST_MAP = 0.22, 0.03, 14.0  # inches
LEGIBLE_ROW = 0.11  # inches that a label of its own needs
MOST_MARKED = 60  # points of a line that are marked


def loss_figure(history: History) -> Figure:
    """Draw training and validation loss over the steps, and when ranks changed below them.

    Args:
        history: A history with at least one loss.
    """
    figure = _figure(5.0)
    losses, events = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    for series, kind, color, width in (
        (history.train, "training", "0.6", 1.0),
        (history.valid, "validation", ink(), 1.4),
    ):
        if series:
            style: Any = {"color": color, "linewidth": width, "label": kind, "clip_on": False}
            marker = "." if len(series) <= MOST_MARKED else ""
            size = 12 if len(series) == 1 else 6
            losses.plot(*_points(series), marker=marker, markersize=size, **style)
    losses.set_ylabel("loss, nats per token")
    losses.grid()
    losses.legend(frameon=False, ncols=2, loc="lower left", bbox_to_anchor=(0, 1))
    for step in {step for step, _ in history.events}:
        losses.axvline(step, color="0.6", linestyle=":", zorder=0)
    _draw_events(events, history)
    _steps_below(events, history)
    return figure


def rank_figure(history: History) -> Figure:
    """Draw the rank of every layer over the steps as a map, one row per layer.

    First and last rank stand at the right. Where rows are too low for labels, only the first of
    each block has one, and changes are not marked.

    Args:
        history: A history with at least one layer.
    """
    layers = history.layers
    row = float(np.clip(TALLEST_MAP / len(layers), LEAST_ROW, TALLEST_ROW))
    figure = _figure(row * len(layers) + 1.3)
    axes = figure.add_subplot()
    edges, ranks = rank_map(history)
    rows = np.arange(len(layers) + 1) - 0.5
    top = max(1, int(ranks.max()))
    image = axes.pcolormesh(edges, rows, ranks, cmap="viridis", vmin=0, vmax=top, rasterized=True)
    axes.invert_yaxis()
    _label_rows(axes, layers, row)
    if row >= LEGIBLE_ROW:
        _mark_changes(axes, history, row)
    _steps_below(axes, history)
    height = float(figure.get_size_inches()[1])
    bar = figure.colorbar(image, ax=axes, pad=0.02, aspect=30, shrink=min(1.0, 4 / height))
    bar.set_label("rank")
    bar.locator = _whole_numbers()
    bar.update_ticks()
    return figure


def bytes_figure(history: History) -> Figure:
    """Draw the bytes of all factors awake and asleep over the steps, one above the other.

    Args:
        history: A history with at least one change, or with the bytes at the start.
    """
    figure = _figure(3.2)
    axes = figure.add_subplot()
    steps, awake = _points((*history.awake, (history.steps, history.awake[-1][1])))
    asleep = np.array([*(v for _, v in history.asleep), history.asleep[-1][1]])
    top = max(float((awake + asleep).max()), float(history.max_bytes or 0))
    power = _power(top)
    unit = 1024.0**power
    fill: Any = {"step": "post", "linewidth": 0}
    axes.fill_between(steps, awake / unit, color=AWAKE, label="awake", alpha=0.85, **fill)
    total = (awake + asleep) / unit
    axes.fill_between(steps, awake / unit, total, color=ASLEEP, label="asleep", **fill)
    if history.max_bytes is not None:
        axes.axhline(history.max_bytes / unit, color=ink(), linestyle="--", label="ceiling")
    axes.set_ylim(0, 1.12 * top / unit)
    axes.set_ylabel(f"factors, {UNITS[power]}")
    axes.set_axisbelow(True)
    axes.grid()
    axes.legend(frameon=False, ncols=3, loc="lower left", bbox_to_anchor=(0, 1))
    _steps_below(axes, history)
    return figure


def dial_figure(dial: DialFile) -> Figure:
    """Draw the validation loss and the divergence from the base over the factor on every ``S``."""
    figure = _figure(4.0)
    learnt, forgotten = figure.subplots(2, 1, sharex=True)
    scales = [point.scale for point in dial.curve]
    style: Any = {"color": ink(), "marker": "."}
    learnt.plot(scales, [point.loss for point in dial.curve], **style)
    forgotten.plot(scales, [point.forgotten for point in dial.curve], **style)
    forgotten.axhline(dial.limit, color=LIMIT, linestyle="--")
    for axes, label in ((learnt, "validation loss"), (forgotten, "nats from the base")):
        axes.axvline(dial.points[0].scale, color=WRITTEN, linestyle=":")
        axes.set_ylabel(label)
        axes.grid()
    forgotten.set_xlabel("factor on S")
    return figure


def sizes_figure(sizes: Sequence[RunSize]) -> Figure:
    """Draw the validation loss of the adapters over their bytes.

    Args:
        sizes: What was measured, at least one size.
    """
    figure = _figure(3.2)
    axes = figure.add_subplot()
    power = _power(max(size.nbytes for size in sizes))
    drawn = sorted(sizes)
    nbytes = [size.nbytes / 1024.0**power for size in drawn]
    axes.plot(nbytes, [size.loss for size in drawn], color=ink(), marker=".", clip_on=False)
    axes.set_xlim(0, 1.02 * nbytes[-1])
    axes.set_xlabel(f"adapter, {UNITS[power]}")
    axes.set_ylabel("validation loss")
    axes.grid()
    return figure


def rank_map(history: History) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return edges of equal rank in time ``(t + 1,)`` and the ranks between ``(layers, t)``."""
    changes = {step for layer in history.layers for step, _ in layer.ranks}
    starts = np.array(sorted(changes | {0}))
    end = max(history.steps, int(starts[-1]) + 1)
    ranks = np.zeros((len(history.layers), len(starts)))
    for row, layer in zip(ranks, history.layers, strict=True):
        for step, rank in layer.ranks:
            row[np.searchsorted(starts, step) :] = rank
    return np.append(starts, end).astype(np.float64), ranks


def short_names(paths: Sequence[str]) -> list[str]:
    """Return the paths without the parts that all of those inside blocks begin with."""
    parts = [path.split(".") for path in paths]
    inside = [p for p in parts if any(part.isdigit() for part in p)] or parts
    shared = 0
    while all(len(p) > shared + 1 and p[shared] == inside[0][shared] for p in inside):
        shared += 1
    prefix = inside[0][:shared]
    return [".".join(p[shared:] if p[:shared] == prefix else p) for p in parts]


def _figure(height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(WIDTH, height), layout="constrained")


def _power(most: float) -> int:
    """Return the power of 1024 that bytes are written in."""
    return min(len(UNITS) - 1, (max(1, int(most)).bit_length() - 1) // 10)


def _points(series: Series) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    steps, values = np.array(series, np.float64).T
    return steps, values


def _draw_events(axes: Axes, history: History) -> None:
    """One row per kind of event, a mark per step, its area the share of the components moved."""
    moved: dict[tuple[str, int], int] = {}
    for step, event in history.events:
        key = event.action, step
        moved[key] = moved.get(key, 0) + abs(event.rank_after - event.rank_before)
    most = max(moved.values(), default=1)
    for (action, step), count in moved.items():
        color, marker = MARKS[action]
        area = 20 + 60 * count / most
        style: Any = {"color": color, "marker": marker, "clip_on": False}
        axes.scatter([step], [CHANGES.index(action)], area, **style)
    axes.set_yticks(range(len(CHANGES)), [_counted(history, action) for action in CHANGES])
    axes.set_ylim(len(CHANGES) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.set_axisbelow(True)
    axes.grid()


def _counted(history: History, action: str) -> str:
    return f"{action}, {sum(e.action == action for _, e in history.events)} x"


def _label_rows(axes: Axes, layers: Sequence[LayerHistory], row: float) -> None:
    """Names at the left, first and last rank at the right."""
    names = short_names([layer.path for layer in layers])
    size = min(8.0, 72 * row * 0.8)
    shown = list(range(len(names)))
    if row < LEGIBLE_ROW:
        blocks = [name.split(".")[0] for name in names]
        firsts = [i for i, block in enumerate(blocks) if i == 0 or block != blocks[i - 1]]
        every = max(1, round(LEGIBLE_ROW * len(firsts) / (row * len(names))))
        shown, size = firsts[::every], 7.0
        names = [f"block {block}" if block.isdigit() else block for block in blocks]
        for i in firsts[1:]:
            axes.axhline(i - 0.5, color="white", linewidth=0.5)
    axes.set_yticks(shown, [names[i] for i in shown], fontsize=size, parse_math=False)
    if row < LEGIBLE_ROW:
        return
    above = axes.secondary_yaxis("right")
    ends = [f"{layers[i].first} \N{RIGHTWARDS ARROW} {layers[i].last}" for i in shown]
    above.set_yticks(shown, ends, fontsize=size)
    above.tick_params(length=0)


def _mark_changes(axes: Axes, history: History, row: float) -> None:
    """The kind of every change, where it happened and to which layer."""
    place = {layer.path: i for i, layer in enumerate(history.layers)}
    area = (72 * row * 0.45) ** 2
    for action, (color, marker) in MARKS.items():
        drawn = [(step, place[e.layer]) for step, e in history.events if e.action == action]
        if drawn:
            steps, rows = zip(*drawn, strict=True)
            axes.scatter(
                steps, rows, area, color=color, marker=marker, edgecolors="white",
                linewidths=0.4, label=action, zorder=3, clip_on=False,
            )  # fmt: skip
    if history.events:
        axes.legend(frameon=False, ncols=3, loc="lower left", bbox_to_anchor=(0, 1))


def _steps_below(axes: Axes, history: History) -> None:
    axes.set_xlabel(f"{history.unit}s")
    axes.set_xlim(0, max(1, history.steps))
    axes.xaxis.set_major_locator(_whole_numbers())


def _whole_numbers() -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(integer=True)
