"""Changes of rank: components and the optimizer's moments, scored, parked, woken, grown.

Stands on ``sleep`` and ``measure``; ``manager`` decides, this room acts.
"""

from plastic_runtime.surgery.reallocation import value_components
from plastic_runtime.surgery.schedule import Holding, redistribute

__all__ = ["Holding", "redistribute", "value_components"]
