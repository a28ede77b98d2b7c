"""Singular values as text, every bit of them."""

from __future__ import annotations

import base64

import numpy as np
from numpy.typing import NDArray


def encoded_spectrum(values: NDArray[np.float64]) -> str:
    """Return singular values as a journal and a manifest hold them: every bit, in base64.

    Examples:
        >>> decoded_spectrum(encoded_spectrum(np.array([2.0, 1.0]))).tolist()
        [2.0, 1.0]
    """
    return base64.b64encode(values.astype("<f8").tobytes()).decode()


def decoded_spectrum(text: str) -> NDArray[np.float64]:
    """Return the singular values that `encoded_spectrum` wrote.

    Examples:
        >>> decoded_spectrum(encoded_spectrum(np.array([0.5])))
        array([0.5])
    """
    return np.frombuffer(base64.b64decode(text), "<f8")
