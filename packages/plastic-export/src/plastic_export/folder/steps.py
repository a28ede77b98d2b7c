"""The steps of a run that write tensors: which are finished, and proof of it in the files."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import Any

from plastic_core.files import Journal

from plastic_export.folder.shards import Shards


class Steps:
    """The steps of a run that was cut, and those of this one. Each has a name and a result.

    A finished step is believed when every tensor that it wrote stands in the files with the
    digest that the journal states, whatever the disk lost since. The first one that is not
    believed is taken again, with all that followed it.

    Args:
        journal: The journal of the run.
        *files: What the steps write to.
    """

    def __init__(self, journal: Journal, *files: Shards) -> None:
        self._journal = journal
        self._files = files
        self._finished = {r["step"]: r for r in journal.records if "step" in r}
        self._note()

    def finished(self, name: str) -> Mapping[str, Any] | None:
        """Pass over a step that is finished, and return its result; None if it is to be taken."""
        record = self._finished.get(name)
        pairs = [] if record is None else list(zip(self._files, record["wrote"], strict=True))
        if record is None or not all(files.holds(digests) for files, digests in pairs):
            self._finished = {}
            return None
        for files, digests in pairs:
            files.skip(digests)
        self._note()
        result: Mapping[str, Any] = record["result"]
        return result

    def add(self, name: str, result: Mapping[str, Any]) -> None:
        """Note down a step that is finished: its result, and what it wrote since the last one."""
        wrote = []
        for number, files in enumerate(self._files):
            new = islice(files.digests.items(), self._noted[number], None)
            wrote.append(dict(new))
        self._journal.append({"step": name, "wrote": wrote, "result": dict(result)})
        self._note()

    def _note(self) -> None:
        self._noted = [len(files.digests) for files in self._files]
