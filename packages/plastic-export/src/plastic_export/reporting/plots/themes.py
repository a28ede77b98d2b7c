"""The two themes of a picture within a page: dark on light, and light on dark."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from plastic_export.reporting.plots.drawing import check_drawing
from plastic_export.reporting.plots.rendering import rendered

if TYPE_CHECKING:  # matplotlib takes longer to import than most commands to run
    from matplotlib.figure import Figure

LIGHT: dict[str, Any] = {"grid.color": "0.91"}
PAPER, INK = "#17191c", "#d7d9dc"
DARK: dict[str, Any] = {
    "grid.color": "0.25",
    **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), PAPER),
    **dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK
    ),
}


class Picture(NamedTuple):
    """A picture as a file, and as a page shows it in either theme.

    Attributes:
        png: Dark on light.
        light: The same as SVG.
        dark: Light on dark, as SVG.
    """

    png: bytes
    light: bytes
    dark: bytes


def pictured(draw: Callable[[], Figure]) -> Picture:
    """Draw a picture in both themes, whatever the user's style of matplotlib is.

    Raises:
        ModuleNotFoundError: If matplotlib is not installed.
    """
    with theme(LIGHT):
        png, light = rendered(draw(), "png"), rendered(draw(), "svg")
    with theme(DARK):
        return Picture(png, light, rendered(draw(), "svg"))


@contextmanager
def theme(colors: Mapping[str, Any] = LIGHT) -> Iterator[None]:
    """Let matplotlib draw in its own style, with these colours.

    Raises:
        ModuleNotFoundError: If matplotlib is not installed.
    """
    check_drawing()
    from matplotlib import style

    with style.context(["default", dict(colors)]):
        yield


def ink() -> str:
    """Return the colour of words and lines in the present theme."""
    import matplotlib

    return str(matplotlib.rcParams["text.color"])


def backdrop() -> str:
    """Return the colour behind them."""
    import matplotlib

    return str(matplotlib.rcParams["axes.facecolor"])
