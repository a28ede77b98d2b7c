"""One page about a training run, whole in itself, and its pictures."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from plastic_runtime import format_bytes

from plastic_export.reporting.pages.page import (
    facts_table,
    figure,
    folded,
    page,
    section,
    table,
    write_page,
)
from plastic_export.reporting.pages.run_facts import (
    CHANGE_NAMES,
    SIZE_NAMES,
    change_row,
    facts,
    run_size_row,
)
from plastic_export.reporting.plots.run_plots import (
    bytes_figure,
    dial_figure,
    loss_figure,
    rank_figure,
    sizes_figure,
)
from plastic_export.reporting.plots.themes import Picture, pictured
from plastic_export.training.history import History, read_history

MOST_EVENTS = 2000  # rows of the table; the log has all

_CAPTIONS = {
    "loss": "Loss over the steps. Below, what changed and when: the larger the mark, the more "
    "components. Dotted lines mark the same steps above.",
    "ranks": "Rank of every layer over the steps; at the right its first and its last rank, where "
    "there is room.",
    "dial": "What a factor on every S of the finished run makes of it: the loss on what it learnt, "
    "and the KL divergence from the model it began with on text that it was not trained on. The "
    "line across is the limit, the one upwards the factor that was written.",
    "sizes": "Validation loss of the finished run's adapters at smaller sizes, which plastic dial "
    "writes from the run alone: those components stay that are worth most. Bytes are those of the "
    "larger file.",
    "bytes": "Bytes of all factors: awake in the layers, and asleep beside them, to be woken with "
    "the same bits.",
}

_JUDGED = (
    "Losses are moving validation losses in nats per token: at the change, and when it was judged "
    "or ranks changed again; training went on in between. Seconds are those of the decision and of "
    "the change, without the compilation of the next step."
)


@dataclass(frozen=True)
class Report:
    """The files that `report` wrote.

    Attributes:
        page: The HTML page.
        pictures: The PNGs.
        history: What they show.

    Examples:
        >>> report("RUN", "PAGE").page
        PosixPath('PAGE/report.html')
    """

    page: Path
    pictures: tuple[Path, ...]
    history: History


def report(
    run: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    losses: str | os.PathLike[str] | None = None,
) -> Report:
    """Write a page about a training run: ``report.html`` and ``report-*.png``.

    The page is one file: pictures are inside, no script runs, nothing is fetched. It shows losses
    with the changes of rank, the rank of every layer, and bytes awake and asleep, over the steps;
    what was learnt and forgotten over the dial on ``S``, where there was a limit on forgetting;
    the validation loss of the adapters at smaller sizes, once the run has ended;
    and every change in a table. A run may still be going on.

    Args:
        run: A folder of ``plastic train``, or the events that a `PlasticityManager` logged.
        out: Folder for the files, made if missing; by default the run's. Earlier reports there
            are replaced, and no file of another origin.
        losses: Loss log (`read_losses`) beside a file of events.

    Returns:
        What was written, and what it shows.

    Raises:
        FormatError: If there is no such run, it tells nothing yet, a log is damaged, or a file of
            another origin has the name of one to write; nothing is written then.
        ValueError: If ``losses`` is given for a folder, or a file to write is a link or a folder.
        OSError: If a file cannot be read or written.
        ModuleNotFoundError: If matplotlib is not installed; nothing is written then.

    Examples:
        >>> result = report("RUN", "PAGE")
        >>> [picture.name for picture in result.pictures]
        ['report-loss.png', 'report-ranks.png', 'report-bytes.png', 'report-sizes.png']
    """
    path = Path(run)
    history = read_history(path, losses=losses)
    folder = Path(out) if out is not None else path if path.is_dir() else path.parent
    pictures = run_pictures(history)
    written, files = write_page(folder, html(history, pictures), pictures)
    return Report(written, files, history)


def run_pictures(history: History) -> dict[str, Picture]:
    """Return every picture that the history has something for, by name."""
    draw = {
        "loss": (loss_figure, history.train or history.valid),
        "ranks": (rank_figure, history.layers),
        "bytes": (bytes_figure, history.awake),
    }
    drawn = {name: partial(drawing, history) for name, (drawing, shown) in draw.items() if shown}
    if history.dial is not None:
        drawn["dial"] = partial(dial_figure, history.dial)
    if history.sizes:
        drawn["sizes"] = partial(sizes_figure, history.sizes)
    return {name: pictured(drawing) for name, drawing in drawn.items()}


def html(history: History, pictures: Mapping[str, Picture]) -> str:
    """Return the page about a run; ``pictures`` are those of `run_pictures`."""
    layers = table(("layer", "first", "least", "most", "last"), _layer_rows(history))
    return page(
        f"Ranks in training: {history.name}",
        [
            facts_table(facts(history)),
            *(
                section(name.capitalize(), figure(picture, _CAPTIONS[name]))
                for name, picture in pictures.items()
            ),
            *_sizes(history),
            *_gains(history),
            section("Layers", folded(f"{len(history.layers)} layers", layers)),
            section("Changes", _changes(history)),
        ],
    )


def _layer_rows(history: History) -> Iterator[tuple[str, ...]]:
    for layer in history.layers:
        ranks = [rank for _, rank in layer.ranks]
        yield layer.path, *(str(r) for r in (layer.first, min(ranks), max(ranks), layer.last))


def _sizes(history: History) -> Iterator[str]:
    """Yield the section about smaller sizes, if they were measured."""
    if history.sizes:
        yield section("Smaller sizes", table(SIZE_NAMES, map(run_size_row, history.sizes), words=0))


def _gains(history: History) -> Iterator[str]:
    """Yield the section about what every change of ranks cost and gained, if there was one."""
    if history.changes:
        rows = table(CHANGE_NAMES, map(change_row, history.changes))
        yield section("What every change cost and gained", f"{rows}<p>{_JUDGED}</p>")


def _changes(history: History) -> str:
    shown = history.events[:MOST_EVENTS]
    rows = (
        (
            e.layer,
            e.action,
            e.why,
            f"{step:,}",
            f"{e.rank_before} \N{RIGHTWARDS ARROW} {e.rank_after}",
            "" if e.score is None else f"{e.score:.3g}",
            "" if e.loss_before is None else f"{e.loss_before:.4f}",
            format_bytes(e.bytes_awake),
            format_bytes(e.bytes_asleep),
        )
        for step, e in shown
    )
    names = ("layer", "action", "why", "step", "rank", "score", "loss", "awake", "asleep")
    untold = len(history.events) - len(shown)
    note = f"<p>{untold} later ones are in the log.</p>" if untold else ""
    return folded(f"{len(history.events)} changes of rank", table(names, rows, words=3), note)
