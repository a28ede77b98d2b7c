"""A checkpoint made smaller, given back, described: plans made and carried out.

Stands on ``exact`` and below.
"""

from plastic_export.compression.foreseen import ForeseenPlan
from plastic_export.compression.nested import nested_plan
from plastic_export.compression.plan_file import write_plan
from plastic_export.compression.selecting import Remainder, plannable

__all__ = ["ForeseenPlan", "Remainder", "nested_plan", "plannable", "write_plan"]
