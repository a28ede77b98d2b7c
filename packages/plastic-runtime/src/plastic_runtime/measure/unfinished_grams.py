"""The folder in which a measurement that was cut waits to be continued."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from plastic_core.files import FormatError, read_json, sync_path, write_json

from plastic_runtime.measure.gram_file import GRAM_FILE_VERSION, GramSum, Mark, append_grams
from plastic_runtime.measure.gram_identity import check_measurement
from plastic_runtime.measure.recorder import LossRecorder
from plastic_runtime.measure.spool import damaged, spool_files

_SPOOLED = ("input.*", "kept.*", "gradient.*")
_PARTS = ("state.json", ".state.json.tmp", "grams.npz", *_SPOOLED)


def discard_parts(file: Path) -> None:
    """Remove the parts of a file, and their folder where it holds nothing else."""
    folder = _folder(file)
    with suppress(OSError):
        for part in (path for pattern in _PARTS for path in folder.glob(pattern)):
            part.unlink()
        folder.rmdir()


class GramParts:
    """The folder beside a file of Grams that holds its finished parts until all are there.

    Its ``state.json`` says what is finished; whatever else was written since does not count.

    Args:
        file: The file that is to be. The folder has its name with ``.parts``.
        made_for: The measurement; see `calibration_identity`.

    Attributes:
        folder: The folder.
        finished: How many parts are.
        tokens: Tokens of which gradients are taken, known once a part has any.

    Raises:
        ValueError: If the folder holds parts of another measurement, or is damaged.
        OSError: If it cannot be made or read.
    """

    def __init__(self, file: Path, made_for: Mapping[str, Any]) -> None:
        self.file = file
        self.folder = _folder(file)
        self.finished, self.tokens = 0, 0
        self._made_for = made_for
        self._sites: dict[str, str] = {}
        self._outputs: list[str] = []
        self._counts: dict[str, int] = {}
        self._mark: Mark | None = None
        if self._state.exists():
            self._load()
        self.folder.mkdir(exist_ok=True)

    @classmethod
    def begun_anew(cls, file: Path, made_for: Mapping[str, Any]) -> Self:
        """Go on from the folder where it is of this measurement, else from an empty one."""
        try:
            return cls(file, made_for)
        except FormatError:
            discard_parts(file)
            return cls(file, made_for)

    def finish(self, recorder: LossRecorder, tokens: int) -> None:
        """Keep the sums of a recorder as the next part.

        Args:
            recorder: The recorder.
            tokens: Of which gradients are taken; 0 while that is not known.

        Raises:
            OSError: If it cannot be written.
        """
        sites, gradients = recorder.sums()
        first = {id(site): path for path, site in reversed(sites.items())}
        inputs = [GramSum(f"input.{p}", sites[p].total, sites[p].tokens) for p in first.values()]
        outputs = [GramSum(f"output.{p}", s.total, tokens) for p, s in gradients.items()]
        self._mark = append_grams(self._archive, [*inputs, *outputs], self._mark)
        self._sites |= {path: first[id(site)] for path, site in sites.items()}
        self._outputs += gradients
        self._counts |= {path: sites[path].tokens for path in first.values()}
        self.finished, self.tokens = self.finished + 1, tokens
        self._save()

    def pass_over(self) -> None:
        """Count a part as finished which another process is to `finish`."""
        self.finished += 1

    def keep(self, names: Collection[str]) -> None:
        """Remove all spooled arrays that have none of these names: see `SpooledArrays`."""
        for path in (path for pattern in _SPOOLED for path in self.folder.glob(pattern)):
            if ".".join(path.name.split(".")[:2]) not in names:
                path.unlink()

    def remove(self, name: str) -> None:
        """Remove spooled arrays of a name, whichever process left them."""
        for path in spool_files(self.folder, name).values():
            path.unlink()

    def publish(self) -> None:
        """Make the parts the file; it appears complete and synced to disk, or not at all.

        Raises:
            OSError: If it cannot be written.
        """
        paths_of: dict[str, list[str]] = {}
        for path in sorted({*self._sites} & {*self._outputs}):
            paths_of.setdefault(self._sites[path], []).append(path)
        header = {
            "version": GRAM_FILE_VERSION,
            "made_for": self._made_for,
            "tokens": self.tokens,
            "sites": {path: site for site, paths in paths_of.items() for path in paths},
            "counts": {site: self._counts[site] for site in paths_of},
        }
        append_grams(self._archive, [json.dumps(header).encode()], self._mark)
        self._archive.replace(self.file)
        sync_path(self.file.parent)

    @property
    def _state(self) -> Path:
        return self.folder / "state.json"

    @property
    def _archive(self) -> Path:
        return self.folder / "grams.npz"

    def _save(self) -> None:
        state = {
            "version": GRAM_FILE_VERSION,
            "made_for": self._made_for,
            "finished": self.finished,
            "tokens": self.tokens,
            "sites": self._sites,
            "outputs": self._outputs,
            "counts": self._counts,
            "mark": self._mark,
        }
        write_json(self._state, state)

    def _load(self) -> None:
        try:
            state = read_json(self._state)
            made_for = {"layout": state["version"], **state["made_for"]}
            self.finished, self.tokens = state["finished"], state["tokens"]
            self._sites, self._counts = state["sites"], state["counts"]
            self._outputs = state["outputs"]
            self._mark = Mark(*state["mark"])
            is_whole = self._archive.stat().st_size >= self._mark.end
        except (KeyError, TypeError, ValueError, FileNotFoundError) as error:
            raise damaged(self.folder) from error
        if not is_whole:
            raise damaged(self.folder)
        check_measurement(self.folder, made_for, {"layout": GRAM_FILE_VERSION, **self._made_for})


def _folder(file: Path) -> Path:
    return file.with_name(f"{file.name}.parts")
