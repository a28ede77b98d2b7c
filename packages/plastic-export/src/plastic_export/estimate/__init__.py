"""Time, memory, disk and network of the work of a command, told and checked before it begins.

Pure but for the trial and the look at the machine. Stands on ``checkpoint`` alone.
"""

from plastic_export.estimate.limits import START
from plastic_export.estimate.model_shape import ModelShape, WeightShape
from plastic_export.estimate.parts import Calibrated
from plastic_export.estimate.pipeline import pipelined
from plastic_export.estimate.planning import planning_work
from plastic_export.estimate.processes import estimate_processes
from plastic_export.estimate.speed import Speed, measured_speed

__all__ = [
    "START",
    "Calibrated",
    "ModelShape",
    "Speed",
    "WeightShape",
    "estimate_processes",
    "measured_speed",
    "pipelined",
    "planning_work",
]
