"""A training run around the manager: adapters attached, batches, saved runs, generations.

Stands on ``manager`` and everything below it.
"""

from plastic_runtime.training.generations import ANOTHER
from plastic_runtime.training.saved_run import read_run

__all__ = ["ANOTHER", "read_run"]
