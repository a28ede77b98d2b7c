"""The model card of a folder: its name, and whether it still is what this package wrote."""

from __future__ import annotations

import hashlib
from pathlib import Path

CARD = "README.md"
"""The card, which the Hub shows. No manifest lists it: it is there to be edited."""
SOURCE_CARD = "README.source.md"
"""The card of the source, byte for byte."""

_SEAL = "<!-- plastic: sha256 {} of all above. A card that was edited is never replaced. -->\n"


def sealed_card(text: str) -> str:
    """Return a card with a last line by which an edited one is told from this."""
    return text + _SEAL.format(hashlib.sha256(text.encode()).hexdigest())


def is_own_card(file: Path) -> bool:
    """Tell whether a card was written by this package, and not edited since.

    Raises:
        OSError: If it is there and cannot be read.
    """
    if file.is_symlink() or not file.is_file():
        return False
    text = file.read_text(errors="replace")
    above = text[: text.rfind("<!-- plastic: ")]
    return text == sealed_card(above)


def may_write_card(folder: Path) -> bool:
    """Tell whether a folder has no card, or one that may be replaced."""
    file = folder / CARD
    return is_own_card(file) or not (file.exists() or file.is_symlink())
