"""A training run around the manager: adapters attached, batches, saved runs, generations.

Stands on ``manager`` and everything below it.
"""

from plastic_runtime.training.alike import AlikeRun
from plastic_runtime.training.attachment import adaptable_layers
from plastic_runtime.training.generations import OTHER_RUN_REMEDY
from plastic_runtime.training.saved_run import read_run
from plastic_runtime.training.shares import share_of, weighted

__all__ = [
    "OTHER_RUN_REMEDY",
    "AlikeRun",
    "adaptable_layers",
    "read_run",
    "share_of",
    "weighted",
]
