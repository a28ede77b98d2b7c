"""The latest states of a training run, one file each."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.nn as nn
import mlx.optimizers as optim
from plastic_core.files import FormatError, check_same

from plastic_runtime.manager.manager import PlasticityManager
from plastic_runtime.training.saved_run import put_back, read_run, save_run

OTHER_RUN_REMEDY = "start it as before, or name another folder"
_NAME = re.compile(r"step-(\d{9})\.safetensors")
_TEMPORARY = re.compile(r"\.step-\d{9}\.safetensors\.(.*\.)?tmp")


class Generations:
    """A folder of saved runs (`save_run`), named by their step.

    A generation is on the disk, whole and synced, before the oldest one goes; so a run that is
    cut at any moment has one to go on from, once the first is written.

    Args:
        folder: Made at the first saving.
        identity: All that the course of the run depends on, by name, in JSON's types. A
            generation of any other is refused and the difference named.
        keep: How many stay, at least 1.

    Raises:
        ValueError: If ``keep`` is below 1.

    Examples:
        >>> model = nn.Sequential(RankLayer(mx.eye(2), mx.ones(2), mx.eye(2)))
        >>> manager, generations = PlasticityManager(model), Generations("run", {"seed": 0})
        >>> for step in (0, 10, 20):
        ...     generations.save(step, model, None, manager)
        >>> generations.steps(), generations.load(model, None, manager)
        ([10, 20], (20, {}))
    """

    def __init__(
        self, folder: str | os.PathLike[str], identity: Mapping[str, Any], *, keep: int = 2
    ) -> None:
        if keep < 1:
            raise ValueError(f"`keep` must be at least 1, got {keep}.")
        self.folder = Path(folder)
        self.identity = dict(identity)
        self.keep = keep

    def steps(self) -> list[int]:
        """Return the steps of the generations there are, oldest first."""
        if not self.folder.is_dir():
            return []
        matches = (_NAME.fullmatch(name) for name in os.listdir(self.folder))
        return sorted(int(match[1]) for match in matches if match)

    def path(self, step: int) -> Path:
        """Return where the generation of a step is, or would be."""
        return self.folder / f"step-{step:09d}.safetensors"

    def save(
        self,
        step: int,
        model: nn.Module,
        optimizer: optim.Optimizer | None,
        manager: PlasticityManager,
        *,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        """Write a generation, then remove what is older than the newest ``keep``.

        Args:
            step: Steps made, from 0; the next run goes on from there.
            model: The model, see `save_run`.
            optimizer: The optimizer, see `save_run`.
            manager: The manager, see `save_run`.
            extra: Whatever else the caller needs to go on, in JSON's types.

        Raises:
            ValueError: If a parameter has NaN or infinities. Every generation is as it was.
            OSError: If the file cannot be written. The same.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        content = {"identity": self.identity, "step": step, "extra": dict(extra or {})}
        save_run(self.path(step), model, optimizer, manager, extra=content)
        self._prune()

    def load(
        self, model: nn.Module, optimizer: optim.Optimizer | None, manager: PlasticityManager
    ) -> tuple[int, dict[str, Any]] | None:
        """Put the newest generation back; see `load_run`. What a kill left behind goes.

        Returns:
            Its step and its ``extra``; None where there is no generation yet.

        Raises:
            FormatError: If it is damaged, or of a run of another identity. Nothing has changed
                then, and an older generation is there to fall back to: the message names it.
            ValueError: If it does not fit the model, the optimizer or the manager.
            OSError: If it cannot be read.
        """
        self._sweep()
        self._prune()
        steps = self.steps()
        if not steps:
            return None
        path = self.path(steps[-1])
        try:
            arrays, run = read_run(path)
            content = run["extra"]
            if not (isinstance(content, dict) and {"identity", "step", "extra"} <= content.keys()):
                raise FormatError.about(path, "a saved run, but no generation of one", "delete it")
        except FormatError as error:
            error.add_note(_fallback(steps))
            raise
        check_same(path, content["identity"], self.identity, remedy=OTHER_RUN_REMEDY)
        put_back(path, arrays, run, model, optimizer, manager)
        return int(content["step"]), content["extra"]

    def _prune(self) -> None:
        for old in self.steps()[: -self.keep]:
            self.path(old).unlink(missing_ok=True)

    def _sweep(self) -> None:
        for name in os.listdir(self.folder) if self.folder.is_dir() else []:
            if _TEMPORARY.fullmatch(name):
                (self.folder / name).unlink(missing_ok=True)


def _fallback(steps: list[int]) -> str:
    if len(steps) > 1:
        return f"delete it to go on from step {steps[-2]}"
    return "delete it to begin again"
