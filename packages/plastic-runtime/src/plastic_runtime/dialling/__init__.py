"""A compressed folder at any size: what its components are worth, read as they are needed.

Stands on no other room. ``plastic_export`` writes the folders.
"""

from plastic_runtime.dialling.at_load import LoadedSize
from plastic_runtime.dialling.component_curve import ComponentCurve
from plastic_runtime.dialling.dialled_formats import DIALLED_FORMATS, component_records
from plastic_runtime.dialling.manifest import (
    MANIFEST,
    SCHEMA,
    SLEEP,
    Manifest,
    MatrixRecord,
    read_manifest,
    sealed,
)
from plastic_runtime.dialling.ranks import MatrixPlan, Plan, Surveyed, check_keep, plan_ranks
from plastic_runtime.dialling.spectrum_text import decoded_spectrum, encoded_spectrum
from plastic_runtime.dialling.spendable import Spendable, component_ranks
from plastic_runtime.dialling.spending import (
    bytes_at,
    cheapest_ranks,
    largest_ranks,
    least_ranks,
)

__all__ = [
    "DIALLED_FORMATS",
    "MANIFEST",
    "SCHEMA",
    "SLEEP",
    "ComponentCurve",
    "LoadedSize",
    "Manifest",
    "MatrixPlan",
    "MatrixRecord",
    "Plan",
    "Spendable",
    "Surveyed",
    "bytes_at",
    "cheapest_ranks",
    "check_keep",
    "component_ranks",
    "component_records",
    "decoded_spectrum",
    "encoded_spectrum",
    "largest_ranks",
    "least_ranks",
    "plan_ranks",
    "read_manifest",
    "sealed",
]
