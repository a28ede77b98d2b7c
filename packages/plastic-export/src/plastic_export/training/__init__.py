"""``plastic train``: a run on a checkpoint, its folder, data and adapters.

Stands on ``model`` and below.
"""

from plastic_export.training.adapters import round_as_stored
from plastic_export.training.data.training_data import read_training_data
from plastic_export.training.history import read_history
from plastic_export.training.settings import GAUGE, OPTIMIZERS

__all__ = ["GAUGE", "OPTIMIZERS", "read_history", "read_training_data", "round_as_stored"]
