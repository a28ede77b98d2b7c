"""A page whole in itself: pictures are inside, no script runs, nothing is fetched."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

from plastic_core.files import AtomicFile, FormatError

from plastic_export.reporting.plots.replacing import HTML_METADATA, check_replaceable
from plastic_export.reporting.plots.themes import INK, PAPER, Picture

PAGE = "report.html"

_STYLE = f"""
:root {{ color-scheme: light dark; --ink: #222; --paper: #fff; --faint: #555; --line: #999; }}
@media (prefers-color-scheme: dark) {{
  :root {{ --ink: {INK}; --paper: {PAPER}; --faint: #9a9da3; --line: #5a5d63; }} }}
* {{ box-sizing: border-box; }}
body {{ font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 72em; margin: 2em auto; padding: 0 1em; overflow-wrap: anywhere; }}
h1 {{ font-size: 1.5em; }} h2 {{ font-size: 1.15em; margin-top: 2em; }}
figure {{ margin: 1em 0; }} figcaption {{ color: var(--faint); max-width: 50em; }}
.wide {{ overflow-x: auto; }} .wide img {{ min-width: 40em; }}
img {{ display: block; width: 100%; height: auto; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .15em .9em .15em 0; text-align: left; vertical-align: top; }}
th {{ border-bottom: 1px solid var(--line); font-weight: 600; }}
td.n, th.n {{ text-align: right; }} td.n, td:first-child {{ white-space: nowrap; }}
summary {{ cursor: pointer; }}
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


def page(title: str, parts: Iterable[str]) -> str:
    """Return a page of a title and of parts in HTML."""
    head = _HEAD.format(generator=HTML_METADATA, title=escape(title), style=_STYLE)
    return "".join([head, *parts, "</body></html>\n"])


def section(title: str, *parts: str) -> str:
    """Return a heading and what stands below it."""
    return f"<h2>{escape(title)}</h2>{''.join(parts)}"


def figure(picture: Picture, caption: str) -> str:
    """Return a picture, in the theme that the reader's system asks for, with words below it."""
    dark, light = (base64.b64encode(svg).decode() for svg in (picture.dark, picture.light))
    kind, words = "data:image/svg+xml;base64,", escape(caption)
    return (
        '<figure><div class="wide"><picture>'
        f'<source media="(prefers-color-scheme: dark)" srcset="{kind}{dark}">'
        f'<img alt="{words}" src="{kind}{light}"></picture></div>'
        f"<figcaption>{words}</figcaption></figure>"
    )


def facts_table(facts: Mapping[str, str]) -> str:
    """Return names and what they are, a row each."""
    rows = (
        f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>" for name, value in facts.items()
    )
    return f"<table>{''.join(rows)}</table>"


def folded(summary: str, *parts: str) -> str:
    """Return what is shown when its summary is clicked."""
    return f"<details><summary>{escape(summary)}</summary>{''.join(parts)}</details>"


def table(names: Sequence[str], rows: Iterable[Sequence[str]], *, words: int = 1) -> str:
    """Return a table; all but the first ``words`` columns are numbers."""

    def line(tag: str, cells: Sequence[str]) -> str:
        kinds = ["" if i < words else ' class="n"' for i in range(len(cells))]
        pairs = zip(kinds, cells, strict=True)
        return f"<tr>{''.join(f'<{tag}{k}>{escape(c)}</{tag}>' for k, c in pairs)}</tr>"

    body = f"{line('th', names)}{''.join(line('td', row) for row in rows)}"
    return f'<div class="wide"><table>{body}</table></div>'


def write_page(
    folder: Path, text: str, pictures: Mapping[str, Picture]
) -> tuple[Path, tuple[Path, ...]]:
    """Write ``report.html`` and a ``report-NAME.png`` for every picture into a folder.

    Args:
        folder: Made if missing. Earlier reports there are replaced, and no file of another origin.
        text: The page.
        pictures: The pictures, by name.

    Returns:
        The page and the PNGs.

    Raises:
        FormatError: If the folder is none, or a file of another origin has the name of one to
            write; nothing is written then.
        OSError: If a file cannot be written.
    """
    if folder.exists() and not folder.is_dir():
        raise FormatError.about(folder, "it is not a folder", "name another --out")
    contents = {folder / f"report-{name}.png": one.png for name, one in pictures.items()}
    for file in (folder / PAGE, *contents):
        check_replaceable(file)
    folder.mkdir(parents=True, exist_ok=True)
    for file, content in {**contents, folder / PAGE: text.encode()}.items():
        with AtomicFile(file) as out:
            out.write(content)
    return folder / PAGE, tuple(contents)
