"""Shared material of all tests: matrices of known spectrum, and files to be refused.

Needs hypothesis (the extra ``testing``). Stands on ``linalg``; nothing but tests uses it.
"""

from plastic_core.testing.bad_files import (
    BAD_FILES,
    BAD_INDEXES,
    GOOD,
    GOOD_FILES,
    SIXTEEN,
    STRICTER,
    Bad,
    entry,
    mutants,
    one,
    packed,
)
from plastic_core.testing.known_spectra import (
    EPS,
    SCALES,
    Sample,
    anything,
    assert_orthonormal,
    bits,
    matrices,
    matrix_from_spectrum,
    repeatable,
    spectra,
    tolerance,
)
from plastic_core.testing.messages import assert_one_error
from plastic_core.testing.models import gaussian, parameters, same_bits

__all__ = [
    "BAD_FILES",
    "BAD_INDEXES",
    "EPS",
    "GOOD",
    "GOOD_FILES",
    "SCALES",
    "SIXTEEN",
    "STRICTER",
    "Bad",
    "Sample",
    "anything",
    "assert_one_error",
    "assert_orthonormal",
    "bits",
    "entry",
    "gaussian",
    "matrices",
    "matrix_from_spectrum",
    "mutants",
    "one",
    "packed",
    "parameters",
    "repeatable",
    "same_bits",
    "spectra",
    "tolerance",
]
