"""One page about a training run, whole in itself, and its pictures."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from plastic_core.files import AtomicFile, FormatError
from plastic_runtime import format_bytes

from plastic_export.reporting.pages.run_facts import facts
from plastic_export.reporting.plots.drawing import check_drawing
from plastic_export.reporting.plots.replacing import HTML_METADATA, check_replaceable
from plastic_export.reporting.plots.run_plots import (
    bytes_figure,
    loss_figure,
    rank_figure,
    rendered,
)
from plastic_export.training.history import History, read_history

PAGE = "report.html"
MOST_EVENTS = 2000  # rows of the table; the log has all

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 62em; margin: 2em auto;
  padding: 0 1em; }
h1 { font-size: 1.5em; } h2 { font-size: 1.15em; margin-top: 2em; }
figure { margin: 0; } img { width: 100%; height: auto; } figcaption { color: #555; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .15em .9em .15em 0; text-align: left; vertical-align: top; }
th { border-bottom: 1px solid #999; font-weight: 600; } td.n, th.n { text-align: right; }
summary { cursor: pointer; } code { font-size: .92em; }
"""
_HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width">
{generator}
<title>{title}</title><style>{style}</style></head><body>
<h1>{title}</h1>
"""
_CAPTIONS = {
    "loss": "Loss over the steps. Below, what changed and when: the larger the mark, the more "
    "components. Dotted lines mark the same steps above.",
    "ranks": "Rank of every layer over the steps; at the right its first and its last rank, where "
    "there is room.",
    "bytes": "Bytes of all factors: awake in the layers, and asleep beside them, to be woken with "
    "the same bits.",
}


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
        ['report-loss.png', 'report-ranks.png', 'report-bytes.png']
    """
    path = Path(run)
    history = read_history(path, losses=losses)
    folder = Path(out) if out is not None else path if path.is_dir() else path.parent
    if folder.exists() and not folder.is_dir():
        raise FormatError.about(folder, "it is not a folder", "name another --out")
    figures = run_figures(history)
    page, pictures = folder / PAGE, [folder / f"report-{name}.png" for name in figures]
    for written in (page, *pictures):
        check_replaceable(written)
    folder.mkdir(parents=True, exist_ok=True)
    for picture, (png, _) in zip(pictures, figures.values(), strict=True):
        with AtomicFile(picture) as file:
            file.write(png)
    with AtomicFile(page) as file:
        file.write(html(history, {name: svg for name, (_, svg) in figures.items()}).encode())
    return Report(page, tuple(pictures), history)


def run_figures(history: History) -> dict[str, tuple[bytes, bytes]]:
    """Return every picture that the history has something for, by name, as PNG and as SVG."""
    check_drawing()
    from matplotlib import style

    draw = {
        "loss": (loss_figure, history.train or history.valid),
        "ranks": (rank_figure, history.layers),
        "bytes": (bytes_figure, history.awake),
    }
    with style.context("default"):
        return {
            name: (rendered(figure(history), "png"), rendered(figure(history), "svg"))
            for name, (figure, shown) in draw.items()
            if shown
        }


def html(history: History, pictures: dict[str, bytes]) -> str:
    """Return the page; ``pictures`` are SVG by name."""
    parts = [
        _HEAD.format(
            generator=HTML_METADATA,
            title=escape(f"Ranks in training: {history.name}"),
            style=_STYLE,
        )
    ]
    parts.append(_facts(history))
    for name, svg in pictures.items():
        data = base64.b64encode(svg).decode()
        parts.append(
            f'<h2>{name.capitalize()}</h2><figure><img alt="{escape(_CAPTIONS[name])}" '
            f'src="data:image/svg+xml;base64,{data}">'
            f"<figcaption>{escape(_CAPTIONS[name])}</figcaption></figure>"
        )
    layers = _table(("layer", "first", "least", "most", "last"), _layer_rows(history))
    parts.append(f"<h2>Layers</h2><details><summary>{len(history.layers)} layers</summary>")
    parts.append(f"{layers}</details><h2>Changes</h2>")
    parts.append(_changes(history))
    return "".join([*parts, "</body></html>\n"])


def _facts(history: History) -> str:
    rows = (
        f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>"
        for name, value in facts(history).items()
    )
    return f"<table>{''.join(rows)}</table>"


def _layer_rows(history: History) -> Iterator[tuple[str, ...]]:
    for layer in history.layers:
        ranks = [rank for _, rank in layer.ranks]
        yield layer.path, *(str(r) for r in (layer.first, min(ranks), max(ranks), layer.last))


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
    summary = f"<summary>{len(history.events)} changes of rank</summary>"
    return f"<details>{summary}{_table(names, rows, words=3)}{note}</details>"


def _table(names: Sequence[str], rows: Iterator[tuple[str, ...]], *, words: int = 1) -> str:
    """Return an HTML table; all but the first ``words`` columns are numbers."""

    def line(tag: str, cells: Sequence[str]) -> str:
        kinds = ["" if i < words else ' class="n"' for i in range(len(cells))]
        pairs = zip(kinds, cells, strict=True)
        return f"<tr>{''.join(f'<{tag}{k}>{escape(c)}</{tag}>' for k, c in pairs)}</tr>"

    return f"<table>{line('th', names)}{''.join(line('td', row) for row in rows)}</table>"
