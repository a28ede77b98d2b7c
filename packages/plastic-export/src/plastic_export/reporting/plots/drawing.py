"""The library that every picture needs: matplotlib, which is an extra."""

from __future__ import annotations

HOW = "drawing needs matplotlib; install the extra: pip install 'plastic-export[plots]'"


def check_drawing() -> None:
    """Refuse to draw where matplotlib is not installed.

    Raises:
        ModuleNotFoundError: Saying how to install it.
    """
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        raise ModuleNotFoundError(HOW, name="matplotlib") from None
