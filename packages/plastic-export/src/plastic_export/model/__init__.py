"""mlx-lm's model of a checkpoint: loaded, its layers named, run by NumPy on the CPU.

Stands on ``checkpoint`` and ``folder``.
"""

from plastic_export.model.divergence import divergences, log_softmax
from plastic_export.model.numpy_functions import use_numpy_functions
from plastic_export.model.text import read_text

__all__ = ["divergences", "log_softmax", "read_text", "use_numpy_functions"]
