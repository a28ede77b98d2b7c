"""Which pictures and pages may be replaced: those that this package wrote, which bear its mark."""

from __future__ import annotations

import os
from pathlib import Path

from plastic_core.files import FormatError, open_regular

MARK = "plastic-export"
"""What a PNG names as its software, and a page as its generator."""

PNG_METADATA = {"Software": MARK}
HTML_METADATA = f'<meta name="generator" content="{MARK}">'

_PNG_BYTES = f"Software\0{MARK}".encode()
_HEAD_BYTES = 4096  # the mark stands before the content


def check_replaceable(file: Path) -> None:
    """Refuse to replace a picture or a page that this package did not write.

    Raises:
        FormatError: If there is such a file, or a link or a folder.
        OSError: If the file cannot be read.
    """
    if not os.path.lexists(file):
        return
    if file.is_symlink() or not file.is_file():
        raise FormatError.about(file, "it is a link or a folder", "move it away")
    with open_regular(file) as stream:
        head = os.pread(stream.fileno(), _HEAD_BYTES, 0)
    if _PNG_BYTES not in head and HTML_METADATA.encode() not in head:
        reason = "it exists and was not written by this package"
        raise FormatError.about(file, reason, "move it away, or choose another name")
