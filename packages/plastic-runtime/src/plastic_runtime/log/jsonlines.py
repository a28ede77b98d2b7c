"""Files of one JSON object per line that grow while somebody may be killed."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


def append_line(path: Path, line: str) -> None:
    """Append one line and hand it to the operating system.

    A last line left without its end by a crash is closed first, so this one stands alone.

    Raises:
        OSError: If the file cannot be written.
    """
    with path.open("a+b") as file:
        file.write(_missing_line_end(file) + line.encode() + b"\n")


def whole_lines(path: str | os.PathLike[str]) -> Iterator[tuple[int, bytes]]:
    """Yield every line with its number, from 1, but for those that a crash cut short.

    Raises:
        OSError: If the file cannot be read.
    """
    for number, line in enumerate(Path(path).read_bytes().splitlines(), start=1):
        if line.endswith(b"}") or not line.startswith(b"{"):
            yield number, line


def _missing_line_end(file: BinaryIO) -> bytes:
    """Return a newline where the file, open at its end, does not end with one."""
    if file.tell() == 0:
        return b""
    file.seek(-1, os.SEEK_END)
    return b"" if file.read(1) == b"\n" else b"\n"
