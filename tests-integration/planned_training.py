"""A training whose ranks change by plan, in the processes that it is started in.

``planned_training.py BASE DATA OUT [STEP]``: after ``STEP`` process 1 differs by one bit.
"""

from __future__ import annotations

import sys
from pathlib import Path
from unittest.mock import patch

import mlx.core as mx
from plastic_export import train
from plastic_runtime import find_rank_layers
from plastic_runtime.distributed import DisagreementError, join
from plastic_runtime.training import AlikeRun

sys.path.insert(0, str(Path(__file__).parents[1] / "tools" / "faults"))
from tinyrun import TRAINING, PlannedManager

NUDGED = "model.layers.1.mlp.up_proj"


class NudgedRun(AlikeRun):
    """Changes a bit of a layer before a comparison."""

    after = 0

    def check(self) -> None:
        """Compare, once a bit is not what it was."""
        if self._team.rank == 1 and (self.training_step or 0) >= self.after:
            layer = find_rank_layers(self._model)[NUDGED]
            layer.Vh = layer.Vh * (1 + 2**-23 * (mx.arange(layer.Vh.shape[1]) == 0))
        super().check()


def main(base: str, data: str, out: str, step: str = "") -> None:
    """Train; say in one line what went wrong."""
    run = NudgedRun if step else AlikeRun
    NudgedRun.after = int(step or 0)
    with (
        patch("plastic_export.training.course.PlasticityManager", PlannedManager),
        patch("plastic_export.training.course.AlikeRun", run),
    ):
        team = join()
        try:
            train(base, data, out, TRAINING, team=team)
        except DisagreementError as error:
            if team.leads:
                sys.stderr.write(f"error: {error}\n")
            sys.exit(2)


if __name__ == "__main__":
    main(*sys.argv[1:])
