"""The state of the lowest validation loss, kept beside the newest ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.nn as nn
from plastic_runtime import Generations, PlasticityManager, read_losses

from plastic_export.folder.run_files import BEST, LOSSES


@dataclass(frozen=True, order=True)
class Validated:
    """A state whose validation loss is known; later ones are greater.

    Attributes:
        step: Batches taken before it.
        loss: Its validation loss, in nats per token.

    Examples:
        >>> Validated(step=50, loss=3.25)
        Validated(step=50, loss=3.25)
    """

    step: int
    loss: float


class BestState:
    """Keeps the state of the lowest validation loss, and counts the validations since.

    A state is saved as it was validated, before ranks change. Where a cut run goes on from an
    earlier step, the loss of a later state is not on record: its step comes again, with the same
    state, and replaces it.

    Args:
        out: Folder of the run.
        identity: All that the course of the run depends on, see `Generations`.
    """

    def __init__(self, out: Path, identity: Mapping[str, Any]) -> None:
        self._losses = out / LOSSES
        self._generations = Generations(out / BEST, identity, keep=1)
        self.kept: Validated | None = None
        self.validations_since = 0

    def go_on(self) -> None:
        """Take up what is known of the run so far, from its log of losses."""
        losses = {r.step: r.loss for r in read_losses(self._losses) if r.kind == "valid"}
        kept = next((step for step in self._generations.steps() if step in losses), None)
        loss = None if kept is None else losses[kept]
        if kept is not None and loss is not None:
            self.kept = Validated(kept, loss)
            self.validations_since = sum(step > kept for step in losses)

    def offer(self, validated: Validated, model: nn.Module, manager: PlasticityManager) -> None:
        """Save a state if no loss was lower."""
        if self.kept is not None and validated.loss >= self.kept.loss:
            self.validations_since += 1
            return
        self._generations.save(validated.step, model, None, manager)
        self.kept, self.validations_since = validated, 0

    def put_back(self, model: nn.Module, manager: PlasticityManager) -> None:
        """Put the kept state into the parts of the run, if there is one.

        Raises:
            FormatError: If its file is damaged.
        """
        if self.kept is not None:
            self._generations.load(model, None, manager)
