"""mlx-lm's model of a checkpoint: loaded, its layers named, run by NumPy on the CPU.

Stands on ``checkpoint`` and ``folder``.
"""

from plastic_export.model.load import read_text
from plastic_export.model.numpy_functions import divergences, log_softmax, use_numpy_functions

__all__ = ["divergences", "log_softmax", "read_text", "use_numpy_functions"]
