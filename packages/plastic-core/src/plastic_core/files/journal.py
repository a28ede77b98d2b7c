"""The journal of a long run: what is finished, line by line, for the run that goes on."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plastic_core.files.atomic import write_all
from plastic_core.files.closing import Closing
from plastic_core.files.errors import FormatError
from plastic_core.files.notes import naming


class Journal(Closing):
    """A file of records that only grows. A context manager.

    A line is the CRC-32 of a record and the record as JSON. Reading ends at the first line that
    is not whole: a crash tears the end, and what stands after a tear is not trusted. A record is
    a claim about other files, which the reader checks: nothing is synced.

    Args:
        path: The file; begun where it is missing.

    Attributes:
        records: What was in it, then what was appended.

    Raises:
        OSError: If it cannot be read or written.

    Examples:
        >>> with Journal(Path("journal")) as journal:
        ...     journal.append({"done": "w", "cost": 0.5})
        >>> with Journal(Path("journal")) as journal:
        ...     journal.records
        [{'done': 'w', 'cost': 0.5}]
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records: list[dict[str, Any]] = []
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        with naming(path):
            self._descriptor = os.open(path, flags, 0o666)
        try:
            self._load()
        except BaseException:
            self.close()
            raise

    def append(self, record: Mapping[str, Any]) -> None:
        """Add a record; floats come back as the same floats."""
        text = json.dumps(record, ensure_ascii=False).encode()
        with naming(self.path):
            write_all(self._descriptor, _line(text))
        self.records.append(dict(record))

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1  # first: an interrupt may follow
            os.close(descriptor)

    def _load(self) -> None:
        end = 0
        with naming(self.path), open(os.dup(self._descriptor), "rb") as stream:
            for line in stream:
                text = line[9:-1]
                if line != _line(text):
                    break
                self.records.append(json.loads(text))
                end += len(line)
            os.ftruncate(self._descriptor, end)
            os.lseek(self._descriptor, end, os.SEEK_SET)


def check_same(
    file: Path,
    there: Mapping[str, Any],
    here: Mapping[str, Any],
    *,
    remedy: str,
    what: str = "the earlier run",
) -> None:
    """Refuse to go on with what was begun otherwise.

    Args:
        file: Where ``there`` was read, for the message.
        there: What the earlier run was, by name; values may be mappings again.
        here: What this one is.
        remedy: What to do about a difference, for the message.
        what: What ``there`` describes, for the message.

    Raises:
        FormatError: Naming the first difference, with both values.

    Examples:
        >>> check_same(Path("run.json"), {"seed": 1}, {"seed": 2}, remedy="use another folder")
        Traceback (most recent call last):
        plastic_core...FormatError: run.json: the earlier run had seed 1, this one has 2; ...
    """
    old, new = dict(_flat(there)), dict(_flat(here))
    for name in [*new, *(name for name in old if name not in new)]:
        before, now = old.get(name, _ABSENT), new.get(name, _ABSENT)
        if before != now:
            reason = f"{what} had {name} {_short(before)}, this one has {_short(now)}"
            raise FormatError.about(file, reason, remedy)


_ABSENT = object()


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            found += _flat(value, f"{prefix}{name}.")
        else:
            found.append((f"{prefix}{name}", value))
    return found


def _short(value: Any) -> str:
    return "nothing" if value is _ABSENT else f"{value!r:.80}"


def _line(text: bytes) -> bytes:
    return b"%08x %s\n" % (zlib.crc32(text), text)
