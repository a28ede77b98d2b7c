"""The formats: what is written for a matrix and read back, one file each.

Stands on ``plan`` and below. ``protocol`` says what a format is; ``table`` lists all of them.
"""

from plastic_export.format.protocol import Format
from plastic_export.format.table import FORMATS, PLAN_FORMATS, RANK_FORMATS

__all__ = ["FORMATS", "PLAN_FORMATS", "RANK_FORMATS", "Format"]
